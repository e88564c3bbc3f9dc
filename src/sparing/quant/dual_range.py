"""Grids for skewed values: a step for each sign, and positive values evenly or square-law spaced.

What GELU leaves is never below -0.17 and has a long positive tail, so half of a symmetric grid lies idle. Signal to
noise of fc2's *output* (dB; simulated; weights normal; a step a token, min-max; 4096 channels), behind GELU(tanh) of
Gaussian pre-activations: all channels N(0, 1) / means and widths spread / and 1 % of the channels six times as wide:

=================================  ==================  ==================
format                             4 bits              6 bits
=================================  ==================  ==================
symmetric                          13.4 /  8.3 /  8.4  25.3 / 18.9 / 13.6
with a zero point                  17.8 / 10.6 / 11.4  31.2 / 24.4 / 19.8
dual_range, halves                 15.7 / 12.8 /  9.8  28.5 / 25.2 / 20.9
dual_range, an eighth negative     20.7 / 17.1 / 13.9  33.2 / 29.3 / 25.5
powers of two                      13.7 / 13.7 / 12.9  13.7 / 13.9 / 14.0
Lloyd-Max table of other data      23.2 / 20.7 / 17.1  33.6 / 30.0 / 25.3
dual_sqrt, an eighth negative      21.9 / 20.1 / 19.8  34.3 / 32.2 / 32.1
=================================  ==================  ==================

A fitted table is better where the data are what it was fitted to, and worse in the tail; the square law needs no table,
and its positive values are integers times a step (k²; at 4 bits at most 169), so integer products can carry it.
"""

import torch

from sparing.errors import ArgumentError
from sparing.quant.spec import QuantParams, QuantSpec

__all__ = ["dual_codes", "dual_params", "dual_values"]


def dual_params(low: torch.Tensor, high: torch.Tensor, *, spec: QuantSpec) -> QuantParams:
    """Steps that cover a range, one for each sign.

    Args:
        low: ``(rows, 1)``, float32 or float64, <= 0.
        high: ``(rows, 1)``, the same dtype, >= 0.
        spec: of a dual format.

    Returns:
        Positive steps of at least the smallest normal number.
    """
    tiny = torch.finfo(low.dtype).tiny
    # Squares of codes: a step of the positive side is the value of code 1.
    top = spec.code_max**2 if spec.format == "dual_sqrt" else spec.code_max
    return QuantParams(
        scale=(high / top).clamp_min_(tiny), negative_scale=(low / spec.code_min).abs_().clamp_min_(tiny)
    )


def dual_codes(rows: torch.Tensor, params: QuantParams, *, spec: QuantSpec) -> torch.Tensor:
    """Nearest codes of ``(rows, n)`` values, as whole floats in ``[code_min, code_max]``."""
    positive = rows.clamp_min(0) / params.scale
    if spec.format == "dual_sqrt":
        # The middle of k² and (k+1)² is (k + 1/2)² + 1/4: so rounding this root finds the nearest square.
        positive = positive.sub_(0.25).clamp_min_(0).sqrt_()
    negative = rows.clamp_max(0) / _negative_scale(params)
    # One of the two is zero at each place.
    return positive.round_().clamp_max_(spec.code_max) + negative.round_().clamp_min_(spec.code_min)


def dual_values(codes: torch.Tensor, params: QuantParams, *, spec: QuantSpec) -> torch.Tensor:
    """Values of ``(rows, n)`` codes that are whole floats."""
    positive = codes.clamp_min(0)
    if spec.format == "dual_sqrt":
        positive = positive.square_()
    return positive * params.scale + codes.clamp_max(0) * _negative_scale(params)


def _negative_scale(params: QuantParams) -> torch.Tensor:
    if params.negative_scale is None:
        raise ArgumentError("params: expected those of a dual format, found with the same spec; got no negative_scale")
    return params.negative_scale
