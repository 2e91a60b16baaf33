"""One file per dataset: a sample record, its rows as examples, the answer in a generated text."""
