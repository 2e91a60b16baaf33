"""Processes of one run: launch, connect, supervise."""
