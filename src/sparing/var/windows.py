r"""Multi-diagonal windowed attention: which pairs of tokens each head keeps, and how the windows are found.

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024, section 4.1. The queries of a scale see one *segment* of keys for
each scale so far. The oldest segments, the sink, stay visible; in the newer ones a query keeps a band of keys around
the place in raster order that corresponds to its own.

| paper's symbol | name here |
|---|---|
| w | ``width``: keep (i, j) iff \|i·N_k/N_q − j\| < w |
| τ | ``tau``: share of a segment's attention that its window must hold |
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparing.errors import ArgumentError, ShapeError

__all__ = ["DENSE", "DROPPED", "WindowSearch", "band", "first_windowed", "kept_pairs", "scale_mask", "search_windows"]

DENSE, DROPPED = -1, 0
_FIRST_SCALE = 3
"""Scales before this one keep all their attention."""

Widths = npt.NDArray[np.int64]


def first_windowed(scale: int) -> int:
    """Returns the first segment that is windowed for queries of a scale; the ones before it are the sink.

    For ten scales the newest 2, 3, 3, 4, 5, 6, 7 of scales 3 to 9 are windowed, and from scale 5 on the sink is the 14
    tokens of the first three.
    """
    if scale < _FIRST_SCALE:
        return scale + 1
    return 2 if scale < _FIRST_SCALE + 2 else 3


def band(num_queries: int, num_keys: int, width: int) -> npt.NDArray[np.bool_]:
    """Returns which of (num_queries, num_keys) pairs a window of a width keeps; :data:`DENSE` keeps all."""
    if width == DENSE:
        return np.ones((num_queries, num_keys), dtype=np.bool_)
    return _distance(num_queries, num_keys) < width * num_queries


def _distance(num_queries: int, num_keys: int) -> Widths:
    """Distances times `num_queries`: whole numbers, so that a pair at the very edge of a window is never in doubt."""
    distance: Widths = np.abs(np.arange(num_queries)[:, None] * num_keys - np.arange(num_keys) * num_queries)
    return distance


def _check(patch_nums: Sequence[int], scale: int, widths: Widths) -> None:
    expected = scale + 1 - first_windowed(scale)
    if widths.ndim != 2 or widths.shape[0] != expected:
        raise ShapeError(
            f"widths: expected ({expected}, heads) for scale {scale} of {len(patch_nums)}, got {widths.shape}"
        )
    if widths.min(initial=0) < DENSE:
        raise ArgumentError(f"widths: expected {DENSE} (dense), {DROPPED} (dropped) or more, got {widths.min()}")


def scale_mask(patch_nums: Sequence[int], scale: int, widths: Widths) -> npt.NDArray[np.bool_]:
    """Which keys each query of a scale sees.

    Args:
        patch_nums: side of each scale.
        scale: of the queries.
        widths: (windowed segments, heads) integers: a width, :data:`DENSE`, or :data:`DROPPED` for none of the segment.

    Returns:
        (heads, N_q, keys of all scales up to this one) bool.

    Raises:
        ShapeError, ArgumentError: widths that do not fit the scale.
    """
    _check(patch_nums, scale, widths)
    num_queries, first = patch_nums[scale] ** 2, first_windowed(scale)
    parts = []
    for segment in range(scale + 1):
        num_keys = patch_nums[segment] ** 2
        rows = [DENSE] * widths.shape[1] if segment < first else widths[segment - first].tolist()
        parts.append(np.stack([band(num_queries, num_keys, width) for width in rows]))
    return np.concatenate(parts, 2)


def kept_pairs(patch_nums: Sequence[int], scale: int, widths: Widths | None) -> npt.NDArray[np.int64]:
    """How many pairs of query and key each head keeps at a scale.

    Args:
        patch_nums: side of each scale.
        scale: of the queries.
        widths: as :func:`scale_mask`, or None where all pairs are kept: then one count for all heads.

    Returns:
        (heads,) or (1,).
    """
    num_queries = patch_nums[scale] ** 2
    sizes = [p * p for p in patch_nums[: scale + 1]]
    if widths is None:
        return np.array([num_queries * sum(sizes)])
    _check(patch_nums, scale, widths)
    first = first_windowed(scale)
    total = np.full(widths.shape[1], num_queries * sum(sizes[:first]), dtype=np.int64)
    for row, num_keys in zip(widths, sizes[first:], strict=True):
        places = np.arange(num_queries)[:, None] * num_keys
        # |c − j| < w: the integers strictly between c − w and c + w, within the segment; c = places / num_queries.
        low = np.maximum(places // num_queries - row + 1, 0)
        high = np.minimum(-(-places // num_queries) + row - 1, num_keys - 1)
        counts = np.maximum(high - low + 1, 0).sum(0)
        total += np.where(row == DENSE, num_queries * num_keys, counts)
    return total


@dataclass(frozen=True)
class WindowSearch:
    """How windows are found.

    Attributes:
        tau: share of a segment's attention that its window must hold.
        threshold: entries of the attention map below this count as zero.
        floors: a segment with less than this share of its rows' attention is dropped; one value, or one a scale.
    """

    tau: float = 0.95
    threshold: float = 0.003
    floors: tuple[float, ...] = (0.03,)

    def floor(self, scale: int) -> float:
        """Returns the floor of a scale; the last value serves all further scales."""
        return self.floors[min(scale, len(self.floors) - 1)]


def search_windows(attention: Tensor, patch_nums: Sequence[int], scale: int, search: WindowSearch) -> Widths:
    """Finds the smallest windows that hold the wanted share of each segment's attention.

    Args:
        attention: (heads, N_q, keys so far) float, softmax rows: an average or a maximum over calibration images.
        patch_nums: side of each scale.
        scale: of the queries.
        search: the wanted shares.

    Returns:
        (windowed segments, heads) int64, empty along the first axis for scales that stay dense.
    """
    first, num_queries = first_windowed(scale), patch_nums[scale] ** 2
    ends = np.cumsum([p * p for p in patch_nums[: scale + 1]])
    if attention.ndim != 3 or tuple(attention.shape[1:]) != (num_queries, ends[-1]):
        raise ShapeError(
            f"attention: expected (heads, {num_queries}, {ends[-1]}) for scale {scale}, got {tuple(attention.shape)}"
        )
    heads = attention.shape[0]
    mass = attention.double().sum((1, 2))
    kept = torch.where(attention < search.threshold, 0, attention).double()
    widths = np.full((max(scale + 1 - first, 0), heads), DENSE, dtype=np.int64)
    for row, segment in enumerate(range(first, scale + 1)):
        num_keys = patch_nums[segment] ** 2
        block = kept[:, :, int(ends[segment]) - num_keys : int(ends[segment])]
        inside = block.sum((1, 2))
        # A pair at distance d is kept from the width floor(d) + 1 on.
        needed = torch.from_numpy(_distance(num_queries, num_keys) // num_queries + 1).to(block.device)
        by_width = torch.zeros(heads, num_keys + 1, dtype=torch.float64, device=block.device)
        by_width.index_add_(1, needed.flatten().clamp_max(num_keys), block.flatten(1))
        enough = by_width.cumsum(1) >= search.tau * inside[:, None] - 1e-12
        width = enough.int().argmax(1).clamp_min(1)
        dropped = (inside / mass < search.floor(scale)) | (inside == 0)
        width = torch.where(dropped, DROPPED, width)
        widths[row] = torch.where(width >= num_keys, DENSE, width).cpu().numpy()
    return widths
