"""The frame of the demo's page: one self-contained file with a section for each system, and what they share."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_suffix(".css")
_SHOWN = {"numpy", "python", "scipy", "sparing", "torch", "sentence-transformers", "bm25s"}


@dataclass(frozen=True)
class Section:
    """What the page says about one system."""

    title: str
    html: str


def text(value: str) -> str:
    """Makes text safe to stand in the page."""
    return html.escape(value)


def data_url(kind: str, data: bytes) -> str:
    """A picture as an address that holds it: the page stays one file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def cards(numbers: Mapping[str, str]) -> str:
    """Shows numbers large; from what each is to the number."""
    shown = "".join(f"<div class='card'><b>{text(b)}</b><span>{text(t)}</span></div>" for t, b in numbers.items())
    return f"<div class='cards'>{shown}</div>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A figure with a table of texts."""
    lines = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<figure><table><tr>{''.join(f'<th>{text(name)}</th>' for name in head)}</tr>{lines}</table></figure>"


def write_page(path: Path, sections: Sequence[Section], record: Mapping[str, Any]) -> None:
    """Writes the page.

    Args:
        path: the file.
        sections: of the systems.
        record: what ran where.
    """
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()) if name in _SHOWN)
    links = " · ".join(f"<a href='#part{i}'>{text(part.title)}</a>" for i, part in enumerate(sections))
    parts = "".join(
        f"<section id='part{i}'><h1>{text(part.title)}</h1>{part.html}</section>" for i, part in enumerate(sections)
    )
    path.write_text(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>sparing: demo</title><style>{STYLE.read_text(encoding="utf-8")}</style></head><body><main>
{f"<nav>{links}</nav>" if len(sections) > 1 else ""}{parts}
<footer>{text(" · ".join([*_machine(record), versions]))}</footer>
</main></body></html>
""",
        encoding="utf-8",
    )


def _machine(record: Mapping[str, Any]) -> list[str]:
    machine = record["machine"]
    facts = f"{machine['cpu']}, {machine['usable_cores']} cores, load {machine['load_1min']} at the end", machine["os"]
    return [*facts, f"seed {record['seed']}", record["time_utc"], record["command"]]
