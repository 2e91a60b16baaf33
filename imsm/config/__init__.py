"""Configuration of a run: composition of Hydra overrides, validation, identity."""
