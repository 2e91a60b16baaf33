"""Serve finished runs: an OpenAI-compatible API and the lens page."""
