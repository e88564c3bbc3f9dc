"""Runs the VAR benchmark: `python -m benchmarks.var.run STAGE`; stages: latency, memory, attention, convolutions,
quality; or all.

Run with nothing else running. `--tiny` runs every stage end to end in a minute, with figures that mean nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.stages import Results, run_stages, stage_parser
from benchmarks.var import attention, convolutions, latency, memory
from benchmarks.var.report import write_report

STAGES = ["latency", "memory", "attention", "convolutions", "quality"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = stage_parser("var", STAGES, __doc__)
    parser.add_argument("--model", default="d16")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pipeline", default="cifar10", help="quality: a saved model; default: the one that ships")
    parser.add_argument(
        "--classifier", type=Path, default=Path("benchmarks/var/judge.safetensors"), help="quality: the judge"
    )
    parser.add_argument("--jobs", type=int, help="quality: stop after so many new variants; default: all")
    parser.add_argument("--samples", type=int, default=10_000)
    return parser.parse_args(arguments)


def _latency(options: argparse.Namespace) -> Any:
    agreement = latency.check_same_work(options.model)
    columns = latency.measure(
        options.model, batch_sizes=options.batch_sizes, rounds=options.rounds, device=options.device
    )
    return {
        "greedy_tokens_that_agree": agreement,
        "columns": columns,
        "attention_removed_by_sharing": latency.shared_share(options.model),
    }


def _memory(options: argparse.Namespace) -> Any:
    return memory.measure(options.model, max(options.batch_sizes))


def _attention(options: argparse.Namespace) -> Any:
    dtype = torch.bfloat16 if options.device == "cpu" else torch.float16
    heads = 4 if options.tiny else 36
    return attention.measure("512²", heads=heads, rows=2, rounds=options.rounds, dtype=dtype, device=options.device)


def _convolutions(options: argparse.Namespace) -> Any:
    return convolutions.measure(((32, 32, 8),) if options.tiny else convolutions.SHAPES, rounds=options.rounds)


def stage_results(stage: str, options: argparse.Namespace) -> Results:
    """A stage's results, and what it read."""
    if stage == "quality":
        from benchmarks.var.sessions import quality_session

        return quality_session(options)
    stages = {"latency": _latency, "memory": _memory, "attention": _attention, "convolutions": _convolutions}
    data = {"name": "random weights in the released layout: valid for time and memory, not for quality"}
    return stages[stage](options), data


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    if options.tiny:
        options.model, options.batch_sizes, options.rounds, options.samples = "tiny", [1, 2], 1, 40
    if options.device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return run_stages("var", STAGES, options, results=stage_results, report=write_report, model=options.model)


if __name__ == "__main__":
    sys.exit(main())
