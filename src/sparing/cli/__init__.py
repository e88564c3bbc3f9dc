"""The command line: `sparing`, one module a group of commands."""

__all__: list[str] = []
