"""The pad-dist command, one module per group of subcommands."""
