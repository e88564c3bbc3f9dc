"""Finds a plan: as much left out as a budget in quality allows, or as little as a budget in compute asks for.

Each layer has options (windows of some τ, sharing from some scale on) whose divergences were measured one at a time. A
price on computation makes every layer choose for itself; the plans of all prices are a front. What the plans cost
together is then measured, since single divergences do not add up exactly.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sparing.errors import ArgumentError
from sparing.explore import allocation_front
from sparing.runs.progress import Progress
from sparing.var.cost import layer_attention_macs, layer_pairs, model_cost
from sparing.var.divergence import CalibrationConfig, calibration_images, divergence
from sparing.var.pipeline import VARPipeline
from sparing.var.plan import CompressionPlan, PrecisionPlan, with_options
from sparing.var.sensitivity import Sensitivity, measure_sensitivity

__all__ = ["ComputeBudget", "FrontPoint", "QualityBudget", "calibrate", "plan_front", "uniform_plan"]


@dataclass(frozen=True)
class QualityBudget:
    """At most so much divergence.

    Attributes:
        max_divergence: nats a token, of the guided distributions of the next token.
    """

    max_divergence: float = 0.02


@dataclass(frozen=True)
class ComputeBudget:
    """At least so much removed.

    Attributes:
        min_removed: share of attention computation, 0 to 1.
    """

    min_removed: float = 0.852


@dataclass(frozen=True)
class FrontPoint:
    """A plan on the front.

    Attributes:
        plan: the plan.
        removed: share of attention computation that it removes; counted.
        macs_removed: share of the transformer's multiply-adds that it removes; counted.
        predicted: sum of the single divergences, nats a token.
        divergence: measured, nats a token; None where it was not measured.
    """

    plan: CompressionPlan
    removed: float
    macs_removed: float
    predicted: float
    divergence: float | None = None


def plan_front(sensitivity: Sensitivity, *, precision: PrecisionPlan | None = None) -> list[FrontPoint]:
    """Makes the plans that are worth their divergence, from nothing left out to everything that was tried.

    Args:
        sensitivity: what single things cost.
        precision: numbers, the same in all plans.

    Returns:
        Plans by growing share of attention computation removed.
    """
    model, config = sensitivity.model, sensitivity.config
    plain = CompressionPlan(model=model, weights=sensitivity.weights, precision=precision)
    options = [_layer_options(sensitivity, layer) for layer in range(model.depth)]
    errors, macs = [[o[2] for o in layer] for layer in options], [[o[3] for o in layer] for layer in options]
    dense = model_cost(model).macs
    # First the model as it is, even where leaving something out costs nothing.
    choices = [(0,) * model.depth, *(found.choices for found in allocation_front(errors, macs))]
    points = []
    for picks in dict.fromkeys(choices):
        chosen = {layer: options[layer][pick] for layer, pick in enumerate(picks)}
        plan = with_options(
            plain,
            windows=sensitivity.windows,
            tau_of={layer: o[0] for layer, o in chosen.items() if o[0] is not None},
            variant=config.sharing or "output",
            first_of={layer: o[1] for layer, o in chosen.items() if o[1] is not None},
        )
        cost, predicted = model_cost(model, plan), sum(o[2] for o in chosen.values())
        points.append(FrontPoint(plan, cost.attention.removed, 1 - cost.macs / dense, predicted))
    return points


def _layer_options(sensitivity: Sensitivity, layer: int) -> list[tuple[int | None, int | None, float, int]]:
    """Options of a layer: index of τ, first shared scale, divergence, multiply-adds of attention."""
    model, config = sensitivity.model, sensitivity.config
    plain = CompressionPlan(model=model, weights=sensitivity.weights)
    taus: list[tuple[int | None, float, list[int]]] = [(None, 0.0, layer_pairs(model, None, layer))]
    for i, error in enumerate(sensitivity.window_divergence[layer]):
        plan = with_options(plain, windows=sensitivity.windows, tau_of={layer: i})
        taus.append((i, error, layer_pairs(model, plan, layer)))
    firsts: list[tuple[int | None, float]] = [(None, 0.0), *enumerate(sensitivity.share_divergence[layer])]
    return [
        (
            tau,
            first,
            window_error + share_error,
            layer_attention_macs(model, pairs, first_shared=first, variant=config.sharing or "output"),
        )
        for tau, window_error, pairs in taus
        for first, share_error in firsts
    ]


def uniform_plan(
    sensitivity: Sensitivity, *, tau: float | None, first_shared: int | None, precision: PrecisionPlan | None = None
) -> CompressionPlan:
    """The published form: one τ and one first shared scale for all layers.

    Args:
        sensitivity: holds the windows.
        tau: one of those tried, or None for no windows.
        first_shared: scale, or None for no sharing.
        precision: numbers; None leaves them.

    Raises:
        ArgumentError: a τ that was not tried, or no such scale.
    """
    model, taus = sensitivity.model, sensitivity.config.taus
    if tau is not None and tau not in taus:
        raise ArgumentError(f"tau: expected one of {taus}, got {tau}")
    if first_shared is not None and not 0 <= first_shared < len(model.patch_nums):
        raise ArgumentError(f"first_shared: expected 0 to {len(model.patch_nums) - 1}, or None, got {first_shared}")
    layers = range(model.depth)
    return with_options(
        CompressionPlan(model=model, weights=sensitivity.weights, precision=precision),
        windows=sensitivity.windows,
        tau_of=None if tau is None else dict.fromkeys(layers, taus.index(tau)),
        variant=sensitivity.config.sharing or "output",
        first_of=None if first_shared is None else dict.fromkeys(layers, first_shared),
    )


def calibrate(
    pipe: VARPipeline,
    *,
    budget: QualityBudget | ComputeBudget,
    config: CalibrationConfig | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    precision: PrecisionPlan | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> CompressionPlan:
    """Finds the plan that a budget allows.

    Args:
        pipe: the model; it is not changed.
        budget: in quality or in computation.
        config: what to try; None for the defaults.
        data: tokens (n, L) int64 and labels (n,) of real images; None draws images with the model itself.
        precision: numbers of the plan; their divergence counts against the budget.
        cache: a file that keeps what was measured, for the next budget.
        progress: called with ``("calibrating", done, passes)``.

    Returns:
        The plan, with what was predicted and measured in its notes.

    Raises:
        ArgumentError: a budget out of range, or one that nothing meets.
        ShapeError, DtypeError, ArgumentError: data that does not fit the model.
        FormatError: the cache is another file, or an altered one.
    """
    _check_budget(budget)
    config = config or CalibrationConfig()
    sensitivity = measure_sensitivity(pipe, config=config, data=data, cache=cache, progress=progress)
    front = plan_front(sensitivity, precision=precision)
    tokens, labels = calibration_images(pipe, config) if data is None else data

    def measured(i: int) -> float:
        found = divergence(pipe, [front[i].plan], tokens, labels, config=config)
        return float(found[0])

    if isinstance(budget, ComputeBudget):
        meets = [i for i, point in enumerate(front) if point.removed >= budget.min_removed]
        if not meets:
            raise ArgumentError(
                f"budget: at most {front[-1].removed:.1%} of attention can be removed with these options, "
                f"{budget.min_removed:.1%} was asked for; try lower taus"
            )
        pick = min(meets, key=lambda i: front[i].predicted)
        error = measured(pick)
    else:
        pick, error = _last_within(front, measured, budget.max_divergence)
    return front[pick].plan.model_copy(update={"notes": _notes(front[pick], error, budget, config, len(tokens))})


def _last_within(front: Sequence[FrontPoint], measured: Any, limit: float) -> tuple[int, float]:
    """The most that can be left out: halving, since divergence grows along the front."""
    low, high = 0, len(front) - 1
    error = measured(0)
    if error > limit:
        raise ArgumentError(
            f"budget: even without windows and sharing the divergence is {error:.4g}, more than {limit:.4g}; "
            "take more bits or a larger budget"
        )
    while low < high:
        middle = (low + high + 1) // 2
        found = measured(middle)
        if found <= limit:
            low, error = middle, found
        else:
            high = middle - 1
    return low, error


def _check_budget(budget: QualityBudget | ComputeBudget) -> None:
    if isinstance(budget, ComputeBudget):
        if not 0 <= budget.min_removed <= 1:
            raise ArgumentError(f"min_removed: expected 0 to 1, got {budget.min_removed}")
    elif not (np.isfinite(budget.max_divergence) and budget.max_divergence >= 0):
        raise ArgumentError(f"max_divergence: expected a finite number, at least 0, got {budget.max_divergence}")


def _notes(
    point: FrontPoint, error: float, budget: QualityBudget | ComputeBudget, config: CalibrationConfig, images: int
) -> dict[str, Any]:
    kind: Literal["quality", "compute"] = "compute" if isinstance(budget, ComputeBudget) else "quality"
    return {
        "budget": {kind: budget.min_removed if isinstance(budget, ComputeBudget) else budget.max_divergence},
        "attention_removed": round(point.removed, 6),
        "macs_removed": round(point.macs_removed, 6),
        "divergence_predicted": point.predicted,
        "divergence_measured": error,
        "calibration_images": images,
        "guidance_scale": config.guidance_scale,
        "torch": torch.__version__.partition("+")[0],
    }
