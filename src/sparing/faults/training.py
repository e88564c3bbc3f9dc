"""Training that has met the faults it must bear: each step adds the gradients under a draw of them.

====================  ==========================================
paper's symbol        name
====================  ==========================================
α_l                   ``share``
L = (1 − α_l)·CE(x) + α_l·CE(x under faults)  one step's loss
====================  ==========================================

Sources: X. Ning et al., *FTT-NAS*, arXiv 2003.10375, 2020, section 5 (the loss); D. Stutz et al., *Bit Error Robustness
for Energy-Efficient DNN Accelerators*, 2021 (weight clipping, random bit errors).
"""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, DtypeError
from sparing.faults.injection import inject
from sparing.faults.models import FaultModel, check_fault
from sparing.faults.sampling import check_seed
from sparing.faults.sites import fault_sites, name_patterns, stored_weight

__all__ = ["FaultTolerantStep", "WeightClippingStep", "clip_weights_"]


class _Step(Protocol):
    """What both this room's steps are and may wrap; a trainer asks for no more."""

    def describe(self) -> dict[str, Any]:
        """Settings as JSON can hold them."""

    def __call__(self, loss_of: Callable[[], Tensor], model: nn.Module, step: int) -> Tensor:
        """Adds up gradients and returns the loss, detached."""


class FaultTolerantStep:
    """One step of fault-tolerant training: gradients without faults and under one draw of them, added up.

    Made for ``train_classifier_(…, step=…)`` of :mod:`sparing.vision`, and for any loop of one's own. About twice the
    time of a plain step where 0 < `share` < 1.

    Args:
        fault: what to draw at each step; weights once a step, features at its forward pass.
        share: α_l, the part of the loss under faults, 0 to 1. At 1 there is no pass without faults, and a fixed-point
            model's ranges follow the features under faults, each layer's before they are hit themselves.
        seed: 0 or more; step k takes draw k.
        include: names or patterns of sites, as of :func:`~sparing.faults.inject`.
        exclude: the same, left out.

    Raises:
        ArgumentError: a share outside 0 to 1, a seed out of range, or one text instead of names.
        DtypeError: no fault model, or a seed that is no integer.

    Example:
        >>> step = FaultTolerantStep(BitBias(p_m=3e-4), share=0.5, seed=0)
        >>> step.describe()["share"]
        0.5
    """

    def __init__(
        self,
        fault: FaultModel,
        *,
        share: float = 0.5,
        seed: int = 0,
        include: tuple[str, ...] | None = None,
        exclude: tuple[str, ...] | None = None,
    ) -> None:
        check_fault(fault)
        check_seed("seed", seed)
        if not 0 <= share <= 1:
            raise ArgumentError(f"share: expected 0 to 1, got {share}")
        self.fault, self.share, self.seed = fault, share, seed
        self.include, self.exclude = name_patterns(include, "include"), name_patterns(exclude, "exclude")

    def describe(self) -> dict[str, Any]:
        """Settings as JSON can hold them; a checkpoint goes on with equal ones only."""
        return {
            "name": "fault-tolerant",
            "fault": self.fault.model_dump(mode="json"),
            "share": self.share,
            "seed": self.seed,
            "include": None if self.include is None else list(self.include),
            "exclude": None if self.exclude is None else list(self.exclude),
        }

    def __call__(self, loss_of: Callable[[], Tensor], model: nn.Module, step: int) -> Tensor:
        """Adds up gradients in the model's parameters.

        Args:
            loss_of: passes the step's images through the model and returns their mean loss.
            model: what is trained.
            step: counted from 0.

        Returns:
            (1 − share)·loss + share·loss under faults, detached.
        """
        total: Tensor | None = None
        if self.share < 1:
            loss = (1 - self.share) * loss_of()
            loss.backward()
            total = loss.detach()
        if self.share > 0:
            # The backward pass too: it multiplies by the weights as the forward pass saw them.
            with inject(
                model,
                self.fault,
                seed=self.seed,
                draw=step,
                include=self.include,
                exclude=self.exclude,
                hold_ranges=total is not None,
            ):
                loss = self.share * loss_of()
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        if total is None:
            raise AssertionError("unreachable: share is below 1 or above 0")
        return total


class WeightClippingStep:
    """Keeps weights of all sites within ± a limit, around another step: what RandBET does.

    A small range makes each upset small. With ``FaultTolerantStep(BitFlip(p=…, where="weights"))`` inside, this is
    random-bit-error training. A loop of one's own calls :meth:`after_update_` behind ``optimizer.step()``, as
    ``train_classifier_`` does: a weight that the last update left a hair beyond a power of two doubles the step of its
    number format.

    Args:
        limit: the largest weight allowed, above 0 and finite.
        step: what gives the gradients; None: the loss.

    Raises:
        ArgumentError: a limit that is not above 0, or infinite.
    """

    def __init__(self, limit: float, *, step: _Step | None = None) -> None:
        _check_limit(limit)
        self.limit, self.step = limit, step

    def describe(self) -> dict[str, Any]:
        """Settings as JSON can hold them; a checkpoint goes on with equal ones only."""
        return {
            "name": "weight-clipping",
            "limit": self.limit,
            "step": None if self.step is None else self.step.describe(),
        }

    def __call__(self, loss_of: Callable[[], Tensor], model: nn.Module, step: int) -> Tensor:
        """Clips what the model begins with, then adds up gradients; see :meth:`FaultTolerantStep.__call__`."""
        clip_weights_(model, self.limit)
        if self.step is not None:
            return self.step(loss_of, model, step)
        loss = loss_of()
        loss.backward()
        return loss.detach()

    def after_update_(self, model: nn.Module) -> None:
        """Clips what an update of the weights has left, after what the other step does then."""
        after_update_ = getattr(self.step, "after_update_", None)
        if after_update_ is not None:
            after_update_(model)
        clip_weights_(model, self.limit)


def _check_limit(limit: object) -> None:
    if not isinstance(limit, Real):
        raise DtypeError(f"limit: expected a number, got {type(limit).__name__}")
    if not 0 < float(limit) < math.inf:
        raise ArgumentError(f"limit: expected a finite number above 0, got {limit}")


@torch.no_grad()
def clip_weights_(model: nn.Module, limit: float) -> None:
    """Brings the stored weights of all sites into ± `limit`.

    Raises:
        ArgumentError: a limit that is not above 0, or infinite.
    """
    _check_limit(limit)
    for site in fault_sites(model):
        weight = stored_weight(model.get_submodule(site.name))
        if weight.is_floating_point():
            weight.clamp_(-limit, limit)
