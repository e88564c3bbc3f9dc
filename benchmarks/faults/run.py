"""Runs the faults benchmark: `python -m benchmarks.faults.run STAGE`; stages: overhead, training; or all, or report.

Run overhead with nothing else running. `--tiny` runs every stage end to end in a minute, with figures that mean
nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import overhead
from benchmarks.faults.report import write_report
from sparing.runs.record import run_record, write_record

STAGES = ["overhead", "training"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", default="all", choices=[*STAGES, "report", "all"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/faults/results"))
    parser.add_argument("--work", type=Path, default=Path("out/faults-bench"), help="training: a folder a job")
    parser.add_argument("--data", type=Path, help="training: CIFAR-10's folder; default SPARING_DATA/cifar10")
    parser.add_argument("--rounds", type=int, default=20, help="overhead: how often each column is run")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: as many as it takes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="training: of every network")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--draws", type=int, default=20, help="training: of faults, for each network and rate")
    parser.add_argument("--images", type=int, default=2000, help="training: test images under each draw")
    parser.add_argument("--jobs", type=int, help="training: stop after so many jobs; default: all")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args(arguments)


def _results(stage: str, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """A stage's results, and what it read."""
    if stage == "training":
        from benchmarks.faults import training

        return training.run_jobs(options)
    results = overhead.measure(batch_size=64, rounds=options.rounds, tiny=options.tiny)
    return results, {"name": "random images and weights: valid for time only"}


def run_stage(stage: str, options: argparse.Namespace) -> None:
    """One stage, writing its result file."""
    results, data = _results(stage, options)
    name = f"{stage}-cpu" + ("-tiny" if options.tiny else "")
    command = ["python", "-m", "benchmarks.faults.run", *sys.argv[1:]]
    record = run_record(
        command=command, seed=options.seeds[0], threads=torch.get_num_threads(), data=data, device="CPU"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    write_record(options.out / f"{name}.json", record, results)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    if options.tiny:
        options.rounds, options.seeds, options.epochs, options.batch_size, options.draws = 2, [0], 1, 16, 2
        options.work = options.work / "tiny"
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.data is None and os.environ.get("SPARING_DATA"):
        options.data = Path(os.environ["SPARING_DATA"]) / "cifar10"
    stages = {"all": STAGES, "report": []}.get(options.stage, [options.stage])
    for stage in stages:
        print(f"== {stage}", flush=True)
        run_stage(stage, options)
    if options.stage in ("all", "report") and not options.tiny:
        write_report(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
