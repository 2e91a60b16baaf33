"""Sections of a report, one module each: `build(data)` returns a `Section` or None."""
