"""Pictures of genotypes: both cells as graphs. Needs matplotlib (extra ``plot``)."""

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from sparing.errors import MissingExtraError
from sparing.faults.pictures import check_picture_path
from sparing.nas.genotype import NUM_INNER, NUM_INPUTS, CellNodes, Genotype
from sparing.runs.atomic import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ENDINGS", "draw_genotype", "save_genotype_figure"]

ENDINGS = (".png", ".svg")
"""Of a genotype's picture."""

_DPI = 130
_COLORS = {"max": "#8c8c8c", "avg": "#8c8c8c", "skip": "#333333", "none": "#cccccc"}
_FAMILIES = {"sep": "#1f77b4", "dil": "#2ca02c", "rcb": "#d62728", "conv": "#9467bd"}
_INPUT, _INNER, _OUTPUT = "#cfe8cf", "#dbe7f5", "#f7e3b5"
_STEP, _RISE = 2.6, 1.9


def draw_genotype(genotype: Genotype, *, title: str = "") -> "Figure":
    """Draws the normal cell above the reduction cell, from inputs at the left to the output at the right.

    An arrow is labelled with its primitive; in the reduction cell arrows from inputs have stride 2.

    Args:
        genotype: what to draw.
        title: above it.

    Raises:
        MissingExtraError: no matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="plot", purpose="the picture") from error
    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = figure.subplots(2, 1)
    for axes, (label, nodes) in zip(
        panels, (("normal cell", genotype.normal), ("reduction cell", genotype.reduce)), strict=True
    ):
        _draw_cell(axes, nodes)
        axes.set_title(label, loc="left", fontsize=12)
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def save_genotype_figure(path: str | os.PathLike[str], genotype: Genotype, *, title: str = "") -> None:
    """Draws a genotype into a PNG or SVG file, replacing it as a whole. The same genotype gives the same bytes.

    Raises:
        ArgumentError, MissingExtraError: as :func:`~sparing.faults.pictures.check_picture_path`.
        OSError: the file cannot be written; an older one is unchanged.
    """
    check_picture_path(path, endings=ENDINGS)
    ending = Path(path).suffix.lower()
    figure = draw_genotype(genotype, title=title)
    import matplotlib as mpl

    buffer = BytesIO()
    with mpl.rc_context({"svg.hashsalt": "sparing"}):
        figure.savefig(buffer, format=ending[1:], dpi=_DPI, metadata={"Date": None} if ending == ".svg" else None)
    with replace_file(path) as file:
        file.write(buffer.getvalue())


def _places() -> list[tuple[float, float]]:
    """Inputs at the left one above the other, inner nodes in a zigzag, the output at the right."""
    heights = (1.0, -1.0, 1.0, -1.0)
    inner = [((node + 1) * _STEP, heights[node] * _RISE) for node in range(NUM_INNER)]
    return [(0.0, 0.55 * _RISE), (0.0, -0.55 * _RISE), *inner, ((NUM_INNER + 1.1) * _STEP, 0.0)]


def _draw_cell(axes: "Axes", nodes: CellNodes) -> None:
    places = _places()
    labels = ["cell before\nthe last", "last cell", *map(str, range(NUM_INPUTS, NUM_INPUTS + NUM_INNER)), "output"]
    for number, ((x, y), label) in enumerate(zip(places, labels, strict=True)):
        color = _INPUT if number < NUM_INPUTS else _INNER if number < NUM_INPUTS + NUM_INNER else _OUTPUT
        text = f"{number}\n{label}" if number < NUM_INPUTS else label
        axes.text(
            x, y, text, ha="center", va="center", fontsize=10 if number < NUM_INPUTS else 13, zorder=4,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "#555555"},
        )  # fmt: skip
    for node, edges in enumerate(nodes, NUM_INPUTS):
        same = edges[0].source == edges[1].source
        for side, edge in enumerate(edges):
            bend = (0.22, -0.22)[side] if same else _bend(edge.source, node)
            _arrow(axes, places[edge.source], places[node], bend, _color(edge.primitive), edge.primitive, solid=True)
        _arrow(axes, places[node], places[-1], 0.0, "#bbbbbb", "", solid=False)
    axes.set_xlim(-1.4, places[-1][0] + 1.2)
    axes.set_ylim(-1.75 * _RISE, 1.75 * _RISE)
    axes.set_aspect("equal")  # bends are measured on the page
    axes.set_axis_off()


def _bend(source: int, node: int) -> float:
    """Arrows that would run through other nodes go around them."""
    if source < NUM_INPUTS:
        return {(0, 4): -0.36, (1, 4): -0.22, (0, 5): 0.22, (1, 5): 0.36}.get((source, node), 0.0)
    return {(2, 4): -0.15, (3, 5): 0.15}.get((source, node), 0.0)


def _color(primitive: str) -> str:
    family = primitive.rstrip("0123456789")
    return _FAMILIES.get(family) or _COLORS[family]


def _arrow(
    axes: "Axes", start: tuple[float, float], end: tuple[float, float], bend: float, color: str, label: str,
    *, solid: bool,
) -> None:  # fmt: skip
    axes.annotate(
        "", xy=end, xytext=start, zorder=2 if solid else 1,
        arrowprops={
            "arrowstyle": "-|>", "color": color, "linewidth": 2.0 if solid else 1.2, "shrinkA": 20, "shrinkB": 17,
            "linestyle": "-" if solid else ":", "connectionstyle": f"arc3,rad={bend}",
        },
    )  # fmt: skip
    if label:
        x, y = _on_curve(start, end, bend, 0.4 if end[0] - start[0] > 1.5 * _STEP else 0.55)
        axes.text(
            x, y, label, ha="center", va="center", fontsize=10, color=color, fontweight="bold", zorder=5,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.92},
        )  # fmt: skip


def _on_curve(start: tuple[float, float], end: tuple[float, float], bend: float, at: float) -> tuple[float, float]:
    """A point of matplotlib's arc3: a quadratic curve whose middle point is moved across by `bend` times the length."""
    (x0, y0), (x1, y1) = start, end
    middle = (x0 + x1) / 2 + bend * (y1 - y0), (y0 + y1) / 2 - bend * (x1 - x0)
    weights = ((1 - at) ** 2, 2 * at * (1 - at), at**2)
    return (
        weights[0] * x0 + weights[1] * middle[0] + weights[2] * x1,
        weights[0] * y0 + weights[1] * middle[1] + weights[2] * y1,
    )
