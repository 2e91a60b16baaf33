"""Compatibility of PEFT methods and language models with IMSM, measured on tiny models."""
