"""The front of `sparing var calibrate --front`: all plans worth having, as JSON and as a picture."""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.errors import ArgumentError, MissingExtraError
from sparing.runs.atomic import replace_file
from sparing.runs.progress import Progress

if TYPE_CHECKING:
    import torch

    from sparing.var import FrontPoint, PrecisionPlan, Sensitivity, VARPipeline

__all__ = ["check_front", "write_front"]

_SUFFIXES = (".json", ".png")
_NUM_MEASURED = 8


def check_front(path: str) -> None:
    """Refuses what would fail only after long work.

    Raises:
        ArgumentError: another ending.
        MissingExtraError: matplotlib is not installed.
    """
    if Path(path).suffix not in _SUFFIXES:
        raise ArgumentError(f"--front: expected a name that ends in {' or '.join(_SUFFIXES)}, got {path!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", extra="plot", purpose="--front")


def write_front(
    path: str,
    pipe: "VARPipeline",
    sensitivity: "Sensitivity",
    *,
    data: "tuple[torch.Tensor, torch.Tensor] | None",
    precision: "PrecisionPlan | None",
    progress: Progress,
) -> list[str]:
    """Writes the whole front beside each other as ``.json`` and ``.png``, measured at about eight of its points.

    Args:
        path: either of the two files.
        pipe: the model.
        sensitivity: what single things cost.
        data: tokens and labels; None draws images as the calibration did.
        precision: numbers of all plans.
        progress: called with ``("calibrating", done, passes)``.

    Returns:
        The names of the files.
    """
    from sparing.var import plan_front
    from sparing.var.divergence import calibration_images, divergence
    from sparing.var.pictures import draw_front, save_figure

    config = sensitivity.config
    front = plan_front(sensitivity, precision=precision)
    tokens, labels = calibration_images(pipe, config) if data is None else data
    places = _spread(len(front), _NUM_MEASURED)
    found = divergence(pipe, [front[i].plan for i in places], tokens, labels, config=config, progress=progress)
    measured = dict(zip(places, map(float, found), strict=True))
    rows = [_row(point, measured.get(i)) for i, point in enumerate(front)]
    table, picture = (str(Path(path).with_suffix(suffix)) for suffix in _SUFFIXES)
    with replace_file(table) as file:
        file.write(json.dumps({"points": rows}, indent=1, allow_nan=False).encode() + b"\n")
    figure = draw_front(
        {
            "predicted: sum of single divergences": [(100 * r["removed"], r["predicted"]) for r in rows],
            "measured": [(100 * rows[i]["removed"], value) for i, value in measured.items()],
        },
        x="attention computation removed, % (counted)",
        y="divergence, nats a token",
        title="What can be left out",
    )
    save_figure(picture, figure)
    return [table, picture]


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` places from first to last, evenly."""
    wanted = min(count, wanted)
    return sorted({round(i * (count - 1) / max(wanted - 1, 1)) for i in range(wanted)})


def _row(point: "FrontPoint", measured: float | None) -> dict[str, Any]:
    return {
        "removed": point.removed,
        "macs_removed": point.macs_removed,
        "predicted": point.predicted,
        "divergence": measured,
    }
