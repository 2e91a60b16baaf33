"""What `mode=plan` says: parameters, memory, steps and downloads of a run that is not begun."""
