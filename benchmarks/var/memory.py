"""Peak memory of drawing a batch, measured in a process of its own for each column.

`python -m benchmarks.var.memory COLUMN MODEL BATCH` prints one line of JSON; :func:`measure` runs the columns.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.var.latency import SETTINGS, int8_plan, published
from benchmarks.var.models import random_pipeline
from sparing.var.apply import apply_
from sparing.var.memory import PeakMemory

COLUMNS = [
    "published, half-precision weights",
    "ours, bfloat16",
    "ours, int8 weights and cache",
    "ours, int8 weights and cache, output shared in the later half of the scales",
]

RUNS = 3


def _resident() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def run(column: str, name: str, batch: int) -> dict[str, Any]:
    """Loads, draws a batch, and says what memory rose by since before the weights were there."""
    before = _resident()
    pipe = random_pipeline(name, dtype=torch.bfloat16)
    draw = published(pipe, torch.bfloat16) if column == COLUMNS[0] else lambda labels: pipe(labels, **SETTINGS)
    if column in COLUMNS[2:]:
        apply_(pipe, int8_plan(pipe, shared=column == COLUMNS[3], kv_bits=8), keep_original=False)
    gc.collect()
    loaded = _resident()
    labels = torch.arange(batch) * 7 % pipe.transformer.config.num_classes
    with PeakMemory(torch.device("cpu")) as memory:
        draw(labels)
    return {
        "column": column,
        "model": name,
        "batch_size": batch,
        "weights_and_code_bytes": loaded - before,
        "peak_bytes": (memory.peak_bytes or 0) - before,
    }


def measure(name: str, batch: int) -> list[dict[str, Any]]:
    """All columns, each run in a process of its own, in turn; the median and all peaks, which the allocator varies."""
    runs: dict[str, list[dict[str, Any]]] = {column: [] for column in COLUMNS}
    for _ in range(RUNS):
        for column, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.var.memory", column, name, str(batch)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(found[-1], flush=True)
    middle = (sorted(found, key=lambda run: run["peak_bytes"])[RUNS // 2] for found in runs.values())
    return [{**run, "all_peak_bytes": [r["peak_bytes"] for r in runs[run["column"]]]} for run in middle]


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
