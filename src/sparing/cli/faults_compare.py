"""`sparing faults compare`: two networks under the same draws of faults."""

import argparse
from pathlib import Path
from typing import Any

from sparing.cli import render
from sparing.cli.faults_render import print_differences
from sparing.cli.options import add_command

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "compare", _compare, "two networks under the same draws, from the folders of sweeps")
    parser.add_argument("first", metavar="DIR", help="--out of a sweep")
    parser.add_argument("second", metavar="DIR", help="--out of the same sweep with another network")
    parser.add_argument("--plot", metavar="FILE.png", help="draw both")


def _compare(arguments: argparse.Namespace) -> None:
    from sparing.faults.campaign_result import compare, load_campaign_result

    if arguments.plot:
        from sparing.faults.pictures import check_picture_path

        check_picture_path(arguments.plot)
    first, second = load_campaign_result(arguments.first), load_campaign_result(arguments.second)
    rows = compare(first, second)
    names = [Path(arguments.first).name, Path(arguments.second).name]
    if arguments.plot:
        from sparing.faults.pictures import save_sweeps_figure

        save_sweeps_figure(arguments.plot, dict(zip(names, (first, second), strict=True)))
    if arguments.json:
        render.print_json({"first": names[0], "second": names[1], "differences": rows})
    else:
        print_differences(rows, title=f"accuracy of {names[0]} minus {names[1]}", confidence=first.config.confidence)
