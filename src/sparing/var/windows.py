r"""Multi-diagonal windowed attention: which pairs of tokens each head keeps.

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024, section 4.1. The queries of a scale see one *segment* of keys for
each scale so far. The oldest segments, the sink, stay visible; in the newer ones a query keeps a band of keys around
the place in raster order that corresponds to its own.

| paper's symbol | name here |
|---|---|
| w | ``width``: keep (i, j) iff \|i·N_k/N_q − j\| < w |
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError, ShapeError

__all__ = ["DENSE", "DROPPED", "Widths", "band", "first_windowed", "kept_pairs", "needed_widths", "scale_mask"]

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


def needed_widths(num_queries: int, num_keys: int) -> Widths:
    """The smallest width that keeps each of (num_queries, num_keys) pairs."""
    return _distance(num_queries, num_keys) // num_queries + 1


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
