"""Runs the faults benchmark: `python -m benchmarks.faults.run STAGE`; stages: overhead, tokenizer,
training; or all, or report.

Run overhead with nothing else running. `--tiny` runs every stage end to end in a minute, with figures that mean
nothing.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.faults import overhead
from benchmarks.faults.report import write_report
from benchmarks.stages import Results, run_stages, stage_parser

STAGES = ["overhead", "tokenizer", "training"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = stage_parser("faults", STAGES, __doc__)
    parser.add_argument("--rounds", type=int, default=20, help="overhead: how often each column is run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="training: names of jobs, such as plain; default: all")
    parser.add_argument("--epochs", type=int, default=10, help="training: of every network")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--draws", type=int, default=20, help="training, tokenizer: of faults, for each network and rate"
    )
    parser.add_argument("--images", type=int, default=2000, help="training: test images under each draw")
    parser.add_argument("--jobs", type=int, help="training: stop after so many jobs; default: all")
    return parser.parse_args(arguments)


def stage_results(stage: str, options: argparse.Namespace) -> Results:
    """A stage's results, and what it read."""
    if stage == "training":
        from benchmarks.faults import training

        return training.measure(options)
    if stage == "tokenizer":
        from benchmarks.faults import tokenizer

        return tokenizer.measure(options)
    results = overhead.measure(batch_size=64, rounds=options.rounds, tiny=options.tiny)
    return results, {"name": "random images and weights: valid for time only"}


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    if options.tiny:
        options.rounds, options.seeds, options.epochs, options.batch_size, options.draws = 2, [0], 1, 16, 2
    return run_stages("faults", STAGES, options, results=stage_results, report=write_report)


if __name__ == "__main__":
    sys.exit(main())
