"""Prompts to responses, predictions, metrics and statistics."""
