"""Ranges: which part of the values a grid covers, by extremes, percentile or least squared error."""

from collections.abc import Callable, Mapping

import torch

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from sparing.quant.dual_range import dual_codes, dual_params, dual_values
from sparing.quant.spec import QuantParams, QuantSpec
from sparing.quant.uniform import uniform_codes, uniform_params, uniform_values

__all__ = ["as_rows", "check_finite", "codes_of", "find_params", "keep_float32_", "values_of", "widen"]

_COARSE = [1 - i / 20 for i in range(1, 16)]
_FINE = [i / 100 for i in range(-4, 5) if i]


def as_rows(x: torch.Tensor, spec: QuantSpec, *, name: str = "x") -> torch.Tensor:
    """Views a tensor as ``(rows, n)``: each row shares a step. No copy of contiguous data.

    Raises:
        DtypeError: not a tensor.
        ShapeError: no elements, too few axes, or a last axis that ``group_size`` does not divide.
    """
    if not isinstance(x, torch.Tensor):
        raise DtypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    if x.numel() == 0:
        raise ShapeError(f"{name}: expected at least one element, got shape {tuple(x.shape)}")
    if spec.granularity == "tensor":
        return x.reshape(1, -1)
    if x.ndim == 0:
        raise ShapeError(f"{name}: expected at least one axis for granularity {spec.granularity!r}, got a scalar")
    if spec.granularity == "channel":
        return x.reshape(x.shape[0], -1)
    width = x.shape[-1]
    if spec.group_size is not None:
        if width % spec.group_size:
            raise ShapeError(
                f"{name}: the last axis must be a multiple of group_size {spec.group_size}, got {width}; pad it, or "
                f"choose a group size that divides it"
            )
        width = spec.group_size
    return x.reshape(-1, width)


def codes_of(rows: torch.Tensor, params: QuantParams, *, spec: QuantSpec) -> torch.Tensor:
    """Nearest codes of ``(rows, n)`` float32 or float64 values in the spec's format, as whole floats."""
    if spec.format == "uniform":
        return uniform_codes(rows, params, spec=spec)
    return dual_codes(rows, params, spec=spec)


def values_of(codes: torch.Tensor, params: QuantParams, *, spec: QuantSpec) -> torch.Tensor:
    """Values of ``(rows, n)`` whole-float codes in the spec's format."""
    if spec.format == "uniform":
        return uniform_values(codes, params)
    return dual_values(codes, params, spec=spec)


@torch.no_grad()
def find_params(
    x: torch.Tensor, spec: QuantSpec, *, weights: torch.Tensor | None = None, check: bool = True
) -> QuantParams:
    """Finds the steps for a tensor; no gradients.

    Args:
        x: any shape with at least one element, floating; computed in float32 (float64 for float64).
        spec: how.
        weights: importance of each element in the squared error, of the shape of ``x`` and >= 0; for ``range="mse"``.
        check: refuse NaN and infinity (on CUDA this waits for the device). Without, the answer for such rows means
            nothing.

    Returns:
        Steps, one row for each part of ``x`` that shares them.

    Raises:
        ArgumentError: weights with another ``range`` than ``"mse"``, or negative ones.
        DtypeError: not a floating tensor.
        NonFiniteError: NaN or infinity in ``x`` or ``weights``.
        ShapeError: see :func:`as_rows`, or weights of another shape.
    """
    rows = widen(as_rows(x, spec))
    if weights is not None:
        weights = _check_weights(weights, x, spec)
    if spec.range == "percentile":
        if check:
            check_finite(rows, name="x")
        low, high = _percentile(rows, spec)
        return _params(low, high, spec)
    # Extremes carry NaN and infinity on, so looking at them is enough.
    low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    if check:
        check_finite(high - high + low, name="x")
    low, high = low.clamp_max_(0), high.clamp_min_(0)
    if spec.range == "mse":
        low, high = _least_squares(rows, low, high, spec=spec, weights=weights)
    return _params(low, high, spec)


def widen(x: torch.Tensor, *, name: str = "x") -> torch.Tensor:
    """float64 as it is, any other floating dtype as float32.

    Raises:
        DtypeError: not floating.
    """
    if not x.is_floating_point():
        raise DtypeError(f"{name}: expected a floating dtype, got {x.dtype}")
    return x if x.dtype == torch.float64 else x.float()


def keep_float32_(module: torch.nn.Module, before: Mapping[str, torch.Tensor | None]) -> None:
    """Puts back what a move to another dtype rounded, on the device where the module is now.

    Args:
        module: after its ``_apply``.
        before: float32 tensors of it by name, as they were; None where there is none.
    """
    for name, tensor in before.items():
        if tensor is not None and getattr(module, name).dtype != torch.float32:
            setattr(module, name, tensor.to(getattr(module, name).device))


def check_finite(x: torch.Tensor, *, name: str) -> None:
    """Refuses NaN and infinity.

    Raises:
        NonFiniteError: there is one.
    """
    if not bool(torch.isfinite(x).all()):
        raise NonFiniteError(f"{name}: expected finite numbers, got NaN or infinity; find where they arise first")


def _params(low: torch.Tensor, high: torch.Tensor, spec: QuantSpec) -> QuantParams:
    make = uniform_params if spec.format == "uniform" else dual_params
    return make(low, high, spec=spec)


def _check_weights(weights: torch.Tensor, x: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    if spec.range != "mse":
        raise ArgumentError(f"weights: only range 'mse' uses them, the spec has range {spec.range!r}")
    if weights.shape != x.shape:
        raise ShapeError(f"weights: expected the shape of x, {tuple(x.shape)}, got {tuple(weights.shape)}")
    rows = widen(as_rows(weights, spec, name="weights"), name="weights")
    check_finite(rows, name="weights")
    if bool((rows < 0).any()):
        raise ArgumentError("weights: expected numbers >= 0, got a negative one")
    return rows


def _percentile(rows: torch.Tensor, spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest rank: the smallest value with at least that share of the values at or below it."""
    num = rows.shape[-1]
    rank = min(num, max(1, -int(-spec.percentile * num // 100)))
    if spec.format == "uniform" and spec.symmetric:
        high = rows.abs().kthvalue(rank, dim=-1, keepdim=True).values
        return -high, high
    high = rows.kthvalue(rank, dim=-1, keepdim=True).values
    low = rows.kthvalue(num + 1 - rank, dim=-1, keepdim=True).values
    return low.clamp_max_(0), high.clamp_min_(0)


def _least_squares(
    rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor, *, spec: QuantSpec, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shrinks the range where that lowers a row's squared error; never worse than the extremes."""

    def error(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        params = _params(low, high, spec)
        squares = (values_of(codes_of(rows, params, spec=spec), params, spec=spec) - rows).square_()
        return (squares if weights is None else squares.mul_(weights)).sum(-1, keepdim=True)

    if spec.format == "uniform" and spec.symmetric:
        high = torch.maximum(-low, high)
        high = high * _best_ratio(lambda ratio: error(-high * ratio, high * ratio), high)
        return -high, high
    high = high * _best_ratio(lambda ratio: error(low, high * ratio), high)
    return low * _best_ratio(lambda ratio: error(low * ratio, high), low), high


def _best_ratio(error: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The ratio of least error for each row: a coarse search in [1/4, 1], then a fine one around its best."""
    best = torch.ones_like(like)
    least = error(best)
    for steps, is_fine in ((_COARSE, False), (_FINE, True)):
        centre = best if is_fine else torch.zeros_like(best)
        for step in steps:
            ratio = (centre + step).clamp_max_(1)
            found = error(ratio)
            best = torch.where(found < least, ratio, best)
            least = torch.minimum(found, least)
    return best
