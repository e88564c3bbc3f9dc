"""The uniform grid: evenly spaced codes, symmetric or with a zero point; pure arithmetic on rows."""

import torch

from sparing.quant.spec import QuantParams, QuantSpec

__all__ = ["uniform_codes", "uniform_params", "uniform_values"]


def uniform_params(low: torch.Tensor, high: torch.Tensor, *, spec: QuantSpec) -> QuantParams:
    """Steps that cover a range.

    Args:
        low: ``(rows, 1)``, float32 or float64, <= 0.
        high: ``(rows, 1)``, the same dtype, >= 0.
        spec: of format ``"uniform"``.

    Returns:
        Steps of at least the smallest normal number, so that a row of zeros divides by no zero. With a zero point, zero
        is a code, and no value in the range is further than half a step from one.
    """
    tiny = torch.finfo(low.dtype).tiny
    if spec.symmetric:
        return QuantParams((torch.maximum(-low, high) / spec.code_max).clamp_min_(tiny))
    # Two quotients: the difference of two finite numbers can overflow.
    scale = (high / spec.code_max - low / spec.code_max).clamp_min_(tiny)
    zero_point = (-low / scale).round_().clamp_(0, spec.code_max)
    return QuantParams(scale, zero_point.to(torch.int32))


def uniform_codes(rows: torch.Tensor, params: QuantParams, *, spec: QuantSpec) -> torch.Tensor:
    """Nearest codes (ties to even) of ``(rows, n)`` values, as whole floats in ``[code_min, code_max]``."""
    codes = (rows / params.scale).round_()
    if params.zero_point is not None:
        codes += params.zero_point
    return codes.clamp_(spec.code_min, spec.code_max)


def uniform_values(codes: torch.Tensor, params: QuantParams) -> torch.Tensor:
    """Values of ``(rows, n)`` codes that are whole floats."""
    if params.zero_point is not None:
        codes = codes - params.zero_point
    return codes * params.scale
