"""Windowed attention that really skips, at 512² and 1024²: time of every scale's attention against the whole, in turn.

No weights of these models are at hand, so the windows are set by a rule: each covers the same share of its segment.
What the share keeps of all pairs is counted and shown beside the time.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sparing.var.config import PATCH_NUMS_512, PATCH_NUMS_1024
from sparing.var.tiles import TiledWindows
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
    """For each share: pairs kept, and best times of all scales' attention of one layer, dense and windowed."""
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

    def dense() -> None:
        for q, end in zip(queries, ends, strict=True):
            F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], scale=1.0)

    for share in SHARES:
        widths = {s: share_widths(patch_nums, s, share, heads) for s in range(3, len(sizes))}
        tiles = {s: TiledWindows(patch_nums, s, w) for s, w in widths.items() if sizes[s] >= 256}

        def windowed(tiles: dict[int, TiledWindows] = tiles) -> None:
            for scale, (q, end) in enumerate(zip(queries, ends, strict=True)):
                k, v = keys[:, :, :end], values[:, :, :end]
                if scale in tiles:
                    tiles[scale](q, k, v, softmax_scale=1.0)
                else:
                    F.scaled_dot_product_attention(q, k, v, scale=1.0)

        kept = sum(
            int(kept_pairs(patch_nums, s, widths.get(s)).sum()) * (1 if s in widths else heads)
            for s in range(len(sizes))
        )
        everything = heads * sum(n * int(end) for n, end in zip(sizes, ends, strict=True))
        times = {"dense": [], "windowed": []}
        for turn in range(rounds + 1):
            for name, work in (("dense", dense), ("windowed", windowed)):
                start = time.perf_counter()
                work()
                if device != "cpu":
                    torch.cuda.synchronize()
                if turn:
                    times[name].append(time.perf_counter() - start)
        ratios = [a / b for a, b in zip(times["dense"], times["windowed"], strict=True)]
        results.append(
            {
                "schedule": schedule,
                "share_of_segment": share,
                "pairs_removed": round(1 - kept / everything, 4),
                "dense_s": round(min(times["dense"]), 5),
                "windowed_s": round(min(times["windowed"]), 5),
                "speedup": round(min(times["dense"]) / min(times["windowed"]), 3),
                "speedup_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "heads": heads,
                "rows": rows,
            }
        )
        print(results[-1], flush=True)
    return results
