"""Range clipping, the cheapest way to harden a trained network: a feature beyond any that it ever had is a fault.

Sources: L.-H. Hoang et al., *FT-ClipAct*, 2020 (what lies beyond becomes 0); Z. Chen et al., *A Low-cost Fault
Corrector for Deep Neural Networks through Range Restriction* (Ranger), 2021 (it becomes the bound). Theirs are bounds
of activation functions; here they stand where features are stored, before the activation, and bound both ends.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, NonFiniteError
from sparing.faults.sites import check_model, fault_sites, image_batches
from sparing.runs.modes import evaluating

__all__ = ["RangeClip", "clip_ranges_", "remove_range_clips_"]

_CHILD = "range_clip"


class RangeClip(nn.Module):
    """Bounds of one layer's features; a submodule ``range_clip`` of the module behind which they are.

    State dict: ``low`` and ``high``, float32 numbers.

    Attributes:
        low, high: bounds, in the features' own unit.
        beyond: ``"bound"``: a feature beyond becomes the bound. ``"zero"``: it becomes 0.
        watching: bounds are being found, nothing is clipped.
    """

    low: Tensor
    high: Tensor

    def __init__(self, *, beyond: Literal["bound", "zero"], quantile: float, device: torch.device) -> None:
        super().__init__()
        self.beyond, self.quantile, self.watching = beyond, quantile, True
        self.register_buffer("low", torch.tensor(torch.inf, device=device))
        self.register_buffer("high", torch.tensor(-torch.inf, device=device))

    def extra_repr(self) -> str:
        """What a feature beyond becomes."""
        return f"beyond={self.beyond!r}"

    def forward(self, features: Tensor) -> Tensor:
        """Maps features to features within the bounds, in their shape and dtype; NaN becomes 0."""
        if self.watching:
            low, high = _spread(features.detach(), self.quantile)
            self.low.copy_(torch.minimum(self.low, low))
            self.high.copy_(torch.maximum(self.high, high))
            return features
        low, high = self.low.to(features.dtype), self.high.to(features.dtype)
        if self.beyond == "bound":
            return features.clamp(low, high).nan_to_num(0.0)
        return torch.where((features >= low) & (features <= high), features, torch.zeros_like(features))


def clip_ranges_(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    *,
    beyond: Literal["bound", "zero"] = "bound",
    quantile: float = 1.0,
) -> None:
    """Bounds the features of all convolutions that run by what they are on images without faults.

    Faults of :func:`~sparing.faults.inject` hit first, then features are clipped.

    Args:
        model: changed in place; nothing changes on an error.
        images: one batch n × c × h × w, or several, to find the bounds with; not those to measure on.
        beyond: what a feature beyond becomes: the bound (Ranger), or 0 (FT-ClipAct).
        quantile: share of a batch's features between the bounds, above .5 to 1: below 1 the rarest go too.

    Raises:
        ArgumentError: a quantile out of range, an unknown `beyond`, no images, clipped already, a compiled model, or no
            convolution that runs.
        DtypeError, NonFiniteError, ShapeError: images that are no batch, or NaN or infinity in them or in features.

    Example:
        >>> clip_ranges_(model, images)
    """
    if beyond not in ("bound", "zero"):
        raise ArgumentError(f"beyond: expected 'bound' or 'zero', got {beyond!r}")
    if not 0.5 < quantile <= 1:
        raise ArgumentError(f"quantile: expected above .5 to 1, got {quantile}")
    check_model(model)
    if any(isinstance(module, RangeClip) for module in model.modules()):
        raise ArgumentError("model: its ranges are clipped already; use remove_range_clips_ first")
    batches = image_batches(images, "images")
    sites = fault_sites(model, batches[0])
    places = [site.output for site in sites if site.feature_shape is not None]
    if not places:
        raise ArgumentError("model: expected at least one convolution that runs, got none")
    device = batches[0].device
    try:
        clips = []
        for place in places:
            module = model.get_submodule(place)
            clips.append(RangeClip(beyond=beyond, quantile=quantile, device=device))
            module.add_module(_CHILD, clips[-1])
            module.register_forward_hook(_clip_output)
        with evaluating(model), torch.no_grad():
            for batch in batches:
                model(batch)
        for place, clip in zip(places, clips, strict=True):
            if not bool(torch.isfinite(clip.low) & torch.isfinite(clip.high)):
                raise NonFiniteError(f"features of {place}: expected finite numbers, got NaN, infinity or none")
            clip.watching = False
    except BaseException:
        remove_range_clips_(model)
        raise


def remove_range_clips_(model: nn.Module) -> None:
    """Takes back what :func:`clip_ranges_` did.

    Args:
        model: changed in place; left alone if nothing is clipped.
    """
    for module in list(model.modules()):
        if isinstance(module._modules.get(_CHILD), RangeClip):
            del module._modules[_CHILD]
            for key in [key for key, hook in module._forward_hooks.items() if hook is _clip_output]:
                del module._forward_hooks[key]


def _clip_output(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    clipped: Tensor = cast("RangeClip", module._modules[_CHILD])(output)
    return clipped


# For `inject`: its own hooks run before this one.
_clip_output.after_faults = True  # type: ignore[attr-defined]


def _spread(x: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    flat = x.float().flatten()
    if quantile == 1:
        low, high = torch.aminmax(flat)
        return low, high
    out = max(1, round(len(flat) * (1 - quantile) / 2))
    return flat.kthvalue(out).values, flat.kthvalue(len(flat) + 1 - out).values
