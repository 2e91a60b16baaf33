"""Native implementation of ChatGLM3-6B: model, configuration and tokenizer."""
