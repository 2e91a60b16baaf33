"""The command `imsm`, one module per subcommand: argument parsing and exit codes only."""
