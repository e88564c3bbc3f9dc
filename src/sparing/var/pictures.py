"""Pictures of what was measured: redundancy, deployment, sensitivity, fronts. Needs matplotlib (extra ``plot``)."""

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError, MissingExtraError
from sparing.runs.atomic import replace_file
from sparing.var.deployment import TechniqueEstimate
from sparing.var.redundancy import RedundancyReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_bars", "draw_deployment", "draw_front", "draw_redundancy", "save_figure"]

_DPI = 110


def _figure(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, npt.NDArray[Any]]":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="plot", purpose="the picture") from error
    figure = Figure(figsize=size, layout="constrained")
    return figure, np.atleast_2d(figure.subplots(rows, columns))


def save_figure(path: str | os.PathLike[str], figure: "Figure") -> None:
    """Writes a figure as PNG or SVG, by the path's ending (none: PNG), replacing the file as a whole.

    The same figure gives the same bytes.

    Raises:
        ArgumentError: another ending.
        OSError: the file cannot be written; an older one is unchanged.
    """
    from matplotlib import rc_context

    kind = Path(path).suffix.removeprefix(".").lower() or "png"
    if kind not in ("png", "svg"):
        raise ArgumentError(f"path: expected the ending .png or .svg, got {Path(path).name!r}")
    buffer = BytesIO()
    # An SVG names its parts by numbers from this word, or else at random.
    with rc_context({"svg.hashsalt": "sparing"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    with replace_file(path) as file:
        file.write(buffer.getvalue())


def _heat(axes: "Axes", values: npt.NDArray[Any], *, title: str, x: str, y: str, low: float, high: float) -> None:
    image = axes.imshow(values, aspect="auto", vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
    axes.set(title=title, xlabel=x, ylabel=y, xticks=range(values.shape[1]), yticks=range(values.shape[0]))
    axes.figure.colorbar(image, ax=axes, shrink=0.85)


def draw_redundancy(report: RedundancyReport) -> "Figure":
    """Draws the three observations.

    Args:
        report: from :func:`~sparing.var.redundancy.measure_redundancy`.

    Returns:
        A figure: locality by layer and scale, attention by segment, likeness across guidance, and the inputs of the
        four kinds of linear layers.
    """
    figure, axes = _figure(2, 4, (17, 7.5))
    with np.errstate(invalid="ignore"):
        own = np.stack([report.locality[:, :, s, s].mean(1) for s in range(report.locality.shape[2])], 1)
        mass = report.segment_mass.mean((0, 1))
    _heat(axes[0, 0], own, title="attention within a row of its own place", x="scale", y="layer", low=0, high=1)
    _heat(axes[0, 1], mass, title="attention by segment, all layers", x="segment (key scale)", y="scale", low=0, high=1)
    similarity = report.guidance_similarity
    low = min(0.0, float(similarity.min()))
    _heat(axes[0, 2], similarity, title="cosine with / without class", x="scale", y="layer", low=low, high=1)
    _heat(axes[0, 3], report.guidance_error, title="relative difference", x="scale", y="layer", low=0, high=1)
    for place, summary in zip(axes[1], report.activations, strict=True):
        counts, edges = summary.histogram
        place.stairs(np.maximum(counts, 0.5), edges, fill=True, color="tab:blue")
        place.set_yscale("log")
        place.set(
            title=f"input of {summary.kind}: skewness {summary.skewness:.1f}, range used {summary.used_range:.0%}",
            xlabel="value",
            ylabel="count",
        )
    figure.suptitle(f"Redundancy, measured on {report.num_images} images")
    return figure


def draw_deployment(
    rows: Sequence[TechniqueEstimate], *, device: str, measured_s: Mapping[str, float] | None = None
) -> "Figure":
    """Draws what each technique saves, modelled, beside what was measured.

    Args:
        rows: from :func:`~sparing.var.deployment.analyze_deployment`.
        device: its name.
        measured_s: from technique to measured seconds a batch; drawn in another colour.
    """
    figure, axes = _figure(1, 2, (13, 0.6 * len(rows) + 2))
    names, place = [row.technique for row in rows], np.arange(len(rows))
    times = axes[0, 0]
    times.barh(place - 0.2, [row.time_s * 1e3 for row in rows], height=0.38, label="modelled (roofline)")
    known = [(i, measured_s[name] * 1e3) for i, name in enumerate(names) if measured_s and name in measured_s]
    if known:
        times.barh(
            [i + 0.2 for i, _ in known], [t for _, t in known], height=0.38, label="measured", color="tab:orange"
        )
    times.set(yticks=place, yticklabels=names, xlabel="transformer, ms a batch", title=device)
    times.invert_yaxis()
    times.legend()
    memory = axes[0, 1]
    weights = [row.weight_bytes / 1e6 for row in rows]
    memory.barh(place, weights, label="weights")
    memory.barh(place, [row.cache_bytes / 1e6 for row in rows], left=weights, label="keys and values")
    memory.set(yticks=place, yticklabels=[], xlabel="MB (counted)", title="memory")
    memory.invert_yaxis()
    memory.legend()
    return figure


def draw_bars(values: Mapping[str, float], *, x: str, title: str) -> "Figure":
    """Draws one number for each name.

    Args:
        values: from a name to its number, drawn from the top.
        x: name of the numbers, with their unit.
        title: of the figure.
    """
    figure, axes = _figure(1, 1, (7.5, 0.45 * len(values) + 1.4))
    place = axes[0, 0]
    place.barh(list(values), list(values.values()))
    place.invert_yaxis()
    place.set(xlabel=x, title=title)
    place.grid(axis="x", alpha=0.3)
    return figure


def draw_front(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, title: str, log_y: bool = False
) -> "Figure":
    """Draws quality against cost.

    Args:
        series: from a name to its (x, y) points.
        x: name of the horizontal axis, with its unit.
        y: name of the vertical axis.
        title: of the figure.
        log_y: logarithmic vertical axis.
    """
    figure, axes = _figure(1, 1, (7.5, 5))
    place = axes[0, 0]
    for (name, points), marker in zip(series.items(), "osD^vPX*" * len(series), strict=False):
        ordered = sorted(points)
        place.plot([p[0] for p in ordered], [p[1] for p in ordered], marker=marker, label=name, linewidth=1.3)
    place.set(xlabel=x, ylabel=y, title=title)
    if log_y:
        place.set_yscale("log")
    place.grid(alpha=0.3)
    if series:
        place.legend()
    return figure
