"""The benchmark of one GPU: Llama 3 8B's shape, rows in order of worth, each with a time limit."""
