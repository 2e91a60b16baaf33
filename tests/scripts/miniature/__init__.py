"""Tests of the generator of the miniature."""
