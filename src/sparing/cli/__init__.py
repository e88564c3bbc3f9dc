"""The command line: `sparing`, one module a group of commands."""
