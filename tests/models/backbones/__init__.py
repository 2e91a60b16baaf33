"""Tests of imsm.models.backbones."""
