"""Where frozen language models come from."""
