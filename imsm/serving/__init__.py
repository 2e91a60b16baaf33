"""Serve finished runs: an OpenAI-compatible server with its page, and a plugin for vLLM."""
