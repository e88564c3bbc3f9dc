"""Pictures of a hardware report: where time, energy and area go. Needs matplotlib (extra ``plot``)."""

import os
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from sparing.errors import ArgumentError, MissingExtraError
from sparing.pim.report import HardwareReport
from sparing.runs.atomic import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_picture", "draw_designs", "draw_report", "save_designs_figure", "save_report_figure"]

_DPI = 110
_PANELS = (
    ("latency layer by layer, ms", "latency_by_component_s", 1e3),
    ("energy, mJ", "energy_by_component_j", 1e3),
    ("area, mm²", "area_by_component_m2", 1e6),
)


def draw_report(report: HardwareReport, *, title: str = "") -> "Figure":
    """Draws the design beside the dense network by component, and the steps' time and energy in their order.

    Args:
        report: what to draw.
        title: above it.

    Raises:
        MissingExtraError: no matplotlib.
    """
    figure = _figure((13, 8))
    axes = figure.subplots(2, 3)
    for place, (label, name, scale) in zip(axes[0], _PANELS, strict=True):
        _draw_parts(place, label, {"dense": getattr(report.dense, name), "design": getattr(report.design, name)}, scale)
    grid = axes[1, 0].get_gridspec()
    for place in axes[1]:
        place.remove()
    numbers = range(len(report.steps))
    steps = figure.add_subplot(grid[1, :])
    time = steps.bar(
        [n - 0.2 for n in numbers], [s.serial_s * 1e3 for s in report.steps], 0.4, color="C0", label="time, ms"
    )
    steps.set(ylabel="time of all pixels, ms", xlim=(-1, len(report.steps)))
    steps.set_xticks(list(numbers), [step.name for step in report.steps], rotation=90, fontsize=6)
    energy = steps.twinx()
    values = [sum(step.energy_j.values()) * 1e6 for step in report.steps]
    joules = energy.bar([n + 0.2 for n in numbers], values, 0.4, color="C1", label="energy, µJ")
    energy.set_ylabel("energy, µJ")
    steps.legend(handles=[time, joules], loc="upper right", fontsize=7)
    ratio = report.ratio
    figure.suptitle(
        f"{title} on {report.hardware}, modelled: {report.num_crossbars:,} crossbars, {ratio.total:.2f}x fewer = "
        f"{ratio.bits:.2f} (bits) × {ratio.epitome:.2f} (epitome); {report.design.latency_s * 1e3:.2f} ms pipelined"
    )
    return figure


def _draw_parts(axes: "Axes", label: str, parts: Mapping[str, Mapping[str, float]], scale: float) -> None:
    """One bar for each network, its components on top of each other."""
    names = list(dict.fromkeys(n for values in parts.values() for n in values))
    below = [0.0] * len(parts)
    for name in names:
        heights = [values.get(name, 0.0) * scale for values in parts.values()]
        if any(heights):
            axes.bar(list(parts), heights, 0.6, bottom=below, label=name)
            below = [a + b for a, b in zip(below, heights, strict=True)]
    axes.set_title(label)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def save_report_figure(path: str | os.PathLike[str], report: HardwareReport, *, title: str = "") -> None:
    """Draws a report into a PNG file, replacing it as a whole.

    Raises:
        ArgumentError: a path that does not end in .png.
        MissingExtraError: no matplotlib.
        OSError: the file cannot be written; an older one is unchanged.
    """
    _save(path, lambda: draw_report(report, title=title))


def draw_designs(
    front: Sequence[tuple[float, float]], designs: Mapping[str, tuple[float, float]], *, title: str = ""
) -> "Figure":
    """Draws what crossbars buy: the exact front as a line, designs as points.

    Args:
        front: (crossbars, error proxy) by rising crossbars.
        designs: the same of designs, by name.
        title: above it.

    Raises:
        MissingExtraError: no matplotlib.
    """
    figure = _figure((7.5, 4.5))
    axes = figure.add_subplot()
    axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color="C7", label="exact front", linewidth=1)
    for number, (name, (x, y)) in enumerate(designs.items()):
        axes.plot([x], [y], "o", color=f"C{number}", label=name)
    axes.set_xlabel("crossbars")
    axes.set_ylabel("error proxy")
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title)
    return figure


def save_designs_figure(
    path: str | os.PathLike[str],
    front: Sequence[tuple[float, float]],
    designs: Mapping[str, tuple[float, float]],
    *,
    title: str = "",
) -> None:
    """Draws :func:`draw_designs` into a PNG file, replacing it as a whole.

    Raises:
        ArgumentError: a path that does not end in .png.
        MissingExtraError: no matplotlib.
        OSError: the file cannot be written; an older one is unchanged.
    """
    _save(path, lambda: draw_designs(front, designs, title=title))


def _figure(size: tuple[float, float]) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="plot", purpose="the picture") from error
    return Figure(figsize=size, layout="constrained")


def check_picture(path: str | os.PathLike[str], name: str = "path") -> None:
    """Refuses what could not become a picture, before what is drawn is made.

    Raises:
        ArgumentError: a path that does not end in .png.
        MissingExtraError: no matplotlib.
    """
    if Path(path).suffix.lower() != ".png":
        raise ArgumentError(f"{name}: expected the ending .png, got {Path(path).name!r}")
    _figure((1, 1))


def _save(path: str | os.PathLike[str], draw: "Callable[[], Figure]") -> None:
    check_picture(path)
    buffer = BytesIO()
    draw().savefig(buffer, format="png", dpi=_DPI)
    with replace_file(path) as file:
        file.write(buffer.getvalue())
