"""Report of a task sequence: record, tables, heat map."""
