"""`sparing var`: look into, train, draw with, compress and judge models that draw images scale by scale."""

import argparse

from sparing.cli import var_analyze, var_eval, var_info, var_plan, var_sample, var_train, var_train_tokenizer

__all__ = ["add_commands"]

# In the order of the help. Each module adds its commands by `add_commands`, and imports torch only when one runs.
_MODULES = (var_info, var_train_tokenizer, var_train, var_sample, var_analyze, var_plan, var_eval)


def add_commands(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the group to the parser of all commands."""
    group = groups.add_parser("var", help="draw images of classes scale by scale, with less work")
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _MODULES:
        module.add_commands(commands)
