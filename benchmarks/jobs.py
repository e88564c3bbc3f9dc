"""Long trainings as jobs, each with a folder; a result that is there, or in the stage's result file, is taken as it is.

So a stage goes on where it was stopped, and on another machine from the result file alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparing.runs.atomic import replace_file
from sparing.runs.record import run_record

RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """One training and what is measured of it.

    Attributes:
        about: what makes it this job, such as its name and seed; fields of its result.
        folder: keeps its checkpoints and its result.
        run: makes the rest of the result.
    """

    about: Mapping[str, Any]
    folder: Path
    run: Callable[[], dict[str, Any]]


def slug(name: str) -> str:
    """A job's name as part of its folder's."""
    return name.replace(", ", "-").replace(" ", "-")


def known_results(file: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The jobs' results of a result file whose settings are the same; none where there is no such file."""
    if not file.is_file():
        return []
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    # Settings went through JSON in the file.
    same = all(results.get(key) == json.loads(json.dumps(value)) for key, value in settings.items())
    return list(results["jobs"]) if same else []


def run_jobs(
    jobs: Iterable[Job], *, most: int | None, only: Sequence[str] | None = None, known: Iterable[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Runs the jobs that have no result yet.

    Args:
        jobs: in their order.
        most: jobs to run; None: all.
        only: names of jobs to run; None: all. Results of the others are taken where there are any.
        known: results of jobs that need not be run again.

    Returns:
        The results that there are, in order; ``ran`` says when and by what code each was made.
    """
    rows, left, known = [], most, list(known)
    for job in jobs:
        file = job.folder / RESULT
        if not file.is_file():
            row = next((row for row in known if all(row[key] == value for key, value in job.about.items())), None)
            if row is None:
                if left == 0 or (only is not None and job.about["job"] not in only):
                    continue
                left = None if left is None else left - 1
                row = {**job.about, **job.run(), "ran": _ran()}
                shown = {key: value for key, value in row.items() if isinstance(value, int | float | str)}
                print(job.folder.name, json.dumps(shown), flush=True)
            job.folder.mkdir(parents=True, exist_ok=True)
            with replace_file(file) as out:
                out.write(json.dumps(row, indent=1, allow_nan=False).encode() + b"\n")
        rows.append(json.loads(file.read_text(encoding="utf-8")))
    return rows


def _ran() -> dict[str, Any]:
    """When, where and by what code a job ended: the stage's own record is of its last session."""
    record = run_record(command="job", seed=None, threads=torch.get_num_threads(), data=None)
    cpu = record["machine"]["cpu"]
    return {"time_utc": record["time_utc"], "source": record["source"], "threads": record["threads"], "cpu": cpu}
