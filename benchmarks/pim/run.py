"""Runs the PIM benchmark: `python -m benchmarks.pim.run STAGE`; stages: reference, search, executor, training; or all.

Run reference and executor with nothing else running. `--tiny` runs every stage end to end in a minute, with figures
that mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.pim import execution, reference, searching
from benchmarks.pim.report import write_report
from sparing.runs.record import run_record, write_record

STAGES = ["reference", "search", "executor", "training"]
_DATA = {
    "reference": "none: layers without weights",
    "search": "none: layers without weights",
    "executor": "random images and weights: valid for time and equality, not for accuracy",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", default="all", choices=[*STAGES, "report", "all"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/pim/results"))
    parser.add_argument(
        "--work", type=Path, default=Path("out/pim-bench"), help="training: checkpoints, a folder a job"
    )
    parser.add_argument("--data", type=Path, help="training: CIFAR-10's folder; default SPARING_DATA/cifar10")
    parser.add_argument("--rounds", type=int, default=20, help="how often what is timed is run")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: as many as it takes")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="default: 0 to 4; training also takes 3 whole and 2 in part"
    )
    parser.add_argument("--evaluations", type=int, default=300_000, help="search: designs that a search tries")
    parser.add_argument("--images", type=int, default=64, help="executor: images at once")
    parser.add_argument("--epochs", type=int, default=16, help="training: of the float networks")
    parser.add_argument("--fine-tune-epochs", type=int, default=12, help="training: of each 3-bit network")
    parser.add_argument("--fine-tune-rate", type=float, default=0.05, help="training: peak learning rate at 3 bits")
    parser.add_argument("--jobs", type=int, help="training: stop after so many jobs; default: all")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args(arguments)


def _results(stage: str, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """A stage's results, and what it read."""
    if stage == "training":
        from benchmarks.pim import training

        return training.run_jobs(options)
    if stage == "reference":
        results: Any = reference.measure(times=options.rounds, tiny=options.tiny)
    elif stage == "search":
        results = searching.search(options.seeds, evaluations=options.evaluations, tiny=options.tiny)
    else:
        results = execution.measure(images=options.images, rounds=options.rounds, tiny=options.tiny)
    return results, {"name": _DATA[stage]}


def run_stage(stage: str, options: argparse.Namespace) -> None:
    """One stage, writing its result file."""
    results, data = _results(stage, options)
    name = f"{stage}-cpu" + ("-tiny" if options.tiny else "")
    command = ["python", "-m", "benchmarks.pim.run", *sys.argv[1:]]
    record = run_record(
        command=command, seed=options.seeds[0], threads=torch.get_num_threads(), data=data, device="CPU"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    write_record(options.out / f"{name}.json", record, results)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    options.seeds = options.seeds or [0, 1, 2, 3, 4]
    if options.tiny:
        options.rounds, options.seeds, options.evaluations, options.images = 2, [0, 1], 2000, 2
        options.epochs = options.fine_tune_epochs = 1
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
