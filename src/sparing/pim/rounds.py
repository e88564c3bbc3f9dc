"""Rounds: what of a layer's crossbars works at once. A dense layer takes one round a pixel, an epitome one a patch."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparing.pim.crossbar import CrossbarSize, num_planes
from sparing.pim.design import LayerDesign, layer_grid
from sparing.pim.epitome import EpitomeShape, Patch, WeightShape, patches_of
from sparing.pim.layers import LayerShape
from sparing.pim.tables import round_tables

__all__ = ["LayerRounds", "Round", "layer_rounds"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Round:
    """One patch on the crossbars.

    Attributes:
        rows: word lines driven in each block along the rows that is in use.
        cols: bit lines read in each block along the columns that is in use.
        copies: of the grid, for grouped convolutions.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    copies: int = 1

    @property
    def num_blocks(self) -> int:
        """Crossbar pairs of one plane in use."""
        return len(self.rows) * len(self.cols) * self.copies


@dataclass(frozen=True)
class LayerRounds:
    """A layer on crossbars, and what works when.

    Attributes:
        num_blocks: crossbar pairs of one plane.
        num_planes: of the weights.
        num_cells: that hold weights, of one plane.
        groups: for each group of output channels, its rounds in order; sums of one group are added up.
        fetched_channels: most input channels that one block needs over all rounds.
        computed_channels: output channels that are computed; fewer than the layer's where an epitome is wrapped.
        row_bits: of one row of IFAT, IFRT and OFAT together, a row for each round; 0 of a dense layer.
    """

    num_blocks: int
    num_planes: int
    num_cells: int
    groups: tuple[tuple[Round, ...], ...]
    fetched_channels: int
    computed_channels: int
    row_bits: int

    @property
    def num_rounds(self) -> int:
        """Rounds of one pixel."""
        return sum(map(len, self.groups))

    @property
    def num_crossbars(self) -> int:
        """Pairs of all planes, each counted once."""
        return self.num_blocks * self.num_planes

    @property
    def table_bits(self) -> int:
        """Bits of the three tables; 0 of a dense layer."""
        return self.row_bits * self.num_rounds


def layer_rounds(layer: LayerShape, design: LayerDesign, crossbar: CrossbarSize) -> LayerRounds:
    """Lays a layer on crossbars.

    Args:
        layer: the layer.
        design: dense or an epitome, and the bits.
        crossbar: the size.

    Raises:
        ShapeError: an epitome that does not fit the layer.
    """
    grid = layer_grid(layer, design, crossbar)
    planes = num_planes(design.bits)
    if design.epitome is None:
        groups: tuple[tuple[Round, ...], ...] = ((Round(grid.row_cuts, grid.col_cuts, grid.copies),),)
        fetched = max(1, max(grid.row_cuts) // (layer.kernel[0] * layer.kernel[1]))
        return LayerRounds(grid.num_blocks, planes, layer.num_weights, groups, fetched, layer.out_channels, 0)
    groups, fetched = _epitome_rounds(layer.weight_shape, design.epitome, crossbar)
    computed = design.epitome.out_channels if design.epitome.wrapped else layer.out_channels
    row_bits = sum(round_tables(layer, design).row_bits)
    cells = math.prod(design.epitome.size_of(layer.weight_shape))
    return LayerRounds(grid.num_blocks, planes, cells, groups, fetched, computed, row_bits)


@lru_cache(maxsize=4096)
def _epitome_rounds(
    weight_shape: WeightShape, epitome: EpitomeShape, crossbar: CrossbarSize
) -> tuple[tuple[tuple[Round, ...], ...], int]:
    """The rounds of one pixel, and the channels that one block needs over all of them."""
    patches = patches_of(weight_shape, epitome)
    if epitome.wrapped:
        patches = tuple(patch for patch in patches if patch.out_start == 0)
    stored, (p, q) = epitome.in_channels, epitome.kernel_of(weight_shape)
    per_block = crossbar.rows // (p * q)
    block_of = np.arange(stored) // max(1, per_block)  # the first block, where a channel is longer than a block
    needed = np.zeros((int(block_of[-1]) + 1, weight_shape[1]), np.bool_)
    groups: dict[int, list[Round]] = {}
    for patch in patches:
        blocks = block_of[(patch.from_in + np.arange(patch.num_in)) % stored]
        needed[blocks, patch.in_start + np.arange(patch.num_in)] = True
        channels = np.bincount(blocks, minlength=len(needed))
        if per_block:
            rows = channels * (weight_shape[2] * weight_shape[3])
        else:
            rows = np.outer(channels, _pieces(patch, weight_shape, (p, q), crossbar.rows)).ravel()
        found = Round(tuple(rows[rows > 0].tolist()), _cols(patch, crossbar.cols))
        groups.setdefault(patch.out_start, []).append(found)
    return tuple(map(tuple, groups.values())), int(needed.sum(1).max())


def _pieces(patch: Patch, weight_shape: WeightShape, kernel: tuple[int, int], rows: int) -> IntArray:
    """Word lines driven in each block of a channel whose kernel is longer than a block."""
    places = np.arange(weight_shape[2])[:, None] + patch.from_row, np.arange(weight_shape[3]) + patch.from_col
    lines = (places[0] * kernel[1] + places[1]).ravel() // rows
    return np.bincount(lines, minlength=math.ceil(kernel[0] * kernel[1] / rows))


def _cols(patch: Patch, cols: int) -> tuple[int, ...]:
    first, end = patch.from_out, patch.from_out + patch.num_out
    return tuple(min(end, (b + 1) * cols) - max(first, b * cols) for b in range(first // cols, (end - 1) // cols + 1))
