"""Jobs of a sweep: their execution, launchers and status files."""
