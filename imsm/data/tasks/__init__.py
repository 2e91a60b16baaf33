"""One module per dataset: prompts, gold answers and the extraction of the answer from a response."""
