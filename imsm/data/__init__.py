"""Datasets to examples, token ids and batches."""
