"""`sparing nas`: networks of searched cells."""

import argparse

from sparing.cli import nas_cost, nas_search, nas_train

__all__ = ["add_commands"]

# In the order of the help. Each module adds its commands by `add_commands`, and imports torch only when one runs.
_MODULES = (nas_search, nas_train, nas_cost)


def add_commands(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the group to the parser of all commands."""
    group = groups.add_parser("nas", help="search for architectures that stand hardware faults")
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _MODULES:
        module.add_commands(commands)
