"""FakeQuantLinear: a linear layer that computes in float what quantized weights and inputs would give (simulated)."""

from typing import Self

import torch
from torch import nn

from sparing.errors import ConfigError, DtypeError, ShapeError
from sparing.quant.functional import fake_quantize
from sparing.quant.ranges import check_finite
from sparing.quant.spec import QuantSpec

__all__ = ["FakeQuantLinear"]


class FakeQuantLinear(nn.Module):
    """``y = Q(x) @ Q(W).T + b`` in the layer's own dtype; the forward signature of :class:`torch.nn.Linear`.

    The weight is rounded once, the input at each call. The original weight is kept, so this can be undone
    (:meth:`to_linear`). For accuracy studies: it is slower and larger than the float layer. No gradients.

    State dict: ``weight`` and ``quantized_weight`` ``(out, in)``, ``bias`` ``(out,)`` if any.

    Args:
        weight: ``(out, in)``, floating, finite.
        bias: ``(out,)``, floating; ``None``: none.
        weight_spec: how the weight is quantized: by tensor, channel or group; ``None``: not at all.
        input_spec: how inputs are quantized: by tensor, token or group; ``None``: not at all.
        quantized_weight: the rounded weight ``(out, in)``, where something better than rounding to nearest made it (see
            :func:`~sparing.quant.gptq`); ``None``: rounds to nearest.
        check: refuse inputs with NaN or infinity; ``False`` for hot paths, where what comes of them means nothing.

    Raises:
        ConfigError: a weight by token, or an input by channel.
        NonFiniteError: NaN or infinity in a weight.
        ShapeError: shapes that do not fit.
    """

    weight: torch.Tensor
    quantized_weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        weight_spec: QuantSpec | None,
        input_spec: QuantSpec | None,
        quantized_weight: torch.Tensor | None = None,
        check: bool = True,
    ) -> None:
        super().__init__()
        if weight_spec is not None and weight_spec.granularity == "token":
            raise ConfigError("weight_spec: a weight has no tokens; use granularity 'channel', 'tensor' or 'group'")
        if input_spec is not None and input_spec.granularity == "channel":
            raise ConfigError("input_spec: use granularity 'token', 'tensor' or 'group'; 'channel' is for weights")
        if weight.ndim != 2:
            raise ShapeError(f"weight: expected 2 axes, got shape {tuple(weight.shape)}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(f"bias: expected shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
        weight = weight.detach()
        if quantized_weight is None:
            quantized_weight = weight if weight_spec is None else fake_quantize(weight, weight_spec)
        elif quantized_weight.shape != weight.shape:
            raise ShapeError(
                f"quantized_weight: expected shape {tuple(weight.shape)}, got {tuple(quantized_weight.shape)}"
            )
        check_finite(quantized_weight, name="quantized_weight")
        self.out_features, self.in_features = weight.shape
        self.weight_spec = weight_spec
        self.input_spec = input_spec
        self.check = check
        # Buffers: an optimizer must not find them. No copy of the original, which is never written to.
        self.register_buffer("weight", weight)
        self.register_buffer("quantized_weight", quantized_weight.detach().to(weight.dtype))
        self.register_buffer("bias", None if bias is None else bias.detach())

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        weight_spec: QuantSpec | None,
        input_spec: QuantSpec | None,
        quantized_weight: torch.Tensor | None = None,
        check: bool = True,
    ) -> Self:
        """Simulates quantization of a linear layer, whose weight and bias it shares.

        Raises:
            ConfigError, NonFiniteError, ShapeError: as the class.
            DtypeError: not a linear layer.
        """
        if not isinstance(linear, nn.Linear):
            raise DtypeError(f"linear: expected a torch.nn.Linear, got {type(linear).__name__}")
        return cls(
            linear.weight,
            linear.bias,
            weight_spec=weight_spec,
            input_spec=input_spec,
            quantized_weight=quantized_weight,
            check=check,
        )

    def to_linear(self) -> nn.Linear:
        """The layer as it was: the same numbers, shared with this one."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias)
        return linear

    @torch.no_grad()
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 -- the name in torch.nn.Linear
        """The layer's output.

        Args:
            input: ``(..., in)``, the layer's dtype.

        Returns:
            ``(..., out)``, the layer's dtype.

        Raises:
            NonFiniteError: NaN or infinity in the input, with ``check``.
            ShapeError: another last axis than ``in``.
        """
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ShapeError(f"input: expected shape (..., {self.in_features}), got {tuple(input.shape)}")
        if self.input_spec is not None and input.numel():
            input = fake_quantize(input, self.input_spec, check=self.check)  # noqa: A001
        return nn.functional.linear(input, self.quantized_weight, self.bias)

    def extra_repr(self) -> str:
        """What printing shows in the brackets."""
        weight, given = (_describe(spec) for spec in (self.weight_spec, self.input_spec))
        return f"in_features={self.in_features}, out_features={self.out_features}, weight={weight}, input={given}"


def _describe(spec: QuantSpec | None) -> str:
    return "float" if spec is None else f"{spec.bits}-bit {spec.format} a {spec.granularity}"
