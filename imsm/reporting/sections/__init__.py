"""Sections of a report: each module's `build(data)` returns one or None."""
