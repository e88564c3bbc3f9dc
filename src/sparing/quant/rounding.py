"""Rounding of activations to bytes at each call, and what follows an integer product; in the compiled core on CPUs.

Bytes are unsigned, because oneDNN's fast kernels take no others. The core passes over the values as seldom as it can;
PyTorch's operators do the same elsewhere, a pass each.
"""

import importlib
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparing.quant.ranges import widen

_core: ModuleType | None
try:
    _core = importlib.import_module("sparing._core")
except ImportError:  # without the compiled core PyTorch does it all
    _core = None

__all__ = ["finish_rows_", "quantize_image", "quantize_rows", "signed"]

_MIDDLE, _LARGEST_CODE, _LARGEST_BYTE = 128, 127, 255


@cache
def _level() -> str | None:
    return None if _core is None else str(_core.available_int8()[-1])


def _uses_core(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.compiler.is_compiling()
        and _level() is not None
    )


def _array(x: Tensor) -> Any:
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).detach().numpy()


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each row by its largest magnitude.

    Args:
        rows: (m, k), floating; float64 is computed in float32.

    Returns:
        Codes (m, k) uint8 in C order, 128 + round(row / step), and steps (m, 1) float32, not a number for a row that is
        not finite.
    """
    if _uses_core(rows):
        x = _in_c_order(rows.detach())
        codes = torch.empty(rows.shape, dtype=torch.uint8, device="cpu")
        steps = torch.empty(len(rows), dtype=torch.float32, device="cpu")
        core: Any = _core
        core.quantize_rows(_array(x), codes.numpy(), steps.numpy(), _level(), torch.get_num_threads())
        return codes, steps[:, None]
    wide = widen(rows, name="input").float()
    # Two reductions in float32: aminmax, and any of them in bfloat16, take several times as long.
    scale = torch.maximum(wide.amax(-1, keepdim=True), wide.amin(-1, keepdim=True).neg_()).div_(_LARGEST_CODE)
    scale.clamp_min_(torch.finfo(torch.float32).tiny)
    scaled = wide.div(scale) if rows.dtype == torch.float32 else wide.div_(scale)
    # In C order with plain strides, whatever the input's: the kernels read them.
    codes = scaled.round_().to(torch.int8, memory_format=torch.contiguous_format)
    return codes.view(torch.uint8).bitwise_xor_(_MIDDLE), scale


def signed(codes: Tensor) -> Tensor:
    """The int8 codes that bytes stand for; the bytes are **overwritten**."""
    return codes.bitwise_xor_(_MIDDLE).view(torch.int8)


def finish_rows_(out: Tensor, sums: Tensor, steps: Tensor, *, bias: Tensor | None, gelu: bool) -> None:
    """Sums times each row's step, plus the bias, through GELU if wanted; computed in float32.

    Args:
        out: (m, n), floating, C order; filled.
        sums: (m, n) float32, C order; **overwritten**.
        steps: (m, 1) float32.
        bias: (n,) float32.
        gelu: GELU by its tanh formula.
    """
    if _uses_core(out):
        core: Any = _core
        rest = (gelu, _array(out), _level(), torch.get_num_threads())
        core.finish_rows(sums.numpy(), steps[:, 0].numpy(), None if bias is None else bias.numpy(), *rest)
        return
    if bias is None:
        sums.mul_(steps)
    else:
        torch.addcmul(bias, sums, steps, out=sums)
    out.copy_(F.gelu(sums, approximate="tanh") if gelu else sums)


def quantize_image(image: Tensor, *, norm: nn.GroupNorm | None, silu: bool) -> tuple[Tensor, float, int]:
    """Rounds one image to bytes between its least and its largest value.

    Args:
        image: (1, C, h, w), floating.
        norm: passed through first; it has weight and bias.
        silu: through SiLU after that.

    Returns:
        Bytes (1, C, h, w) uint8 in channels-last order; their step, not a number if a value is not finite; and the byte
        that means zero.
    """
    if _uses_core(image):
        x = image.detach().contiguous(memory_format=torch.channels_last)
        codes = torch.empty(x.shape, dtype=torch.uint8, device="cpu", memory_format=torch.channels_last)
        flat, bytes_ = (t.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for t in (x, codes))
        groups, weight, bias, eps = 0, None, None, 0.0
        if norm is not None:
            groups, eps = norm.num_groups, norm.eps
            weight, bias = (t.detach().float().numpy() for t in (norm.weight, norm.bias))
        core: Any = _core
        rest = (silu, _level(), torch.get_num_threads())
        step, zero_point = core.quantize_image(_array(flat), bytes_.numpy(), groups, weight, bias, eps, *rest)
        return codes, step, zero_point
    wide = image.detach().float()
    if norm is not None:
        wide = F.group_norm(wide, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps)
    if silu:
        wide = F.silu(wide)
    least, largest = min(float(wide.amin()), 0.0), max(float(wide.amax()), 0.0)
    step = max((largest / 2 - least / 2) / (_LARGEST_BYTE / 2), torch.finfo(torch.float32).tiny)
    if not step < float("inf"):
        return torch.zeros_like(wide, dtype=torch.uint8, memory_format=torch.channels_last), float("nan"), 0
    zero_point = round(-least / step)
    codes = wide.mul(1 / step).add_(zero_point).round_().clamp_(0, _LARGEST_BYTE)
    return codes.to(torch.uint8, memory_format=torch.channels_last), step, zero_point


def _in_c_order(rows: Tensor) -> Tensor:
    # contiguous() keeps odd strides along axes of length 1.
    if rows.stride() == (rows.shape[1], 1):
        return rows
    return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device).copy_(rows)
