"""The number format: 8 bits, one power-of-two range a tensor; and the modules that round weights and features to it.

=======================  =====================================================================
in papers                here
=======================  =====================================================================
S                        exponent: ceil(log2 max|x|), at least −64
step                     2^(S − 7)
fixed-point weight       :class:`FixedPointWeight`, codes −127 to 127, a parametrization
fixed-point feature      :class:`FixedPointFeatures`, behind the batch normalization, or behind the convolution
=======================  =====================================================================

Values of this format are exact in float32, bfloat16 and float16 (where 2^S is in its range). Gradients pass as if
nothing was rounded (Y. Bengio et al., 2013).

Rounding multiplies, rounds, clamps and multiplies in place: on a CPU a fortieth of the time of
``torch.fake_quantize_per_tensor_affine``.

Source of the format: the public code of X. Ning et al., *FTT-NAS*, arXiv 2003.10375, 2020.
"""

import math

import torch
from torch import Tensor, nn

from sparing.errors import NonFiniteError

__all__ = ["FixedPointFeatures", "FixedPointWeight", "exponent_of", "step_of_exponent", "writable"]

_MAGNITUDE_BITS = 7
_LEAST_EXPONENT = -64
"""Of a tensor of zeros, whose steps are then too small to matter."""
_HIGHEST, _LOWEST, _UPSET = 127, -127, -128
_FORGET = 0.99
_FLOAT32_BIAS, _FLOAT32_FRACTION = 127, 23
_HALF = 0.5
_ROUNDING_SHIFT = 1.5 * 2**_FLOAT32_FRACTION


def exponent_of(x: Tensor, name: str) -> int:
    """S = ceil(log2 max|x|), at least −64.

    Args:
        x: floats.
        name: for messages.

    Raises:
        NonFiniteError: NaN or infinity.
    """
    peak = float(_peak(x.detach())) if x.numel() else 0.0
    if not math.isfinite(peak):
        raise NonFiniteError(f"{name}: expected finite numbers, got NaN or infinity")
    return _exponent(peak)


def step_of_exponent(exponent: int) -> float:
    """2^(S − 7)."""
    return math.ldexp(1.0, exponent - _MAGNITUDE_BITS)


_KEEPS_NO_OUTPUT = {
    kind.forward
    for kind in (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.modules.batchnorm._BatchNorm,
    )
}
"""What computes features and needs its inputs alone for gradients."""


def writable(module: nn.Module, features: Tensor) -> Tensor:
    """Features that may be written in place without a trace in the gradients: those given, or a copy.

    A copy where the backward pass may need them as they are: an activation inside the module or in a hook of the
    user's keeps what it gave.
    """
    if not (torch.is_grad_enabled() and features.requires_grad):
        return features
    computed = getattr(module.forward, "__func__", None)
    is_ours = computed in _KEEPS_NO_OUTPUT and all(
        str(getattr(hook, "__module__", "")).startswith("sparing.faults.") for hook in module._forward_hooks.values()
    )
    return features if is_ours else features.clone()


class FixedPointWeight(nn.Module):
    """Rounds a weight to the format; the range is that of the weight it gets. A parametrization, after any others.

    Attributes:
        held: S while faults are in the weight, so that they do not move the range; None for none.
        passes: while `held`, the weight is passed as it is: noise was added to what had been rounded before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held: int | None = None
        self.passes = False

    def forward(self, weight: Tensor) -> Tensor:
        """Maps a weight to codes · step, in its shape and dtype; gradients pass."""
        if self.passes:
            return weight
        with torch.no_grad():
            step = _step_of(_peak(weight)) if self.held is None else step_of_exponent(self.held)
            rounded = weight.detach().clone()
            _round_(rounded, step, lowest=_LOWEST if self.held is None else _UPSET)
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return rounded
        # Exact: a number and what it is rounded to are at most a factor 2 apart, or the latter is 0.
        return weight + (rounded - weight).detach()


class FixedPointFeatures(nn.Module):
    """Rounds features to the format, in place: a submodule ``fixed_point`` of the module behind which they are.

    In training the range is that of the batch, and the peak follows: the largest |x| of the batches so far, 1 % less
    at each. In evaluation the range is that of the peak. While faults are injected the peak stays, unless
    :func:`~sparing.faults.inject` was told otherwise.

    State dict: ``peak`` and ``step``, float32 numbers.

    Args:
        layer: the convolution whose features they are.
        feature_shape: (C, H, W), or of another number of axes.

    Attributes:
        layer, feature_shape: as given.
        latest: the step of the latest call.
        held: contexts of faults that are open and hold the peak.
        seen: while ranges are calibrated, max|x| of each batch; else None.
    """

    peak: Tensor
    step: Tensor

    def __init__(self, layer: nn.Module, feature_shape: tuple[int, ...]) -> None:
        super().__init__()
        # In a tuple: no submodule of this one.
        self._layer = (layer,)
        self.feature_shape = feature_shape
        device = next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
        self.register_buffer("peak", torch.zeros((), device=device))
        self.register_buffer("step", torch.tensor(step_of_exponent(_LEAST_EXPONENT), device=device))
        self.latest: float | Tensor = step_of_exponent(_LEAST_EXPONENT)
        self.held = 0
        self.seen: list[float | Tensor] | None = None

    @property
    def layer(self) -> nn.Module:
        """The convolution whose features they are."""
        return self._layer[0]

    @property
    def exponent(self) -> int:
        """S in evaluation."""
        return math.frexp(float(self.step))[1] - 1 + _MAGNITUDE_BITS

    def restart_(self) -> None:
        """Begins to calibrate: the range of features seen so far is none."""
        self.peak.zero_()
        self.seen = []

    @torch.no_grad()
    def forward(self, features: Tensor) -> None:
        """Rounds n × C × … floats."""
        step: float | Tensor | None = None
        if self.training or self.seen is not None:
            batch_peak = _peak(features)
            if not self.held:
                self._follow_(batch_peak)
            if self.training:
                step = _step_of(batch_peak)
        self.latest = _number(self.step) if step is None else step
        _round_(features.detach(), self.latest, lowest=_LOWEST)

    def _follow_(self, batch_peak: float | Tensor) -> None:
        kept = _number(self.peak)
        if self.seen is None:
            kept = kept * _FORGET
        else:
            self.seen.append(batch_peak)
        peak = _larger(kept, batch_peak)
        self.peak.fill_(peak)
        self.step.fill_(_step_of(peak))


# On a CPU single numbers are Python's, which are faster; elsewhere they stay on the device: nobody waits for them.


def _number(x: Tensor) -> float | Tensor:
    return float(x) if x.device.type == "cpu" else x


def _peak(x: Tensor) -> float | Tensor:
    """max|x|, NaN if there is one."""
    low, high = torch.aminmax(x)
    return max(-float(low), float(high)) if x.device.type == "cpu" else torch.maximum(-low, high).float()


def _larger(kept: float | Tensor, other: float | Tensor) -> float | Tensor:
    """The maximum, but what is kept if the other is not finite."""
    if isinstance(kept, Tensor) or isinstance(other, Tensor):
        kept, other = torch.as_tensor(kept), torch.as_tensor(other)
        return torch.where(torch.isfinite(other), torch.maximum(kept, other), kept)
    return max(kept, other) if math.isfinite(other) else kept


def _step_of(peak: float | Tensor) -> float | Tensor:
    """2^(ceil(log2 peak) − 7). Infinity and NaN go on, so that a training that diverges is seen to."""
    if not isinstance(peak, Tensor):
        return step_of_exponent(_exponent(peak)) if math.isfinite(peak) else peak
    mantissa, exponent = torch.frexp(peak)
    exponent = (exponent - (mantissa == _HALF).int()).clamp_(min=_LEAST_EXPONENT)
    exponent = torch.where(peak > 0, exponent, _LEAST_EXPONENT)
    # Put together from its bits: powers of two by other ways are not exact on every device.
    step = ((exponent + (_FLOAT32_BIAS - _MAGNITUDE_BITS)) << _FLOAT32_FRACTION).view(torch.float32)
    return torch.where(torch.isfinite(peak), step, peak)


def _exponent(peak: float) -> int:
    mantissa, exponent = math.frexp(peak)
    return max(exponent - (mantissa == _HALF), _LEAST_EXPONENT) if peak else _LEAST_EXPONENT


def _round_(x: Tensor, step: float | Tensor, *, lowest: int) -> None:
    """Rounds to codes · step in place."""
    if isinstance(step, float) and x.dtype == torch.float32:
        # Behind this sum the last bit is worth a step: the same in one pass less.
        shift = _ROUNDING_SHIFT * step
        x.clamp_(lowest * step, _HIGHEST * step).add_(shift).sub_(shift)
    else:
        x.mul_(1 / step).round_().clamp_(lowest, _HIGHEST).mul_(step)
