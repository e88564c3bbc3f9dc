"""`sparing pim`: what convolutional networks cost on processing-in-memory crossbars."""

import argparse

from sparing.cli import pim_report, pim_search

__all__ = ["add_commands"]

# In the order of the help. Each module adds its commands by `add_commands`, and imports torch only when one runs.
_MODULES = (pim_report, pim_search)


def add_commands(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the group to the parser of all commands."""
    group = groups.add_parser("pim", help="convolutional networks on processing-in-memory crossbars")
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _MODULES:
        module.add_commands(commands)
