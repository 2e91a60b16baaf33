"""Judging: prompts -> generations -> extracted answers -> scores per item -> metrics."""
