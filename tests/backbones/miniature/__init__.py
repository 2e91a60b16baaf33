"""Tests of the miniature."""
