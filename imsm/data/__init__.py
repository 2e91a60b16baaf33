"""Datasets: tasks and sources -> examples -> token ids -> batches."""
