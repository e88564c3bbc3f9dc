"""Writes and reads the committed result files: the run's record beside the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparing.runs.record import run_record, write_record


def save(out: Path, command: str, results: Any, *, seed: int, threads: int, data: Any, **extra: Any) -> None:
    """Writes `results` with the run's record; `threads` 0 means as many as the machine has."""
    out.parent.mkdir(parents=True, exist_ok=True)
    record = run_record(command=f"python -m {command}", seed=seed, threads=threads, data=data, **extra)
    write_record(out, record, results)
    print(f"wrote {out.name}")


def load(file: Path) -> dict[str, Any]:
    """A result file: {"record": …, "results": …}."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
