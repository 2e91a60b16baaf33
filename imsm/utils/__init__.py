"""Files, paths, hashing, messages; imports nothing above it."""
