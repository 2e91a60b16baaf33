"""Training adapter and gate: a loop of our own over a small engine."""
