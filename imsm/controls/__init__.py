"""Controls: what a finished adapter gives without the gate and without any training."""
