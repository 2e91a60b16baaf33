"""Tests of imsm.backbones."""
