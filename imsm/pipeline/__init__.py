"""The stages of a run: they take the configuration apart; below them, keyword arguments."""
