"""Windowed attention that really skips, at 512² and 1024²: time of every scale's attention against the whole.

No weights of these models are at hand, so the windows are set by a rule: each covers the same share of its segment.
What the share keeps of all pairs is counted and shown beside the time.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sparing.var.attention import ScaleAttention, native_level
from sparing.var.config import PATCH_NUMS_512, PATCH_NUMS_1024
from sparing.var.windows import Widths, first_windowed, kept_pairs

SHARES = (0.32, 0.16, 0.08, 0.04)
SCHEDULES = {"512²": PATCH_NUMS_512, "1024²": PATCH_NUMS_1024}


def share_widths(patch_nums: tuple[int, ...], scale: int, share: float, heads: int) -> Widths:
    """Windows that reach half a share of the segment to each side."""
    sizes = [p * p for p in patch_nums[first_windowed(scale) : scale + 1]]
    return np.array([[max(1, round(share * size / 2))] * heads for size in sizes], dtype=np.int64)


def measure(
    schedule: str, *, heads: int, rows: int, rounds: int, dtype: torch.dtype, device: str = "cpu", head_dim: int = 64
) -> list[dict[str, Any]]:
    """For no windows and each share: pairs removed, and times of all scales' attention of a layer; ways take turns."""
    patch_nums = SCHEDULES[schedule]
    generator = torch.Generator(device).manual_seed(0)
    sizes = [p * p for p in patch_nums]
    ends = np.cumsum(sizes)
    total, results = int(ends[-1]), []
    keys = F.normalize(torch.randn(rows, heads, total, head_dim, device=device, generator=generator), dim=-1).to(dtype)
    values = torch.randn(rows, heads, total, head_dim, device=device, generator=generator).to(dtype)
    queries = [
        F.normalize(torch.randn(rows, heads, n, head_dim, device=device, generator=generator), dim=-1).mul(8).to(dtype)
        for n in sizes
    ]

    def attend(ways: dict[int, ScaleAttention] | None) -> None:
        """All scales of one layer: PyTorch's whole attention, or ours."""
        for scale, (q, end) in enumerate(zip(queries, ends, strict=True)):
            k, v = keys[:, :, :end], values[:, :, :end]
            if ways is None:
                F.scaled_dot_product_attention(q, k, v, scale=1.0)
            else:
                ways[scale](q, k, v, softmax_scale=1.0)

    everything = heads * sum(n * int(end) for n, end in zip(sizes, ends, strict=True))
    for share in (None, *SHARES):
        widths = {
            s: None if share is None or s < 3 else share_widths(patch_nums, s, share, heads) for s in range(len(sizes))
        }
        kept = sum(int(kept_pairs(patch_nums, s, w).sum()) * (heads if w is None else 1) for s, w in widths.items())
        columns = {"PyTorch, whole": None} | {
            name: {s: ScaleAttention(patch_nums, s, w, level=level) for s, w in widths.items()}
            for name, level in (("compiled core", native_level()), ("tiles in PyTorch", None))
        }
        times: dict[str, list[float]] = {name: [] for name in columns}
        for turn in range(rounds + 1):
            for name, ways in columns.items():
                start = time.perf_counter()
                attend(ways)
                if device != "cpu":
                    torch.cuda.synchronize()
                if turn:
                    times[name].append(time.perf_counter() - start)
        base = times["PyTorch, whole"]
        row: dict[str, Any] = {
            "schedule": schedule,
            "share_of_segment": share,
            "pairs_removed": round(1 - kept / everything, 4),
            "heads": heads,
            "rows": rows,
            "level": native_level(),
        }
        for name, seconds in times.items():
            ratios = [a / b for a, b in zip(base, seconds, strict=True)]
            row[name] = {
                "best_s": round(min(seconds), 5),
                "speedup": round(min(base) / min(seconds), 3),
                "speedup_range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
        results.append(row)
        print(row, flush=True)
    return results
