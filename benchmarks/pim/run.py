"""Runs the PIM benchmark: `python -m benchmarks.pim.run STAGE`; stages: reference, search, executor, training; or all.

Run reference and executor with nothing else running. `--tiny` runs every stage end to end in a minute, with figures
that mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.pim import execution, reference, searching
from benchmarks.pim.report import write_report
from benchmarks.stages import Results, run_stages, stage_parser

STAGES = ["reference", "search", "executor", "training"]
_DATA = {
    "reference": "none: layers without weights",
    "search": "none: layers without weights",
    "executor": "random images and weights: valid for time and equality, not for accuracy",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = stage_parser("pim", STAGES, __doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how often what is timed is run")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="default: 0 to 4; training also takes 3 whole and 2 in part"
    )
    parser.add_argument("--evaluations", type=int, default=300_000, help="search: designs that a search tries")
    parser.add_argument("--images", type=int, default=64, help="executor: images at once")
    parser.add_argument("--epochs", type=int, default=16, help="training: of the float networks")
    parser.add_argument("--fine-tune-epochs", type=int, default=12, help="training: of each 3-bit network")
    parser.add_argument("--fine-tune-rate", type=float, default=0.05, help="training: peak learning rate at 3 bits")
    parser.add_argument("--stuck-draws", type=int, default=10, help="training: chips with stuck cells for each rate")
    parser.add_argument("--stuck-images", type=int, default=1000, help="training: test images for each of them")
    parser.add_argument("--only", nargs="+", help="training: names of jobs, such as pruned; default: all")
    parser.add_argument("--jobs", type=int, help="training: stop after so many jobs; default: all")
    return parser.parse_args(arguments)


def stage_results(stage: str, options: argparse.Namespace) -> Results:
    """A stage's results, and what it read."""
    if stage == "training":
        from benchmarks.pim import training

        return training.measure(options)
    if stage == "reference":
        results: Any = reference.measure(times=options.rounds, tiny=options.tiny)
    elif stage == "search":
        results = searching.search(options.seeds, evaluations=options.evaluations, tiny=options.tiny)
    else:
        results = execution.measure(images=options.images, rounds=options.rounds, tiny=options.tiny)
    return results, {"name": _DATA[stage]}


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    options.seeds = options.seeds or [0, 1, 2, 3, 4]
    if options.tiny:
        options.rounds, options.seeds, options.evaluations, options.images = 2, [0, 1], 2000, 2
        options.epochs = options.fine_tune_epochs = options.stuck_draws = 1
    return run_stages("pim", STAGES, options, results=stage_results, report=write_report)


if __name__ == "__main__":
    sys.exit(main())
