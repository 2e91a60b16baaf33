"""Training-free baselines: what a trained adapter achieves without a gate and without training."""
