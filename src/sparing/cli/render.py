"""What people see: progress with the time left, and tables. Machines read JSON instead."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from sparing.runs.progress import Progress

# Not at run time: the other systems' commands work where the compiled core of this one does not load.
if TYPE_CHECKING:
    from sparing.hybrid.evaluate import EvaluationReport
    from sparing.hybrid.text import TextIndexInfo
    from sparing.hybrid.text_search import Hit

__all__ = [
    "print_evaluation",
    "print_hits",
    "print_info",
    "print_json",
    "print_line",
    "print_pairs",
    "progress_bars",
    "to_json",
]

_MEGABYTE = 1e6
_MILLI = 1e3
_TEXT_LIMIT = 240


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """Shows bars on standard error, if that is a terminal.

    Yields:
        A callback for library code; it also lets Ctrl-C through while compiled code runs.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _stage, _done, _total: None
        return
    tasks: dict[str, TaskID] = {}
    with RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    ) as bars:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def to_json(value: Any) -> Any:
    """Turns results into JSON values: dataclasses and pydantic models into objects, tuples into arrays."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def print_json(value: Any) -> None:
    """Writes a result to standard output as one line of JSON."""
    sys.stdout.write(json.dumps(to_json(value), allow_nan=False) + "\n")


def print_line(line: str) -> None:
    """Writes a line to standard output."""
    sys.stdout.write(f"{line}\n")


def print_hits(hits: "Sequence[Hit]") -> None:
    """Shows the answers to a question."""
    table = Table(show_lines=True)
    for name, justify in (("", "right"), ("score", "right"), ("dense", "right"), ("sparse", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("key")
    table.add_column("text")
    for rank, hit in enumerate(hits, 1):
        text = " ".join(hit.text.split())
        numbers = (f"{hit.score:.4f}", *("" if x is None else f"{x:.4f}" for x in (hit.dense_score, hit.sparse_score)))
        # Text objects: brackets in a document are not markup.
        table.add_row(str(rank), *numbers, Text(hit.key), Text(text[:_TEXT_LIMIT] + "..." * (len(text) > _TEXT_LIMIT)))
    if hits:
        Console().print(table)
    else:
        print_line("no answers")


def print_info(path: str, info: "TextIndexInfo") -> None:
    """Shows what an index is made of."""
    bytes_, scale = sum(info.file_bytes.values()), info.alignment
    rows = {
        "folder": f"{path} ({info.generation})",
        "documents": f"{info.num_documents:,}",
        "deleted, until compact": f"{info.index.num_deleted:,}",
        "dense": "none"
        if info.dense is None
        else f"{info.index.dim} dimensions in {info.dense.precision} from {info.dense.model}",
        "sparse": "none" if info.sparse is None else getattr(info.sparse, "model", "BM25"),
        "alignment": f"scale {scale.scale:.5g} ({scale.statistic}, {scale.num_pairs:,} pairs)",
        "filters": ", ".join(info.fields) or "none",
        "on the disk": f"{bytes_ / _MEGABYTE:.1f} MB ({bytes_ / max(info.num_documents, 1):,.0f} bytes a document)",
        **{f"  {name}": f"{size / _MEGABYTE:.2f} MB" for name, size in info.file_bytes.items()},
    }
    print_pairs(rows)


def print_evaluation(report: "EvaluationReport") -> None:
    """Shows quality and speed."""

    def share(value: float | None) -> str:
        return "no judgements" if value is None else f"{value:.4f}"

    def times(name: str) -> str:
        latency = getattr(report, name)
        p50, p95, p99 = (x * _MILLI for x in (latency.p50, latency.p95, latency.p99))
        return f"{p50:.3f} / {p95:.3f} / {p99:.3f} ms ({1 / latency.mean:,.0f} a second)"

    print_pairs(
        {
            "questions (judged)": f"{report.num_queries:,} ({report.num_judged:,})",
            "weights, k, beam": f"{report.weights[0]:g}, {report.weights[1]:g}; {report.k}; {report.beam}",
            "nDCG@10": share(report.ndcg_at_10),
            f"recall@{report.k}": share(report.recall_at_k),
            "found of the exact top k": share(report.recall_of_exact),
            "search, p50 / p95 / p99": times("search_s"),
            "encoding, p50 / p95 / p99": times("encode_s"),
        }
    )


def print_pairs(rows: dict[str, str]) -> None:
    """Shows names and values, one pair a line."""
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, Text(value, overflow="fold"))
    Console().print(table)
