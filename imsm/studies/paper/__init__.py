"""The paper's tables and figures as grids of runs: `experiments/<name>/` says which."""
