"""What the reports share: RESULTS.md from result files, each section with where its figures come from."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparing.errors import FormatError

Section = tuple[list[tuple[str, ...]], list[str]]
"""Rows of the table of claims, and text."""

_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}


def read_results(folder: Path) -> dict[str, Any]:
    """All result files by name, but for those of tiny runs."""
    files = sorted(path for path in folder.glob("*.json") if not path.stem.endswith("-tiny"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in files}


def write_results(
    folder: Path,
    system: str,
    title: str,
    sections: Mapping[str, Callable[[Any], Section]],
    *,
    head: list[str],
    intro: list[str],
) -> dict[str, Any]:
    """Writes RESULTS.md beside the folder: the claims in one table, then each section with its source.

    Args:
        folder: of result files; a missing one leaves its rows out.
        system: the benchmark's folder.
        title: of the page.
        sections: by the result file's name.
        head: of the table of claims.
        intro: lines before it.

    Returns:
        The result files.

    Raises:
        FormatError: there are none.
    """
    files = read_results(folder)
    if not files:
        raise FormatError(f"{folder}: expected result files, found none; run a stage first")
    rows: list[list[str]] = []
    details: list[str] = []
    for name, section in sections.items():
        if name in files:
            new_rows, text = section(files[name]["results"])
            rows += map(list, new_rows)
            details += ["", *text, "", source(name, files[name]["record"])]
    made = f"Made by `python -m benchmarks.{system}.run report` from `results/*.json`; do not edit."
    lines = [f"# {title}", "", made, "", *intro, *([""] if intro else []), *table(head, rows), *details]
    (folder.parent / "RESULTS.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return files


def source(name: str, record: dict[str, Any]) -> str:
    """The file, the command and the machine."""
    machine, commit = record["machine"], (record["source"]["commit"] or "none")[:9]
    return (
        f"[{name}.json](results/{name}.json): `{record['command']}`; {machine['cpu']}, {record['threads']} threads, "
        f"torch {record['versions']['torch']}, commit {commit}. Data: {record['data']['name']}."
    )


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def mean_interval(values: list[float]) -> str:
    """Mean over seeds with Student's interval at 95 %, and the range."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.1f} (one seed)"
    half = _T95.get(len(values) - 1, 2.6) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.1f} ± {half:.1f} over {len(values)} seeds, {min(values):+.1f} to {max(values):+.1f}"
