"""The controls, a module each (see `imsm.studies.baselines.base`)."""
