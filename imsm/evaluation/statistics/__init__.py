"""Statistics of evaluation results: bootstrap intervals, significance tests, measures of forgetting."""
