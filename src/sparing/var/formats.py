"""Linear layers in the formats that a plan names: as they are, with integer products, or rounded (simulated).

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024, section 4.3: weights a step for each output channel, inputs a step for
each token; fc2 keeps more bits, because what comes out of GELU is skewed.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sparing.quant import FakeQuantLinear, Int8Linear, QuantSpec, fake_quantize
from sparing.runs.documents import validated
from sparing.var.config import LINEAR_KINDS, VARConfig, linear_names
from sparing.var.plan import CompressionPlan, LinearFormat, PrecisionPlan

__all__ = ["attention_rounding", "int8_precision", "make_linear", "precision_plan"]

_MSE_UP_TO = 4
"""Weights of so few bits are clipped where the squared error is least, instead of at their largest."""


def precision_plan(
    config: VARConfig,
    *,
    weight_bits: int = 8,
    activation_bits: int = 8,
    fc2: LinearFormat | None = None,
    kinds: Iterable[str] = LINEAR_KINDS,
    real: bool = False,
    kv_bits: int | None = None,
    attention_bits: int | None = None,
    decoder_bits: int | None = None,
) -> PrecisionPlan:
    """Makes the published kind of plan: one width for all linear layers, fc2 apart.

    Args:
        config: the model.
        weight_bits: 2 to 8.
        activation_bits: 2 to 8.
        fc2: format of fc2, where it is among `kinds`; None leaves fc2 in high precision ("protected").
        kinds: linear layers that are rounded, fc2 among them only where `fc2` is given.
        real: integer products, for 8 bits.
        kv_bits: 8 or None.
        attention_bits: of q, k, v and the softmax map; None leaves them.
        decoder_bits: of the tokenizer's decoder, 8 or None.

    Returns:
        The plan.

    Raises:
        ArgumentError: an unknown kind.
        ConfigError: bits out of range, or integer products of other than 8 bits.
    """
    kinds = tuple(kinds)
    fields = {"weight_bits": weight_bits, "activation_bits": activation_bits, "real": real}
    form = validated(LinearFormat, fields)
    linears = dict.fromkeys(linear_names(config, (kind for kind in kinds if kind != "fc2")), form)
    if fc2 is not None and "fc2" in kinds:
        linears |= dict.fromkeys(linear_names(config, ("fc2",)), fc2)
    others = {"kv_bits": kv_bits, "attention_bits": attention_bits, "decoder_bits": decoder_bits}
    return validated(PrecisionPlan, {"linears": linears, **others})


def int8_precision(config: VARConfig, *, kinds: Iterable[str] = LINEAR_KINDS) -> PrecisionPlan:
    """Makes the plan with all that runs in real integers: linear layers, keys and values, and the decoder.

    Args:
        config: the model.
        kinds: linear layers that are rounded.
    """
    form = LinearFormat(weight_bits=8, activation_bits=8, real=True)
    return precision_plan(config, fc2=form, kinds=kinds, real=True, kv_bits=8, decoder_bits=8)


def make_linear(
    weight: Tensor, bias: Tensor | None, form: LinearFormat | None, *, dtype: torch.dtype, gelu: bool = False
) -> nn.Module:
    """Makes a linear layer.

    Args:
        weight: (out, in); shared, not copied, where it is left and has `dtype` already.
        bias: (out,) or None.
        form: its numbers; None leaves them.
        dtype: of inputs and outputs.
        gelu: followed by GELU (tanh formula).

    Returns:
        A module with the forward pass of ``nn.Linear``.
    """
    if form is not None and form.real:
        return Int8Linear.from_linear(_linear(weight, bias, weight.dtype), gelu=gelu, dtype=dtype)
    plain = _linear(weight, bias, dtype)
    layer: nn.Module = plain
    if form is not None and not (form.weight_bits is None and form.activation_bits is None):
        specs = _weight_spec(form), _input_spec(form)
        layer = FakeQuantLinear.from_linear(plain, weight_spec=specs[0], input_spec=specs[1], check=False)
    return nn.Sequential(layer, nn.GELU(approximate="tanh")) if gelu else layer


def _linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return linear


def _weight_spec(form: LinearFormat) -> QuantSpec | None:
    if form.weight_bits is None:
        return None
    return QuantSpec(
        bits=form.weight_bits, granularity="channel", range="mse" if form.weight_bits <= _MSE_UP_TO else "minmax"
    )


def _input_spec(form: LinearFormat) -> QuantSpec | None:
    if form.activation_bits is None:
        return None
    return QuantSpec(bits=form.activation_bits, granularity="token", format=form.input_format)


def attention_rounding(plan: CompressionPlan | None) -> Callable[[Tensor], Tensor] | None:
    """Returns the rounding (simulated) of q, k, v and the softmax map by row, or None where a plan leaves them."""
    bits = None if plan is None or plan.precision is None else plan.precision.attention_bits
    if bits is None:
        return None
    spec = QuantSpec(bits=bits, granularity="token")
    return lambda x: fake_quantize(x, spec, check=False)
