"""Windowed attention that skips what it does not need: tiles of queries against just the keys that one of them sees.

The keys that a window shows to neighbouring queries lie side by side in each segment, so a tile of queries needs one
slice of every segment. The slices are joined and attended to at once; a mask cuts them to each query's and head's own
window. Heads of like widths share slices. The result is that of full attention under a mask of the same windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparing.var.windows import DENSE, DROPPED, Widths, first_windowed

__all__ = ["TiledWindows"]

_TILE = 64
_MAX_GROUPS = 4


@dataclass(frozen=True)
class _Tile:
    """Queries [begin, end) and the slices of keys that at least one head of the group shows to one of them."""

    begin: int
    end: int
    slices: tuple[tuple[int, int], ...]
    segments: tuple[int, ...]


@dataclass(frozen=True)
class _Group:
    heads: Tensor | None
    widths: Tensor
    tiles: tuple[_Tile, ...]


class TiledWindows:
    """One layer's windowed attention at one scale.

    Args:
        patch_nums: side of each scale.
        scale: of the queries.
        widths: (windowed segments, heads) as :func:`~sparing.var.windows.scale_mask` takes them.
        tile: queries a tile.
        max_groups: heads are put into at most so many groups of like widths.

    Attributes:
        share: pairs computed over all pairs, 0 to 1: a little more than the windows keep.
    """

    def __init__(
        self, patch_nums: Sequence[int], scale: int, widths: Widths, *, tile: int = _TILE, max_groups: int = _MAX_GROUPS
    ) -> None:
        self._sizes = [p * p for p in patch_nums[: scale + 1]]
        self._starts = [0, *np.cumsum(self._sizes).tolist()]
        self._first, self._num_queries = first_windowed(scale), self._sizes[scale]
        sizes = np.array(self._sizes[self._first :])[:, None]
        whole = np.where(widths == DENSE, sizes, widths)
        order = np.argsort(np.minimum(2 * whole, sizes).sum(0), kind="stable")
        self._groups = tuple(
            self._group(np.sort(heads), whole, tile) for heads in np.array_split(order, max_groups) if len(heads)
        )
        if np.all(whole == whole[:, :1]):
            self._groups = (self._group(np.arange(widths.shape[1]), whole, tile),)
        computed = sum(
            len(group.widths) * (t.end - t.begin) * sum(b - a for a, b in t.slices)
            for group in self._groups
            for t in group.tiles
        )
        self.share = computed / (widths.shape[1] * self._num_queries * self._starts[-1])

    def _group(self, heads: np.ndarray[tuple[int], np.dtype[np.int64]], whole: Widths, tile: int) -> _Group:
        widest = whole[:, heads].max(1)
        tiles = []
        for begin in range(0, self._num_queries, tile):
            end = min(begin + tile, self._num_queries)
            slices, segments = [(0, self._starts[self._first])], [-1]
            for row, width in enumerate(widest.tolist()):
                segment = self._first + row
                # In whole numbers: a rounded quotient would move keys across a window's edge.
                size = self._sizes[segment]
                low = max(0, begin * size // self._num_queries - width + 1)
                high = min(size, -(-(end - 1) * size // self._num_queries) + width)
                if width != DROPPED and low < high:
                    slices.append((self._starts[segment] + low, self._starts[segment] + high))
                    segments.append(row)
            tiles.append(_Tile(begin, end, tuple(slices), tuple(segments)))
        everyone = len(heads) == whole.shape[1]
        return _Group(
            None if everyone else torch.from_numpy(heads), torch.from_numpy(whole[:, heads].T.copy()), tuple(tiles)
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float) -> Tensor:
        """Attends.

        Args:
            q: (R, H, N_q, D).
            k: (R, H, m, D), all keys so far.
            v: (R, H, m, D).
            softmax_scale: factor of QKᵀ.

        Returns:
            (R, H, N_q, D).
        """
        out = torch.empty_like(q)
        for group in self._groups:
            heads = None if group.heads is None else group.heads.to(q.device)
            ours = [t if heads is None else t[:, heads] for t in (q, k, v)]
            widths = group.widths.to(q.device)
            for tile in group.tiles:
                keys, values = (torch.cat([t[:, :, a:b] for a, b in tile.slices], 2) for t in ours[1:])
                done = F.scaled_dot_product_attention(
                    ours[0][:, :, tile.begin : tile.end],
                    keys,
                    values,
                    attn_mask=self._mask(tile, widths),
                    scale=softmax_scale,
                )
                if heads is None:
                    out[:, :, tile.begin : tile.end] = done
                else:
                    out[:, heads, tile.begin : tile.end] = done
        return out

    def _mask(self, tile: _Tile, widths: Tensor) -> Tensor:
        """(1, heads, queries, keys) bool, or (1, 1, queries, keys) where all heads have the same widths."""
        device = widths.device
        queries = torch.arange(tile.begin, tile.end, device=device)
        distances, limits = [], []
        same = bool((widths == widths[:1]).all())
        for (begin, end), row in zip(tile.slices, tile.segments, strict=True):
            length = end - begin
            if row < 0:  # the sink
                distances.append(torch.zeros(len(queries), length, device=device, dtype=torch.int64))
                limits.append(torch.ones(1 if same else len(widths), 1, length, device=device, dtype=torch.int64))
                continue
            segment = self._first + row
            keys = torch.arange(begin, end, device=device) - self._starts[segment]
            distances.append((queries[:, None] * self._sizes[segment] - keys * self._num_queries).abs_())
            limit = widths[:1, row] if same else widths[:, row]
            limits.append((limit * self._num_queries)[:, None, None].expand(-1, 1, length))
        # Four axes: with three, PyTorch leaves its fused attention.
        return (torch.cat(distances, 1) < torch.cat(limits, 2))[None]
