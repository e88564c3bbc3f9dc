"""Quantize, dequantize, and both at once, for any QuantSpec, shape, floating dtype and device."""

import torch

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.quant.ranges import as_rows, check_finite, codes_of, find_params, values_of, widen
from sparing.quant.spec import QuantParams, QuantSpec

__all__ = ["dequantize", "fake_quantize", "quantize"]


@torch.no_grad()
def quantize(x: torch.Tensor, params: QuantParams, *, spec: QuantSpec, check: bool = True) -> torch.Tensor:
    """Rounds values to codes; values beyond the range take the outermost code. No gradients.

    Args:
        x: any shape with at least one element, floating.
        params: the steps, of :func:`~sparing.quant.find_params` with the same spec.
        spec: how.
        check: refuse NaN and infinity (one more pass; on CUDA it waits for the device). Without, their codes mean
            nothing.

    Returns:
        Codes in ``[spec.code_min, spec.code_max]``, shape of ``x``, ``spec.code_dtype``.

    Raises:
        ArgumentError: params of another kind of spec.
        DtypeError: not a floating tensor.
        NonFiniteError: NaN or infinity in ``x``.
        ShapeError: no elements, or params of another number of rows.

    Example:
        >>> spec = QuantSpec(bits=4, granularity="token")
        >>> x = torch.tensor([[-7.0, 0.0, 2.9]])
        >>> quantize(x, find_params(x, spec), spec=spec).tolist()
        [[-7, 0, 3]]
    """
    rows = widen(as_rows(x, spec))
    _check_params(rows, params, spec)
    if check:
        check_finite(rows, name="x")
    return codes_of(rows, params, spec=spec).to(spec.code_dtype).reshape(x.shape)


def dequantize(
    codes: torch.Tensor, params: QuantParams, *, spec: QuantSpec, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Values of codes.

    Args:
        codes: any shape, an integer dtype.
        params: the steps that made them.
        spec: the spec that made them.
        dtype: of the answer, floating; ``None``: that of the steps.

    Returns:
        Values, shape of ``codes``.

    Raises:
        ArgumentError: params of another kind of spec.
        DtypeError: codes that are not integers, or a ``dtype`` that is not floating.
        ShapeError: no elements, or params of another number of rows.
    """
    rows = as_rows(codes, spec, name="codes")
    if rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise DtypeError(f"codes: expected an integer dtype, got {codes.dtype}")
    if dtype is not None and not dtype.is_floating_point:
        raise DtypeError(f"dtype: expected a floating dtype, got {dtype}")
    _check_params(rows, params, spec)
    values = values_of(rows.to(params.scale.dtype), params, spec=spec)
    return _narrowed(values, dtype or values.dtype).reshape(codes.shape)


@torch.no_grad()
def fake_quantize(
    x: torch.Tensor, spec: QuantSpec, *, weights: torch.Tensor | None = None, check: bool = True
) -> torch.Tensor:
    """Finds the range of a tensor and rounds it to the grid: what quantization does to it, at full width.

    No gradients: for training, add ``x - x.detach()`` (straight-through).

    For a K or V cache give ``granularity="token"`` (a step for each head's vector).

    Args:
        x: any shape with at least one element, floating.
        spec: how.
        weights: importance of each element, for ``range="mse"``.
        check: refuse NaN and infinity; almost free with ``range="minmax"`` on the CPU.

    Returns:
        Values on the grid, shape, dtype and device of ``x``.

    Raises:
        ArgumentError, DtypeError, NonFiniteError, ShapeError: as :func:`~sparing.quant.find_params`.
    """
    params = find_params(x, spec, weights=weights, check=check)
    rows = widen(as_rows(x, spec))
    return _narrowed(values_of(codes_of(rows, params, spec=spec), params, spec=spec), x.dtype).reshape(x.shape)


def _narrowed(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values in a type that the outermost of them may pass by half a step."""
    if dtype != torch.float16:
        return values.to(dtype)
    return values.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)


def _check_params(rows: torch.Tensor, params: QuantParams, spec: QuantSpec) -> None:
    is_dual = spec.format != "uniform"
    if (params.negative_scale is not None) != is_dual or (params.zero_point is None) != (is_dual or spec.symmetric):
        raise ArgumentError("params: they belong to another spec; find them with the spec that is given here")
    for name in ("scale", "zero_point", "negative_scale"):
        found = getattr(params, name)
        if found is not None and found.shape != (rows.shape[0], 1):
            raise ShapeError(
                f"params.{name}: expected shape {(rows.shape[0], 1)} for granularity {spec.granularity!r}, got "
                f"{tuple(found.shape)}"
            )
