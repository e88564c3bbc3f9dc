"""Where layers lie on the chip, and over how many tiles their numbers travel.

Tiles are taken in the order of the steps along growing squares from a corner of the grid, down one side and back along
the other, the next square the other way round: neighbours in the network stay neighbours on the chip. Sums happen in an
accumulator in the middle of the left side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparing.pim.steps import Step

__all__ = ["Hops", "place_tiles", "placed_hops"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Hops:
    """Tiles that the numbers of a step pass.

    Attributes:
        inside: from the layer's farthest tile to the one that sends its results on.
        outside: from there to the farthest tile that reads them, or to the accumulator.
    """

    inside: int = 0
    outside: int = 0


def place_tiles(count: int) -> IntArray:
    """The first tiles of the order.

    Args:
        count: tiles, 0 or more.

    Returns:
        (count, 2) rows and columns in the grid.
    """
    side = math.isqrt(max(count - 1, 0)) + 1
    cells: list[IntArray] = []
    for shell in range(side):
        there = np.stack([np.arange(shell + 1), np.full(shell + 1, shell)], 1)
        back = np.stack([np.full(shell, shell), np.arange(shell - 1, -1, -1)], 1)
        cells += [there, back] if shell % 2 else [there[:, ::-1], back[:, ::-1]]
    return np.concatenate(cells)[:count].astype(np.int64)


def placed_hops(steps: Sequence[Step], num_tiles: Sequence[int], grid_side: int) -> list[Hops]:
    """Hops of each step; the tile that sends is the one with the fewest in all.

    Args:
        steps: in the order in which they are placed.
        num_tiles: of each step, 0 for a sum or a step off the chip.
        grid_side: tiles along a side; a square that holds all tiles takes its place where it is larger.

    Returns:
        Hops, step by step.
    """
    total = sum(num_tiles)
    middle = max(grid_side, math.isqrt(max(total - 1, 0)) + 1) / 2
    ends = np.cumsum(np.asarray(num_tiles, np.int64))[:-1]
    # Row by row, so that the first of several equally good tiles is the uppermost.
    tiles = [part[np.lexsort((part[:, 1], part[:, 0]))] for part in np.split(place_tiles(total), ends)]
    readers: dict[str, list[int]] = {step.name: [] for step in steps}
    for number, step in enumerate(steps):
        for name in step.inputs:
            readers.get(name, []).append(number)
    return [_hops(step, number, steps, tiles, readers[step.name], middle) for number, step in enumerate(steps)]


def _hops(
    step: Step, number: int, steps: Sequence[Step], tiles: list[IntArray], readers: list[int], middle: float
) -> Hops:
    own, mapped = tiles[number], [tiles[n] for n in readers if len(tiles[n])]
    if step.kind == "sum":
        return Hops(0, max((int(_to_accumulator(part[:1], middle)[0]) for part in mapped), default=0))
    if not len(own):
        return Hops()
    inner = _farthest(own, own)
    if readers and all(steps[n].kind == "sum" for n in readers):
        outer = _to_accumulator(own, middle)
    else:
        outer = _farthest(own, np.concatenate(mapped)) if mapped else np.zeros_like(inner)
    best = int(np.argmin(inner + outer))
    return Hops(int(inner[best]), int(outer[best]))


def _farthest(tiles: IntArray, others: IntArray) -> IntArray:
    """Hops from each tile to the farthest of the others, without diagonals."""
    down, across = others.sum(1), others[:, 0] - others[:, 1]
    own_down, own_across = tiles.sum(1), tiles[:, 0] - tiles[:, 1]
    sides = (own_down - down.min(), down.max() - own_down, own_across - across.min(), across.max() - own_across)
    farthest: IntArray = np.maximum.reduce(sides)
    return farthest


def _to_accumulator(tiles: IntArray, middle: float) -> IntArray:
    return np.abs(tiles[:, 0] - math.floor(middle)) + tiles[:, 1]
