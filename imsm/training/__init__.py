"""Training loop, checkpoints and engines (PyTorch, DeepSpeed ZeRO)."""
