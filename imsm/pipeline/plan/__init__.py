"""`mode=plan`: parameters, memory, steps and downloads of a run, without executing it."""
