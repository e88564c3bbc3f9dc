"""The decoder's norm, SiLU and convolution: PyTorch's three steps in bfloat16 against one pass and integer products."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sparing.quant import Int8Conv2d

SHAPES = ((640, 640, 16), (640, 320, 32), (320, 320, 64), (320, 160, 128), (160, 160, 256))
NUM_GROUPS = 32


def measure(shapes: tuple[tuple[int, int, int], ...] = SHAPES, *, rounds: int) -> list[dict[str, Any]]:
    """Best of the rounds for each shape (channels in, out, side); ways take turns."""
    rows = []
    for shape in shapes:
        rows.append(_measure_one(*shape, rounds=5 * rounds))
        print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def _measure_one(before: int, after: int, side: int, *, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    norm, conv = nn.GroupNorm(NUM_GROUPS, before).bfloat16(), nn.Conv2d(before, after, 3, padding=1).bfloat16()
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    integer = Int8Conv2d.from_conv2d(conv)
    x = torch.randn(1, before, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
    plain, ours = _take_turns([lambda: conv(F.silu(norm(x))), lambda: integer(x, norm=norm, silu=True)], rounds=rounds)
    found = integer(x, norm=norm, silu=True).float()
    exact = conv.float()(F.silu(norm.float()(x.float())))
    return {
        "channels": [before, after],
        "side": side,
        "gflop": round(2 * 9 * before * after * side**2 / 1e9, 2),
        "bfloat16_ms": round(1e3 * plain, 3),
        "int8_ms": round(1e3 * ours, 3),
        "speedup": round(plain / ours, 3),
        "relative_error": round(float((found - exact).norm() / exact.norm()), 5),
    }


def _take_turns(ways: list[Callable[[], torch.Tensor]], *, rounds: int) -> list[float]:
    best = [float("inf")] * len(ways)
    for turn in range(rounds + 1):
        for i, way in enumerate(ways):
            start = time.perf_counter()
            way()
            if turn:
                best[i] = min(best[i], time.perf_counter() - start)
    return best
