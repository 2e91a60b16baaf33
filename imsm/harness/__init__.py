"""lm-evaluation-harness on any stream of a finished run."""
