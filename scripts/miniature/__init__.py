"""The miniature: a small Llama, its invented world, and the seven datasets about it."""
