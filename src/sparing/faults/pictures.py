"""Pictures of campaigns: accuracy against fault rate, and where faults hurt. Needs matplotlib (extra ``plot``)."""

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from sparing.errors import ArgumentError, MissingExtraError
from sparing.faults.campaign_result import CampaignResult
from sparing.runs.atomic import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_picture_path", "draw_sweeps", "draw_vulnerability", "save_sweeps_figure", "save_vulnerability_figure"]

_DPI = 110
_PERCENT = 100
_SPREAD = 30  # rates further apart than this factor are drawn on a logarithmic axis
_MARKERS = "osD^vPX*"


def draw_sweeps(results: Mapping[str, CampaignResult], *, title: str = "") -> "Figure":
    """Draws accuracy and changed predictions against the rate: means as lines, their intervals as bands.

    The dotted line under each mean is the accuracy that 5 % of the draws fall below.

    Args:
        results: of :func:`sweep`, by the networks' names.
        title: above it.

    Raises:
        ArgumentError: none, or a result that is not of a sweep.
        MissingExtraError: no matplotlib.
    """
    if not results or any(result.kind != "rates" for result in results.values()):
        raise ArgumentError("results: expected one or more of sweeps over rates")
    figure = _figure((11, 4.4))
    accuracy, changed = figure.subplots(1, 2)
    rates = [point.rate for result in results.values() for point in result.points if point.rate > 0]
    for number, (name, result) in enumerate(results.items()):
        _draw_sweep(accuracy, changed, name, result, number)
    for axes, label in ((accuracy, "accuracy, %"), (changed, "predictions changed (SDC), %")):
        axes.set_xlabel(_rate_label(next(iter(results.values()))))
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        if rates and max(rates) > _SPREAD * min(rates):
            # Linear below the smallest rate, so that no faults at all have their place at 0.
            axes.set_xscale("symlog", linthresh=min(rates), linscale=0.5)
            axes.set_xlim(left=0)
    accuracy.legend(fontsize=8)
    figure.suptitle(title or _caption(next(iter(results.values()))), fontsize=10)
    return figure


def _draw_sweep(accuracy: "Axes", changed: "Axes", name: str, result: CampaignResult, number: int) -> None:
    points = sorted(result.points, key=lambda point: point.rate)
    x, color, marker = [point.rate for point in points], f"C{number % 10}", _MARKERS[number % len(_MARKERS)]

    def draw(axes: "Axes", mean: list[float], low: list[float], high: list[float]) -> None:
        axes.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0)
        axes.plot(x, mean, marker=marker, markersize=4, color=color, label=name, linewidth=1.3)

    draw(
        accuracy,
        [_PERCENT * point.mean for point in points],
        [_PERCENT * point.low for point in points],
        [_PERCENT * point.high for point in points],
    )
    quantiles, label = (
        [_PERCENT * point.quantile_05 for point in points],
        "5 % of draws are below" if not number else None,
    )
    accuracy.plot(x, quantiles, ":", color=color, linewidth=1, label=label)
    draw(
        changed,
        [_PERCENT * point.sdc for point in points],
        [_PERCENT * point.sdc_low for point in points],
        [_PERCENT * point.sdc_high for point in points],
    )


def draw_vulnerability(result: CampaignResult, *, title: str = "") -> "Figure":
    """Draws how much accuracy is lost when one site, or one bit, is hit: a bar each, with the mean's interval.

    Args:
        result: of :func:`layer_vulnerability` or :func:`bit_vulnerability`.
        title: above it.

    Raises:
        ArgumentError: the result of a sweep.
        MissingExtraError: no matplotlib.
    """
    if result.kind == "rates":
        raise ArgumentError("result: expected one of sites or bits, got a sweep: use draw_sweeps")
    points = result.points
    height = max(2.4, 0.24 * len(points) + 1.3)
    figure = _figure((9.5, height))
    lost, changed = figure.subplots(1, 2, sharey=True)
    place = range(len(points))
    clean = result.clean_accuracy
    for axes, label, values, ends in (
        (
            lost,
            "accuracy lost, points",
            [clean - point.mean for point in points],
            [(clean - point.high, clean - point.low) for point in points],
        ),
        (
            changed,
            "predictions changed (SDC), %",
            [point.sdc for point in points],
            [(point.sdc_low, point.sdc_high) for point in points],
        ),
    ):
        errors = [
            [_PERCENT * max(value - low, 0) for value, (low, _) in zip(values, ends, strict=True)],
            [_PERCENT * max(high - value, 0) for value, (_, high) in zip(values, ends, strict=True)],
        ]
        axes.barh(place, [_PERCENT * value for value in values], color="C0", height=0.7)
        axes.errorbar(
            [_PERCENT * value for value in values], place, xerr=errors, fmt="none", color="0.2", capsize=2, linewidth=1
        )
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    lost.set_yticks(list(place), [point.label for point in points], fontsize=8)
    lost.set_ylim(len(points) - 0.4, -0.6)  # the first above
    figure.suptitle(title or _caption(result), fontsize=10)
    return figure


def save_sweeps_figure(path: str | os.PathLike[str], results: Mapping[str, CampaignResult], *, title: str = "") -> None:
    """Draws :func:`draw_sweeps` into a PNG file, replacing it as a whole.

    Raises:
        ArgumentError: a path that does not end in .png, or as :func:`draw_sweeps`.
        MissingExtraError: no matplotlib.
        OSError: the file cannot be written; an older one is unchanged.
    """
    check_picture_path(path)
    _save(path, draw_sweeps(results, title=title))


def save_vulnerability_figure(path: str | os.PathLike[str], result: CampaignResult, *, title: str = "") -> None:
    """Draws :func:`draw_vulnerability` into a PNG file, replacing it as a whole.

    Raises:
        ArgumentError: a path that does not end in .png, or as :func:`draw_vulnerability`.
        MissingExtraError: no matplotlib.
        OSError: the file cannot be written; an older one is unchanged.
    """
    check_picture_path(path)
    _save(path, draw_vulnerability(result, title=title))


def check_picture_path(path: str | os.PathLike[str], *, endings: tuple[str, ...] = (".png",)) -> None:
    """Refuses, before any work is done, what cannot be drawn into.

    Args:
        path: of a picture.
        endings: one of which it has.

    Raises:
        ArgumentError: a path with another ending, or no folder for it.
        MissingExtraError: no matplotlib.
    """
    if Path(path).suffix.lower() not in endings:
        raise ArgumentError(f"path: expected the ending {' or '.join(endings)}, got {Path(path).name!r}")
    if not Path(path).absolute().parent.is_dir():
        raise ArgumentError(f"path: no folder {os.fspath(Path(path).parent)!r} to draw into")
    _figure((1, 1))


def _figure(size: tuple[float, float]) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra="plot", purpose="the picture") from error
    return Figure(figsize=size, layout="constrained")


def _save(path: str | os.PathLike[str], figure: "Figure") -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    with replace_file(path) as file:
        file.write(buffer.getvalue())


def _rate_label(result: CampaignResult) -> str:
    return f"rate of {result.fault.get('kind', 'faults')} faults"


def _caption(result: CampaignResult) -> str:
    settings = ", ".join(
        f"{key} {value}"
        for key, value in result.fault.items()
        if key != "kind" and isinstance(value, str | float | int)
    )
    return (
        f"{result.fault.get('kind', 'faults')}{f' ({settings})' if settings else ''}: {result.num_images:,} images, "
        f"{result.config.confidence:.0%} intervals of the mean over draws"
    )
