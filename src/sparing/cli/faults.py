"""`sparing faults`: what a classifier's accuracy is worth on hardware that fails."""

import argparse

from sparing.cli import faults_compare, faults_sweep, faults_vulnerability

__all__ = ["add_commands"]

# In the order of the help. Each module adds its commands by `add_commands`, and imports torch only when one runs.
_MODULES = (faults_sweep, faults_vulnerability, faults_compare)


def add_commands(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the group to the parser of all commands."""
    group = groups.add_parser("faults", help="accuracy of classifiers under hardware faults")
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _MODULES:
        module.add_commands(commands)
