"""Generator of the miniature: a small Llama, its synthetic world and seven synthetic datasets."""
