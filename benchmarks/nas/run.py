"""Runs the architecture search benchmark: `python -m benchmarks.nas.run STAGE`; stages: studies, primitives; or
all, or report.

`--tiny` runs it end to end in minutes, with figures that mean nothing.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.nas import primitives, studies
from benchmarks.nas.report import write_report
from benchmarks.stages import Results, run_stages, stage_parser

STAGES = ["studies", "primitives"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = stage_parser("nas", STAGES, __doc__)
    parser.add_argument("--studies", nargs="+", default=list(studies.STUDIES), choices=list(studies.STUDIES))
    parser.add_argument("--preset", default="cpu", help="of the searches")
    parser.add_argument("--mode", default="halving", choices=("halving", "evolution", "policy-gradient"))
    parser.add_argument("--workers", type=int, default=1, help="processes that judge architectures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of every final network")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--draws", type=int, help="of faults for each network and rate; default: as the study says")
    parser.add_argument("--images", type=int, default=2000, help="test images under each draw")
    parser.add_argument("--only", nargs="+", help="names of jobs, such as search; default: all")
    parser.add_argument("--jobs", type=int, help="stop after so many jobs; default: all")
    return parser.parse_args(arguments)


def stage_results(stage: str, options: argparse.Namespace) -> Results:
    """A stage's results, and what it read."""
    return studies.measure(options) if stage == "studies" else primitives.measure(options)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    if options.tiny:
        options.seeds, options.epochs, options.batch_size, options.draws, options.preset = [0], 1, 16, 2, "demo"
    return run_stages("nas", STAGES, options, results=stage_results, report=write_report)


if __name__ == "__main__":
    sys.exit(main())
