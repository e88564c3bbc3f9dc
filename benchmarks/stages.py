"""The command of a benchmark: its stages in turn, a result file for each, and the report over all of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparing.runs.record import run_record, write_record

Results = tuple[Any, dict[str, Any]]
"""What a stage found, and what it read."""


def stage_parser(system: str, stages: list[str], description: str | None) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("stage", nargs="?", default="all", choices=[*stages, "report", "all"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks") / system / "results")
    parser.add_argument("--work", type=Path, default=Path("out") / f"{system}-bench", help="keeps what long stages did")
    parser.add_argument("--data", type=Path, help="CIFAR-10's folder; default SPARING_DATA/cifar10")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: as many as it takes")
    parser.add_argument("--tiny", action="store_true", help="all stages end to end, with figures that mean nothing")
    return parser


def result_file(stage: str, options: argparse.Namespace) -> Path:
    """Where a stage's results are kept."""
    device = "cpu" if getattr(options, "device", "cpu") == "cpu" else "gpu"
    return Path(options.out) / f"{stage}-{device}{'-tiny' if options.tiny else ''}.json"


def run_stages(
    system: str,
    stages: list[str],
    options: argparse.Namespace,
    *,
    results: Callable[[str, argparse.Namespace], Results],
    report: Callable[[Path], None],
    **about: Any,
) -> int:
    """Runs the stages that were asked for, and the report.

    Args:
        system: the benchmark's folder.
        stages: all of them, in order.
        options: as read by :func:`stage_parser`; ``device`` and ``seeds`` where a benchmark has them.
        results: runs one stage.
        report: writes RESULTS.md from the folder of result files.
        about: more fields of the record.
    """
    if options.tiny:
        options.work = options.work / "tiny"
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.data is None and os.environ.get("SPARING_DATA"):
        options.data = Path(os.environ["SPARING_DATA"]) / "cifar10"
    device = getattr(options, "device", "cpu")
    for stage in {"all": stages, "report": []}.get(options.stage, [options.stage]):
        print(f"== {stage}", flush=True)
        found, data = results(stage, options)
        record = run_record(
            command=["python", "-m", f"benchmarks.{system}.run", *sys.argv[1:]],
            seed=getattr(options, "seeds", [0])[0],
            threads=torch.get_num_threads(),
            data=data,
            device="CPU" if device == "cpu" else torch.cuda.get_device_name(),
            **about,
        )
        options.out.mkdir(parents=True, exist_ok=True)
        write_record(result_file(stage, options), record, found)
    if options.stage in ("all", "report") and not options.tiny:
        report(options.out)
    return 0
