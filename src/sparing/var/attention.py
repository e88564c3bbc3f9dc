"""One layer's attention at one scale: whole or windowed, by the fastest way that this machine has.

On CPUs with AVX-512's bfloat16 products, the compiled core attends to bfloat16 heads of 64 dimensions, and touches
only blocks of keys that a window shows; whole attention too is faster there than PyTorch's. Elsewhere windows are
computed in tiles where that pays, or as a mask. All ways give the same up to rounding.
"""

import importlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparing.var.tiles import TiledWindows
from sparing.var.windows import DENSE, Widths, first_windowed, scale_mask

_core: ModuleType | None
try:
    _core = importlib.import_module("sparing._core")
except ImportError:  # without the compiled core PyTorch does it all
    _core = None

__all__ = ["ScaleAttention", "native_level"]

_HEAD_DIM = 64
_TILED_QUERIES, _TILED_SHARE = 256, 0.6
"""Tiles pay for so many queries, if they compute at most this share of the pairs."""


@cache
def native_level() -> str | None:
    """Returns the level of the compiled core's attention that is fast on this CPU, or None."""
    levels = [] if _core is None else _core.available_attention()
    return "avx512bf16" if "avx512bf16" in levels else None


class ScaleAttention:
    """Attention of one layer at one scale.

    Args:
        patch_nums: side of each scale.
        scale: of the queries.
        widths: (windowed segments, heads) as :func:`~sparing.var.windows.scale_mask` takes them; None keeps all pairs.
        level: of the compiled core, ``"portable"`` or ``"avx512bf16"``; None never uses it.
    """

    def __init__(
        self, patch_nums: Sequence[int], scale: int, widths: Widths | None, *, level: str | None = None
    ) -> None:
        self._patch_nums, self._scale, self._widths, self._level = tuple(patch_nums), scale, widths, level
        sizes = np.array([p * p for p in patch_nums[: scale + 1]], dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        # All keys are a sink where nothing is windowed.
        first = scale + 1 if widths is None else first_windowed(scale)
        self._sink = int(starts[first])
        self._segments = np.ascontiguousarray(np.stack([starts[first:-1], sizes[first:]], 1))
        self._reach: np.ndarray[tuple[int, int], np.dtype[np.int32]] | None = None
        if widths is not None:
            reach = np.where(widths == DENSE, sizes[first:, None], np.minimum(widths, sizes[first:, None]))
            self._reach = np.ascontiguousarray(reach.T.astype(np.int32))
        self._tiles: TiledWindows | None = None
        self._mask: Tensor | None = None
        self._prepared = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float) -> Tensor:
        """Attends.

        Args:
            q: (R, H, n, D).
            k: (R, H, m, D), all keys so far.
            v: (R, H, m, E).
            softmax_scale: factor of QKᵀ.

        Returns:
            (R, H, n, E).
        """
        if self._is_native(q, k, v):
            return self._native(q, k, v, softmax_scale)
        if self._widths is None:
            return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
        if not self._prepared:
            self._prepare()
        if self._tiles is not None and v.shape[-1] == q.shape[-1]:
            return self._tiles(q, k, v, softmax_scale=softmax_scale)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(q.device), scale=softmax_scale)

    def mask(self, device: torch.device) -> Tensor | None:
        """Which pairs are kept, (1, heads, n, m) bool; None where all are."""
        if self._widths is None:
            return None
        if self._mask is None or self._mask.device != device:
            # Four axes: with three, PyTorch leaves its fused attention.
            mask = torch.from_numpy(scale_mask(self._patch_nums, self._scale, self._widths))
            self._mask = mask.to(device)[None]
        return self._mask

    @property
    def is_tiled(self) -> bool:
        """Whether windows are computed in tiles; known once it has attended."""
        return self._tiles is not None

    def _prepare(self) -> None:
        self._prepared = True
        if self._widths is not None and self._patch_nums[self._scale] ** 2 >= _TILED_QUERIES:
            tiles = TiledWindows(self._patch_nums, self._scale, self._widths)
            self._tiles = tiles if tiles.share <= _TILED_SHARE else None

    def _is_native(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        return (
            self._level is not None
            and q.device.type == "cpu"
            and all(t.dtype == torch.bfloat16 and t.shape[-1] == _HEAD_DIM and t.stride(-1) == 1 for t in (q, k, v))
        )

    def _native(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        out = torch.empty_like(q)
        arrays = [t.detach().view(torch.uint16).numpy() for t in (q, k, v, out)]
        reach = self._reach
        if reach is None:
            reach = np.zeros((q.shape[1], 0), dtype=np.int32)
        core: Any = _core
        threads = torch.get_num_threads()
        core.attend(*arrays, self._segments, reach, self._sink, softmax_scale, self._level, threads)
        return out
