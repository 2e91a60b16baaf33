"""Evaluation: inference through a response cache, answer extraction, metrics and statistics."""
