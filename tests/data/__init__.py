"""Tests of imsm.data."""
