"""Files, paths, hashing, messages and other helpers without domain knowledge."""
