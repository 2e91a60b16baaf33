"""What a run leaves: `result.json`, and its report card."""
