r"""How windows are found: from attention maps of calibration images, by one of two rules.

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024, section 4.1: every segment of every head gets the smallest window that
holds τ of that segment's own attention (:func:`search_windows`). Ours (:func:`balance_windows`): τ of all the attention
of a layer is held, with the fewest pairs; where a pair holds little, windows shrink, whatever segment it is in.

| paper's symbol | name here |
|---|---|
| τ | ``tau``: share of the attention that windows must hold |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparing.errors import ArgumentError, NonFiniteError, ShapeError
from sparing.var.windows import DENSE, DROPPED, Widths, first_windowed, needed_widths

__all__ = ["WindowSearch", "balance_windows", "search_windows"]

_HALVINGS = 60


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

    Raises:
        NonFiniteError: NaN or infinity in the map.
        ShapeError: a map of another shape.
    """
    first, heads = first_windowed(scale), attention.shape[0]
    _check_attention(attention, patch_nums, scale)
    mass = attention.double().sum((1, 2))
    kept = torch.where(attention < search.threshold, 0, attention).double()
    widths = np.full((max(scale + 1 - first, 0), heads), DENSE, dtype=np.int64)
    for row, segment in enumerate(range(first, scale + 1)):
        num_keys = patch_nums[segment] ** 2
        block = _segment(kept, patch_nums, segment)
        inside = block.sum((1, 2))
        enough = _held_by_width(block) >= search.tau * inside[:, None] - 1e-12
        width = enough.int().argmax(1).clamp_min(1)
        dropped = (inside / mass < search.floor(scale)) | (inside == 0)
        width = torch.where(dropped, DROPPED, width)
        widths[row] = torch.where(width >= num_keys, DENSE, width).cpu().numpy()
    return widths


def balance_windows(attention: Mapping[int, Tensor], patch_nums: Sequence[int], tau: float) -> dict[int, Widths]:
    """Finds the windows that together hold τ of a layer's attention with the fewest pairs of query and key.

    One price for all pairs: each segment of each head takes the width whose attention, less its pairs at that price, is
    largest; the price is the highest at which τ is still held. So no other windows with as few pairs hold more, but for
    the steps between prices.

    Args:
        attention: of the scales with windows, (heads, N_q, keys so far) float, softmax rows, averaged over images.
        patch_nums: side of each scale.
        tau: share of all rows' attention, the always visible part counted in, > 0 and at most 1.

    Returns:
        For each of these scales (windowed segments, heads) int64. Cost: a pass over the maps, then 60 over their
        widths.

    Raises:
        ArgumentError: τ out of range, or a scale without windows.
        NonFiniteError: NaN or infinity in a map.
        ShapeError: a map of another shape.
    """
    if not 0 < tau <= 1:
        raise ArgumentError(f"tau: expected more than 0 and at most 1, got {tau}")
    held, pairs, total, visible = [], [], 0.0, 0.0
    for scale, found in attention.items():
        _check_attention(found, patch_nums, scale)
        first, rows = first_windowed(scale), found.double()
        if first > scale:
            raise ArgumentError(f"attention: expected scales with windows, got scale {scale}")
        total += float(rows.sum())
        visible += float(rows[:, :, : sum(p * p for p in patch_nums[:first])].sum())
        for segment in range(first, scale + 1):
            held.append(_held_by_width(_segment(rows, patch_nums, segment)).cpu().numpy())
            needed = needed_widths(patch_nums[scale] ** 2, patch_nums[segment] ** 2)
            pairs.append(np.bincount(needed.clip(max=patch_nums[segment] ** 2).ravel()).cumsum())

    def at_price(price: float) -> list[Widths]:
        return [(own - price * count).argmax(1) for own, count in zip(held, pairs, strict=True)]

    def enough(widths: list[Widths]) -> bool:
        kept = sum(float(own[np.arange(len(own)), row].sum()) for own, row in zip(held, widths, strict=True))
        return visible + kept >= tau * total - 1e-9

    # A pair of query and key holds at most 1.
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(at_price(middle)) else (low, middle)
    rows_of = iter(zip(at_price(low), held, strict=True))
    result = {}
    for scale in attention:
        own = [next(rows_of) for _ in range(first_windowed(scale), scale + 1)]
        result[scale] = np.stack([np.where(row == table.shape[1] - 1, DENSE, row) for row, table in own])
    return result


def _check_attention(attention: Tensor, patch_nums: Sequence[int], scale: int) -> None:
    expected = patch_nums[scale] ** 2, sum(p * p for p in patch_nums[: scale + 1])
    if attention.ndim != 3 or tuple(attention.shape[1:]) != expected:
        raise ShapeError(
            f"attention: expected (heads, {expected[0]}, {expected[1]}) for scale {scale}, got {tuple(attention.shape)}"
        )
    if not bool(attention.isfinite().all()):
        raise NonFiniteError(f"attention: scale {scale}: expected finite shares, got NaN or infinity")


def _segment(attention: Tensor, patch_nums: Sequence[int], segment: int) -> Tensor:
    """The keys of one scale."""
    start = sum(p * p for p in patch_nums[:segment])
    return attention[:, :, start : start + patch_nums[segment] ** 2]


def _held_by_width(block: Tensor) -> Tensor:
    """What a window of each width holds: (heads, keys + 1), of (heads, queries, keys)."""
    heads, num_queries, num_keys = block.shape
    needed = torch.from_numpy(needed_widths(num_queries, num_keys)).to(block.device)
    by_width = torch.zeros(heads, num_keys + 1, dtype=torch.float64, device=block.device)
    by_width.index_add_(1, needed.flatten().clamp_max(num_keys), block.flatten(1))
    return by_width.cumsum(1)
