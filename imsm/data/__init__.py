"""Data, in the order in which it flows: example, task, sources, tokenise, batches."""
