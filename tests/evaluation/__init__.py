"""Tests of imsm.evaluation."""
