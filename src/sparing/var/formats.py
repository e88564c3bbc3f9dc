"""Linear layers in the formats that a plan names: as they are, with integer products, or rounded (simulated)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparing.var.plan import CompressionPlan, LinearFormat

__all__ = ["attention_rounding", "make_linear"]


def make_linear(weight: Tensor, bias: Tensor | None, form: LinearFormat | None, *, dtype: torch.dtype) -> nn.Module:
    """Makes a linear layer from a weight (out, in) and a bias (out,)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return linear


def attention_rounding(plan: CompressionPlan | None) -> Callable[[Tensor], Tensor] | None:
    """Returns the rounding of q, k, v and the softmax map, or None."""
    return None
