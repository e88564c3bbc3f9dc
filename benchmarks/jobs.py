"""Long trainings as jobs, each with a folder: a result that is there is taken, the others are made in their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sparing.runs.atomic import replace_file

RESULT = "result.json"


def slug(name: str) -> str:
    """A job's name as part of its folder's."""
    return name.replace(", ", "-").replace(" ", "-")


def run_jobs(jobs: Iterable[tuple[Path, Callable[[], dict[str, Any]]]], *, most: int | None) -> list[dict[str, Any]]:
    """Runs the jobs that have no result yet.

    Args:
        jobs: the folder of each, and what runs it.
        most: jobs to run; None: all.

    Returns:
        The results that there are, in order.
    """
    rows = []
    left = most
    for folder, run in jobs:
        file = folder / RESULT
        if not file.exists() and left != 0:
            left = None if left is None else left - 1
            row = run()
            folder.mkdir(parents=True, exist_ok=True)
            with replace_file(file) as out:
                out.write(json.dumps(row, indent=1, allow_nan=False).encode() + b"\n")
            shown = {key: value for key, value in row.items() if isinstance(value, int | float | str)}
            print(folder.name, json.dumps(shown), flush=True)
        if file.exists():
            rows.append(json.loads(file.read_text(encoding="utf-8")))
    return rows
