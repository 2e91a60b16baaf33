"""PEFT methods: one file each, a builder and, where the method needs them, hooks."""
