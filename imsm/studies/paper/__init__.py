"""The paper's tables and figures, each defined as a grid of runs in `experiments/<name>/`."""
