"""Accuracy against fault rate: paired draws, stopped when the mean is known well enough, and resumed.

Sources: X. Ning et al., *FTT-NAS*, arXiv 2003.10375, 2020 (accuracy under faults); for common random numbers and
sequential stopping any textbook on simulation, for example A. Law, *Simulation Modeling and Analysis*, chapters 9, 11.
"""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from sparing.errors import ArgumentError, DtypeError
from sparing.faults.campaign_counts import FaultPoint
from sparing.faults.campaign_result import CampaignConfig, CampaignResult
from sparing.faults.campaign_runs import Batches, run_points
from sparing.faults.models import FaultModel, FaultSum, check_fault
from sparing.faults.sites import name_patterns
from sparing.runs.progress import Progress

__all__ = ["sweep"]


def sweep(
    model: nn.Module,
    batches: Batches,
    fault: FaultModel,
    rates: Sequence[float],
    *,
    config: CampaignConfig | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    recalibration: Tensor | Iterable[Tensor] | None = None,
    folder: str | os.PathLike[str] | None = None,
    workers: int = 1,
    parallel: Literal["processes", "ray"] = "processes",
    progress: Progress | None = None,
) -> CampaignResult:
    """Measures a network's accuracy under faults of several rates.

    Draw d has the same generators for every rate and network, so that differences between them are known with far fewer
    draws than each alone; see :func:`compare`. After each draw the interval of the mean is computed, and a rate stops
    when it is narrow enough. Where more than half of the draws, or 30, differ from the most common accuracy, it is
    Student's t, which holds a little less often than `config.confidence` says: with skewed draws, few draws (at 10,
    some nine times in ten where it says 95 %), and stopping by what was seen. Faults so rare that most draws are equal
    get an interval that takes nothing for granted, is wide (31 points at 10 draws, 3.6 at 100), and holds at least as
    often as it says. The interval is of the mean over draws for these images: it
    says nothing of other images.

    Args:
        model: maps a batch of images to logits `n × classes`. Where faults are of 8-bit numbers, make it fixed-point
            first (:func:`fixed_point_`). Its weights are changed during each draw and restored bit for bit; it stays
            on its device and in its mode, and is measured in evaluation mode.
        batches: images as the model takes them, and their classes of 0 or more: a list, or a DataLoader, which is read
            once and kept in memory. Faults of features are drawn batch by batch: other batches are other faults.
        fault: the model of faults; its own rate is replaced by `rates`.
        rates: one or more, different, each 0 or more and within what the model of faults takes. 0 is measured once,
            without draws.
        config: how much is drawn; None: the defaults.
        include: names or patterns of sites, as of :func:`inject`.
        exclude: sites left out.
        recalibration: images, one batch or several, on which batch normalizations are measured anew under each draw's
            faults before it is measured, as can be done on a chip (:func:`recalibrate_norms_`); not those of `batches`.
            What is without faults stays as it was given. For faults that last. None: normalizations stay.
        folder: each draw is recorded in it before the next, and a killed campaign goes on from there to the same bytes;
            the same folder may be given again with the same arguments only. None: nothing is kept.
        workers: how many draws at a time, each in a process of its own; the result is the same for any number, as far
            as PyTorch computes the same with its share of the threads. A script that asks for several wants the usual
            ``if __name__ == "__main__":``.
        parallel: where workers are; ``"ray"`` takes the cluster that this process is connected to.
        progress: called as ``("draws", done, total)``; `total` is an estimate until the last rate stops.

    Returns:
        One point a rate, in the order of `rates`.

    Raises:
        ArgumentError: no or repeated rates, no batch, no worker, an unknown site, a model without sites, one that
            cannot be sent to workers, one without batch normalizations to recalibrate, or recalibration under faults
            that are drawn anew.
        ConfigError: a rate out of the fault model's range, or a folder with another campaign (each difference is
            named).
        ShapeError, DtypeError: batches that are not images and classes, or a model that gives no logits for them; they
            and NonFiniteError also for images of `recalibration` that are no batch of 2 or more.
        BusyError: another process is at work in the folder.
        FormatError: the folder holds something else, or was altered.
        MissingExtraError: Ray is not installed.

    Example:
        >>> result = sweep(model, batches, StuckAt(form="bit"), [0, 0.04, 0.08], folder="runs/a")  # doctest: +SKIP
        >>> [(point.rate, point.mean, point.low, point.high) for point in result.points]  # doctest: +SKIP
    """
    check_fault(fault)
    points = [
        FaultPoint(
            label=f"{rate:.12g}",
            rate=rate,
            fault=fault.with_rate(rate) if rate or isinstance(fault, FaultSum) else None,
            include=name_patterns(include, "include"),
            exclude=name_patterns(exclude, "exclude"),
        )
        for rate in _checked(rates)
    ]
    return run_points(
        model,
        batches,
        points,
        kind="rates",
        fault=_without_rate(fault),
        config=config or CampaignConfig(),
        recalibration=recalibration,
        folder=folder,
        workers=workers,
        parallel=parallel,
        progress=progress,
    )


def _without_rate(fault: FaultModel) -> dict[str, Any]:
    """The fault model as JSON, without what the sweep replaces."""
    described = fault.model_dump(mode="json")
    first = described["faults"][0] if isinstance(fault, FaultSum) else described
    del first[fault.rate_name]
    return described


def _checked(rates: Sequence[float]) -> list[float]:
    try:
        values = [float(rate) for rate in rates]
    except (TypeError, ValueError) as error:
        raise DtypeError(f"rates: expected several numbers: {error}") from None
    if not values:
        raise ArgumentError("rates: expected one or more, got none")
    bad = [rate for rate in values if not math.isfinite(rate) or rate < 0]
    if bad:
        raise ArgumentError(f"rates: expected finite numbers of 0 or more, got {bad[0]}")
    if len({f"{rate:.12g}" for rate in values}) < len(values):
        raise ArgumentError(f"rates: expected different ones, got {values}")
    return values
