"""What a layer's crossbars are asked for, step by step: which lines are driven together, and what becomes of the sums.

A round drives the word lines of its patch, in each block as many at once as there are DACs; each such group is one
conversion of every bit line that is read. Conversions of one block are added as integers, bit planes, cycles and signs
by their powers of two, and only then meet the steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparing.errors import ArgumentError
from sparing.pim.adc import AdcModel
from sparing.pim.mapping import Block, LayerMapping
from sparing.pim.nonideal import CONDUCTANCE_STEP
from sparing.quant.kernels import available_kernels, pack_weight

__all__ = ["Conversion", "LayerProgram", "Stage", "layer_program"]

_FLOAT32_EXACT = 1 << 24
WORD = 8
"""Input channels are stored in groups of so many bytes, which are copied as one word."""


@dataclass(frozen=True, eq=False)
class Conversion:
    """One group of word lines, driven together.

    Attributes:
        channels: input channels they belong to, ascending in the order of the lines, int64.
        weights: (kernel height · width · channels, N) conductances, float; 0 for lines that are not driven. N: sign,
            plane and bit line, or bit lines only where a whole product is taken at once.
        packed: the same for oneDNN, channels filled up to words; None where that kernel is not used.
        num_columns: N.
    """

    channels: Tensor
    weights: Tensor
    packed: Tensor | None
    num_columns: int


@dataclass(frozen=True, eq=False)
class Stage:
    """What one round takes from the blocks along one range of rows: conversions that are added as integers.

    Attributes:
        conversions: in the order of the word lines.
        out_start: first output channel.
        num_out: output channels.
        scale: float64 (num_out,): step of the block · step of the inputs · lsb.
    """

    conversions: tuple[Conversion, ...]
    out_start: int
    num_out: int
    scale: Tensor


@dataclass(frozen=True, eq=False)
class LayerProgram:
    """A layer, ready to be replayed on one device.

    Attributes:
        mapping: of the layer.
        adc: as given.
        stages: round by round, in the order of the tables.
        cycles: weights of the input cycles, the top bit's negative; one of 1 where a whole product is taken at once.
        planes: weights of sign and plane; one of 1 where a whole product is taken at once.
        lsb: of the ADC.
        analog: conductances other than 0 and 1.
        dtype: float32 if it holds every sum of integers exactly, else float64.
        width: output channels before repetition.
    """

    mapping: LayerMapping
    adc: AdcModel
    stages: tuple[Stage, ...]
    cycles: tuple[int, ...]
    planes: tuple[int, ...]
    lsb: float
    analog: bool
    dtype: torch.dtype
    width: int

    @property
    def whole(self) -> bool:
        """Whether whole products are taken at once instead of bits."""
        return len(self.cycles) == len(self.planes) == 1 and self.cycles[0] == 1


def layer_program(
    mapping: LayerMapping,
    adc: AdcModel,
    *,
    cells: Sequence[NDArray[np.float32]] | None = None,
    fast: bool = False,
    device: torch.device | None = None,
) -> LayerProgram:
    """Reads a layer's tables into stages.

    Args:
        mapping: of the layer.
        adc: how sums are read.
        cells: conductances block by block; None for those of the mapping.
        fast: one integer product instead of planes and cycles, for an ideal ADC.
        device: where it runs.

    Raises:
        ArgumentError: `fast` with a real ADC, or cells of other blocks.
    """
    blocks = mapping.blocks
    if fast and adc.bits is not None:
        raise ArgumentError("fast: only an ideal ADC may take whole products; give AdcModel(bits=None)")
    found = [mapping.block_cells(b) for b in blocks] if cells is None else list(cells)
    shapes = [(*mapping.cells.shape[:2], block.num_rows, block.num_cols) for block in blocks]
    if [c.shape for c in found] != shapes:
        raise ArgumentError(f"cells: {mapping.layer.name}: expected the blocks of this mapping, got others")
    analog = cells is not None and any(bool(((c != 0) & (c != 1)).any()) for c in found)
    planes, bits = mapping.cells.shape[0], mapping.activation_bits
    place = np.concatenate([2 ** np.arange(planes), -(2 ** np.arange(planes))])
    device = device or torch.device("cpu")
    dtype = _exact_dtype(mapping, adc, found, analog)
    # Conductances off the integers need the grid of their own in float32; whole products need sums of the full size.
    matmul = dtype if fast else _matmul_dtype(mapping, adc, found, analog)
    use_core = not (analog or fast) and device.type == "cpu" and "onednn" in available_kernels("cpu")
    stages = []
    lsb = adc.lsb
    for at in range(mapping.tables.num_rounds):
        for rows, part, steps in _stripes(blocks, found):
            stage = _stage(
                mapping, at, rows, part, steps, adc, place if fast else None, (matmul, device, use_core, lsb)
            )
            if stage is not None:
                stages.append(stage)
    cycles = (1,) if fast else (*(1 << k for k in range(bits - 1)), -(1 << (bits - 1)))
    width = int((mapping.tables.ofat[:, 1] + mapping.tables.ofat[:, 2]).max())
    weights = (1,) if fast else tuple(place.tolist())
    return LayerProgram(mapping, adc, tuple(stages), cycles, weights, lsb, analog, dtype, width)


def _stripes(
    blocks: Sequence[Block], cells: Sequence[NDArray[np.float32] | NDArray[np.uint8]]
) -> Iterator[tuple[Block, NDArray[np.float32], NDArray[np.float64]]]:
    """Blocks of the same rows side by side: their common place, their cells, and the step of each column."""
    start = 0
    while start < len(blocks):
        end, first = start + 1, blocks[start]
        while end < len(blocks) and blocks[end].row_start == first.row_start:
            end += 1
        part = blocks[start:end]
        cols = sum(block.num_cols for block in part)
        steps = np.concatenate([np.full(block.num_cols, block.step) for block in part])
        joined = np.concatenate(cells[start:end], axis=3).astype(np.float32)
        yield Block(first.row_start, first.num_rows, first.col_start, cols, first.step), joined, steps
        start = end


def _stage(
    mapping: LayerMapping,
    at: int,
    stripe: Block,
    cells: NDArray[np.float32],
    steps: NDArray[np.float64],
    adc: AdcModel,
    place: NDArray[np.int64] | None,
    where: tuple[torch.dtype, torch.device, bool, float],
) -> Stage | None:
    """What one round takes from a stripe; None if it reads none of its columns or drives none of its rows."""
    dtype, device, use_core, lsb = where
    tables = mapping.tables
    from_out, out_start, num_out = tables.ofat[at].tolist()
    low, high = max(from_out, stripe.col_start), min(from_out + num_out, stripe.col_start + stripe.num_cols)
    lines = tables.word_lines(at, mapping.stored_size, mapping.layer.kernel) - stripe.row_start
    features = np.argwhere((lines >= 0) & (lines < stripe.num_rows))
    if low >= high or not len(features):
        return None
    driven = lines[tuple(features.T)]
    order = driven.argsort()
    features, driven = features[order], driven[order]
    read = cells[..., low - stripe.col_start : high - stripe.col_start]
    in_start = int(tables.ifat[at, 0])
    conversions = []
    for start in range(0, len(driven), adc.num_dacs):
        group = slice(start, start + adc.num_dacs)
        channels, slots = np.unique(features[group, 0], return_inverse=True)
        depth = -(-len(channels) // WORD) * WORD if use_core else len(channels)
        (kh, kw), shape = mapping.layer.kernel, (2 * len(cells), high - low)
        weights = np.zeros((kh, kw, depth, *shape), np.float64)
        picked = read[:, :, driven[group]].transpose(2, 1, 0, 3).reshape(-1, *shape)
        weights[features[group, 1], features[group, 2], slots] = picked
        if place is not None:
            weights = (weights * place[:, None]).sum(3, keepdims=True)
        matrix = weights.reshape(kh * kw * depth, -1)
        packed = pack_weight(torch.from_numpy(matrix.T.astype(np.int8, order="C"))) if use_core else None
        dense = torch.empty(0) if use_core else torch.from_numpy(matrix).to(device, dtype)
        index = torch.from_numpy(in_start + channels).to(device)
        conversions.append(Conversion(index, dense, packed, matrix.shape[1]))
    scale = steps[low - stripe.col_start : high - stripe.col_start] * mapping.input_step * lsb
    return Stage(tuple(conversions), out_start + low - from_out, high - low, torch.from_numpy(scale).to(device))


def _grid(analog: bool) -> float:
    return 1 / CONDUCTANCE_STEP if analog else 1.0


def _exact_dtype(
    mapping: LayerMapping, adc: AdcModel, cells: Sequence[NDArray[np.float32] | NDArray[np.uint8]], analog: bool
) -> torch.dtype:
    """float32 where no sum of integers of the layer, in any order, passes 2**24; else float64."""
    rows = sum(mapping.grid.row_cuts)  # of one group, or of those together in a crossbar
    rounds, most = mapping.tables.num_rounds, max((float(c.max(initial=0)) for c in cells), default=0.0)
    if adc.bits is None:
        largest = rows * most * _grid(analog)
    else:
        conversions = sum(-(-block.num_rows // adc.num_dacs) for block in mapping.blocks)
        largest = conversions * adc.max_code
    weight = (2**mapping.activation_bits - 1) * (2 * (2 ** len(mapping.cells)) - 2)
    return torch.float32 if rounds * largest * weight < _FLOAT32_EXACT else torch.float64


def _matmul_dtype(
    mapping: LayerMapping, adc: AdcModel, cells: Sequence[NDArray[np.float32] | NDArray[np.uint8]], analog: bool
) -> torch.dtype:
    """The same for one conversion."""
    most = max((float(c.max(initial=0)) for c in cells), default=0.0)
    largest = min(mapping.crossbar.rows, adc.num_dacs) * most * _grid(analog)
    return torch.float32 if largest < _FLOAT32_EXACT else torch.float64
