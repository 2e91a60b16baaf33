"""From Hydra overrides to a validated RunConfig, or to every error in it."""
