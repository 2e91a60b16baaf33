"""Studies on finished runs: training-free baselines and the paper's tables."""
