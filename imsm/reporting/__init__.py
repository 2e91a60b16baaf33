"""Read result files; write reports, tables, figures and model cards."""
