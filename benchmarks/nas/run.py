"""Runs the architecture search benchmark: `python -m benchmarks.nas.run STAGE`; stages: studies; or all, or report.

`--tiny` runs it end to end in minutes, with figures that mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from benchmarks.nas import studies
from benchmarks.nas.report import write_report
from sparing.runs.record import run_record, write_record

STAGES = ["studies"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", default="all", choices=[*STAGES, "report", "all"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/nas/results"))
    parser.add_argument("--work", type=Path, default=Path("out/nas-bench"), help="a folder a job")
    parser.add_argument("--data", type=Path, help="CIFAR-10's folder; default SPARING_DATA/cifar10")
    parser.add_argument("--studies", nargs="+", default=list(studies.STUDIES), choices=list(studies.STUDIES))
    parser.add_argument("--preset", default="cpu", help="of the searches")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: as many as it takes")
    parser.add_argument("--workers", type=int, default=1, help="processes that judge architectures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of every final network")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--draws", type=int, help="of faults for each network and rate; default: as the study says")
    parser.add_argument("--images", type=int, default=2000, help="test images under each draw")
    parser.add_argument("--jobs", type=int, help="stop after so many jobs; default: all")
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args(arguments)


def run_stage(stage: str, options: argparse.Namespace) -> None:
    """One stage, writing its result file."""
    results, data = studies.run_jobs(options)
    name = f"{stage}-cpu" + ("-tiny" if options.tiny else "")
    command = ["python", "-m", "benchmarks.nas.run", *sys.argv[1:]]
    record = run_record(
        command=command, seed=options.seeds[0], threads=torch.get_num_threads(), data=data, device="CPU"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    write_record(options.out / f"{name}.json", record, results)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    if options.tiny:
        options.seeds, options.epochs, options.batch_size, options.draws, options.preset = [0], 1, 16, 2, "demo"
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
