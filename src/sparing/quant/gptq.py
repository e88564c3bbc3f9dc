"""GPTQ: rounds a weight column by column and lets the columns to come make up for each one's error.

Source: E. Frantar et al., *GPTQ*, 2022 (section 3; Algorithm 1), after *Optimal Brain Compression*, 2022.

=============  ==========================================
paper          here
=============  ==========================================
H = 2XXᵀ       ``second_moment`` (a factor changes nothing)
λ              ``damping`` × the mean of H's diagonal
Cholesky(H⁻¹)  ``upper``
B              ``_BLOCK`` columns updated at a time
=============  ==========================================
"""

import torch

from sparing.errors import ArgumentError, ShapeError
from sparing.quant.ranges import check_finite, codes_of, find_params, values_of, widen
from sparing.quant.spec import QuantParams, QuantSpec

__all__ = ["gptq"]

_BLOCK = 128


@torch.no_grad()
def gptq(
    weight: torch.Tensor,
    second_moment: torch.Tensor,
    *,
    spec: QuantSpec,
    damping: float = 0.01,
    sort_columns: bool = True,
) -> tuple[torch.Tensor, QuantParams]:
    """Rounds a weight so that ``W x`` changes little on calibration inputs, rather than ``W``.

    The steps are those of :func:`~sparing.quant.find_params`; only the rounding differs from it.

    Args:
        weight: ``(out, in)``, floating.
        second_moment: ``(in, in)``, the mean of ``x xᵀ`` over calibration inputs ``x``: symmetric, positive
            semidefinite.
        spec: by tensor, channel or group.
        damping: added to the diagonal, as a share of its mean; > 0, raise it where inputs are few.
        sort_columns: rounds the columns with the largest inputs first, while all others can make up for it.

    Returns:
        Codes ``(out, in)`` in ``spec.code_dtype``, and their steps, for :func:`~sparing.quant.dequantize`. Cost:
        ``O(in³ + out·in²)``, in float64.

    Raises:
        ArgumentError: a damping that is not positive; a spec by token; a second moment that is not symmetric, or that
            stays singular.
        DtypeError: not floating.
        NonFiniteError: NaN or infinity.
        ShapeError: shapes that do not fit.
    """
    _check(weight, second_moment, spec, damping)
    params = find_params(weight.float(), spec)
    width = weight.shape[1]
    hessian = second_moment.double()
    diagonal = hessian.diagonal()
    order = (
        diagonal.argsort(descending=True, stable=True) if sort_columns else torch.arange(width, device=weight.device)
    )
    hessian = hessian[order][:, order]
    # Inputs that are always zero leave their columns free: a one keeps the matrix regular and couples them to nothing.
    mean = float(diagonal.mean())
    hessian.diagonal().add_(damping * mean if mean > 0 else 1.0)
    lower, info = torch.linalg.cholesky_ex(hessian)
    if int(info):
        raise ArgumentError(
            "second_moment: not positive definite even with damping; use more inputs or a larger damping"
        )
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    steps = _by_column(params, weight.shape)
    codes = _round_columns(weight.double()[:, order], upper, steps=steps, order=order, spec=spec)
    out = torch.empty(weight.shape, dtype=spec.code_dtype, device=weight.device)
    out[:, order] = codes.to(spec.code_dtype)
    return out, params


def _round_columns(
    weight: torch.Tensor, upper: torch.Tensor, *, steps: QuantParams, order: torch.Tensor, spec: QuantSpec
) -> torch.Tensor:
    """Codes of ``(out, in)`` float64 columns, already in order; overwrites ``weight``."""
    codes = torch.empty_like(weight)
    width = weight.shape[1]
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        errors = torch.empty(weight.shape[0], stop - start, dtype=weight.dtype, device=weight.device)
        for j in range(start, stop):
            column = weight[:, j : j + 1]
            params = _column(steps, int(order[j]))
            codes[:, j : j + 1] = codes_of(column, params, spec=spec)
            error = (column - values_of(codes[:, j : j + 1], params, spec=spec)) / upper[j, j]
            weight[:, j + 1 : stop] -= error * upper[j, j + 1 : stop]
            errors[:, j - start : j - start + 1] = error
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes


def _by_column(params: QuantParams, shape: torch.Size) -> QuantParams:
    """Steps as ``(out, in)`` views or copies, in float64, one for each element of the weight."""

    def spread(part: torch.Tensor) -> torch.Tensor:
        groups = part.shape[0] // shape[0] or 1
        return part.double().reshape(-1, groups).repeat_interleave(shape[1] // groups, dim=1).expand(shape)

    def spread_or_none(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else spread(part)

    return QuantParams(spread(params.scale), spread_or_none(params.zero_point), spread_or_none(params.negative_scale))


def _column(steps: QuantParams, index: int) -> QuantParams:
    zero, negative = steps.zero_point, steps.negative_scale
    return QuantParams(
        steps.scale[:, index : index + 1],
        None if zero is None else zero[:, index : index + 1],
        None if negative is None else negative[:, index : index + 1],
    )


def _check(weight: torch.Tensor, second_moment: torch.Tensor, spec: QuantSpec, damping: float) -> None:
    if weight.ndim != 2 or weight.numel() == 0:
        raise ShapeError(f"weight: expected a matrix with elements, got shape {tuple(weight.shape)}")
    width = weight.shape[1]
    if second_moment.shape != (width, width):
        raise ShapeError(f"second_moment: expected shape {(width, width)}, got {tuple(second_moment.shape)}")
    if spec.granularity == "token":
        raise ArgumentError("spec: a weight has no tokens; use granularity 'channel', 'tensor' or 'group'")
    if not 0 < damping < float("inf"):
        raise ArgumentError(f"damping: expected a number > 0, got {damping!r}")
    check_finite(widen(weight, name="weight"), name="weight")
    check_finite(widen(second_moment, name="second_moment"), name="second_moment")
    if not torch.allclose(second_moment, second_moment.mT, rtol=1e-3, atol=1e-6 * float(second_moment.abs().max())):
        raise ArgumentError("second_moment: expected a symmetric matrix, the mean of x xᵀ")
