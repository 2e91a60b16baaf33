"""The baselines, one module each; see `imsm.studies.baselines.base`."""
