"""Training loop, engines, checkpoints and the on-disk hidden-state cache."""
