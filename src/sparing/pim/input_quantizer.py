"""InputQuantizer: rounds what is fed to a layer's word lines, one step a layer, with straight-through gradients."""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError
from sparing.quant.ranges import keep_float32_, widen

__all__ = ["InputQuantizer"]

_MOMENTUM = 0.1
_SAMPLE = 1 << 16
_PART = 1 << 18
_SAME_WIDTH = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class InputQuantizer(nn.Module):
    """Rounds the inputs of a layer to two's complement codes times one step.

    In training mode the step follows the inputs: the first batch gives it, later ones by a moving average. In
    evaluation it stays. While ``observing`` (calibration) inputs pass unchanged and the step grows to the largest that
    any batch asks for. Inputs that are never negative use the upper half of the codes: the datapath knows one kind of
    inputs, and where that half is too little, the design has more bits.

    State dict: ``step`` and ``calls``.

    Args:
        bits: 2 to 16; codes −2**(bits − 1) .. 2**(bits − 1) − 1.
        percentile: of the magnitudes, 50 to 100, that the codes are to hold; 100 is the maximum. Below, by nearest rank
            on about 65,000 numbers spread over a batch.
        device: of the step.

    Attributes:
        step: () float32, whatever dtype the model is moved to; 0 before the first batch.
        observing: see above.

    Raises:
        ArgumentError: bits or percentile out of range.
    """

    step: Tensor
    calls: Tensor

    def __init__(self, bits: int, *, percentile: float = 100.0, device: torch.device | None = None) -> None:
        super().__init__()
        if not 2 <= bits <= 16:
            raise ArgumentError(f"bits: expected 2 to 16 for quantized inputs, got {bits}")
        if not 50 <= percentile <= 100:
            raise ArgumentError(f"percentile: expected 50 to 100, got {percentile}")
        self.bits, self.percentile = bits, float(percentile)
        self.max_code = (1 << (bits - 1)) - 1
        self.min_code = -self.max_code - 1
        self.observing = False
        self.register_buffer("step", torch.zeros((), device=device))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=device))
        self._calls = 0

    def codes(self, x: Tensor) -> Tensor:
        """What is fed to the word lines: int16 in the shape of `x`.

        Raises:
            ArgumentError: no range is known yet.
        """
        self._need_step()
        with torch.no_grad():
            return self._nearest(x).to(torch.int16)

    def forward(self, x: Tensor) -> Tensor:
        """Maps inputs to rounded ones of their shape and dtype.

        Raises:
            ArgumentError: in evaluation mode, no range is known yet.
        """
        if self.observing or self.training:
            self._follow_(x.detach())
        if self.observing:
            return x
        self._need_step()
        # What is exported has no way back, and no tracer sees into a function that has one.
        exported = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if exported or not (torch.is_grad_enabled() and x.requires_grad):
            return self._nearest(x).mul_(self.step).to(x.dtype)
        apply: Callable[..., Tensor] = _RoundInputs.apply
        return apply(x, self.step, self.min_code, self.max_code)

    @torch.no_grad()
    def restore_(self, step: Tensor, calls: Tensor) -> None:
        """Takes a step and a number of calls, () each, as its own."""
        self.step.copy_(step)
        self.calls.copy_(calls)
        self._calls = int(calls)

    def forget_(self) -> None:
        """Goes back to knowing no range."""
        self.restore_(torch.zeros_like(self.step), torch.zeros_like(self.calls))

    def extra_repr(self) -> str:
        """What printing shows in the brackets."""
        return f"bits={self.bits}{'' if self.percentile == 100 else f', percentile={self.percentile:g}'}"

    def _nearest(self, x: Tensor) -> Tensor:
        """The codes, in float."""
        return (widen(x) / self.step).round_().clamp_(self.min_code, self.max_code)

    def _need_step(self) -> None:
        if not self._calls:
            raise ArgumentError(
                "calibration: a layer's inputs have no range yet; give quantize_ a batch, or train for a step first"
            )

    @torch.no_grad()
    def _follow_(self, x: Tensor) -> None:
        if not x.numel():
            return
        step = self._step_for(x)
        if not self._calls:
            self.step.copy_(step)
        elif self.observing:
            self.step.copy_(torch.maximum(self.step, step))
        else:
            self.step.lerp_(step, _MOMENTUM)
        self._calls += 1
        self.calls += 1

    def _step_for(self, x: Tensor) -> Tensor:
        if self.percentile < 100:
            flat = x.flatten()
            # With no factor in common with the size, hence with no axis: every feature has its turn.
            stride = max(1, flat.numel() // _SAMPLE)
            while math.gcd(stride, flat.numel()) > 1:
                stride += 1
            values = flat[::stride].float().abs()
            rank = max(1, -int(-self.percentile * values.numel() // 100))
            return (values.kthvalue(rank).values / self.max_code).clamp_min_(torch.finfo(torch.float32).tiny)
        if x.ndim == 4 and not x.is_contiguous():
            x = x.permute(0, 2, 3, 1)  # channels_last, in the order of memory: three times as fast
        low, high = x.aminmax()
        step = torch.maximum(high.float() / self.max_code, low.float() / self.min_code)
        return step.clamp_min_(torch.finfo(torch.float32).tiny)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = {"step": self.step}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        keep_float32_(self, before)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._calls = int(self.calls)


class _RoundInputs(torch.autograd.Function):
    """Rounding and clipping in one, for maps that are large: it keeps a mask for the way back, not the inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        rounded = torch.empty_like(x)
        inside = torch.empty_like(x, dtype=torch.bool)
        # On a CPU few enough rows at a time for several passes over them within its cache.
        rows = max(1, len(x) if x.device.type != "cpu" else _PART * len(x) // max(1, x.numel()))
        for at in range(0, len(x), rows):
            part = slice(at, at + rows)
            codes = (widen(x[part]) / step).round_()
            clipped = codes.clamp(low, high)
            torch.eq(codes, clipped, out=inside[part])
            rounded[part] = clipped.mul_(step)
        ctx.save_for_backward(inside)
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (inside,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return grads[0] * inside, None, None, None
        # As integers: a CPU multiplies bfloat16 by a mask ten times slower.
        kept = grads[0].view(_SAME_WIDTH[grads[0].itemsize]) * inside
        return kept.view(grads[0].dtype), None, None, None
