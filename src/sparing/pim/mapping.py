"""What is put on the chip: the cells of every crossbar of a layer, the step of each block, and the tables.

Rows of a layer's matrix are (input channel, kernel row, kernel column) of the stored epitome, columns its output
channels. A block (r, c) of the matrix is a crossbar pair of each plane: codes are sign and magnitude, plane k holds the
magnitude's bit k, and the pair's first crossbar holds positive codes, its second one negative codes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.pim.crossbar import FLOAT_BITS, BlockGrid, CrossbarSize, num_planes
from sparing.pim.design import LayerDesign, NetworkDesign, layer_grid
from sparing.pim.layers import LayerShape, NetworkShape, check_plain
from sparing.pim.quantized_layers import quantized_layers
from sparing.pim.tables import RoundTables, round_tables, stored_size

__all__ = ["Block", "LayerMapping", "NetworkMapping", "map_layer", "map_network"]


@dataclass(frozen=True)
class Block:
    """One crossbar pair of each plane, as a part of the layer's matrix (of all groups' channels).

    Attributes:
        row_start, num_rows: word lines in use.
        col_start, num_cols: bit lines in use.
        step: of its codes, > 0.
    """

    row_start: int
    num_rows: int
    col_start: int
    num_cols: int
    step: float


@dataclass(frozen=True, eq=False)
class LayerMapping:
    """A layer on crossbars.

    Attributes:
        layer: its shape.
        design: epitome or dense, and bits b.
        crossbar: the size.
        activation_bits: of the inputs' two's complement codes, fed bit by bit, 1 to 16.
        input_step: of the inputs' codes, > 0.
        cells: (b − 1) × 2 × rows × columns uint8 of 0 and 1: plane (lowest bit first), sign (positive, negative), and
            the matrix; of a grouped convolution the rows of one group × the columns of all.
        steps: float32, > 0, row blocks × column blocks, those of a grouped convolution copy by copy.
        tables: the rounds.

    Raises:
        ArgumentError, DtypeError, ShapeError: parts that do not fit each other; says which.
    """

    layer: LayerShape
    design: LayerDesign
    crossbar: CrossbarSize
    activation_bits: int
    input_step: float
    cells: NDArray[np.uint8]
    steps: NDArray[np.float32]
    tables: RoundTables

    def __post_init__(self) -> None:
        bits = self.design.bits
        if bits == FLOAT_BITS:
            raise ArgumentError(f"design: {self.layer.name}: expected 2 to 16 bits, got {bits}: quantize it first")
        if not 1 <= self.activation_bits <= 16:
            raise ArgumentError(f"activation_bits: expected 1 to 16, got {self.activation_bits}")
        if not 0 < self.input_step < float("inf"):
            raise ArgumentError(f"input_step: expected a finite number above 0, got {self.input_step}")
        shape = (num_planes(bits), 2, *_matrix_shape(self.layer, self.design))
        if self.cells.shape != shape or self.cells.dtype != np.uint8:
            raise ShapeError(f"cells: expected uint8 {shape}, got {self.cells.dtype} {self.cells.shape}")
        if self.cells.size and int(self.cells.max()) > 1:
            raise ArgumentError(f"cells: expected 0 and 1, got {int(self.cells.max())}")
        blocks = (len(self.grid.row_cuts), len(self.grid.col_cuts) * self.grid.copies)
        if self.steps.shape != blocks or self.steps.dtype != np.float32:
            raise ShapeError(f"steps: expected float32 {blocks}, got {self.steps.dtype} {self.steps.shape}")
        if not bool(((self.steps > 0) & (self.steps < np.inf)).all()):
            raise ArgumentError("steps: expected finite numbers above 0")
        self.tables.check(self.layer, self.stored_size)

    @cached_property
    def grid(self) -> BlockGrid:
        """The cuts of one plane."""
        return layer_grid(self.layer, self.design, self.crossbar)

    @property
    def stored_size(self) -> tuple[int, int, int, int]:
        """(Eo, Ei, p, q); of a dense layer with the channels of all groups."""
        return stored_size(self.layer, self.design)

    @property
    def num_crossbars(self) -> int:
        """Pairs of all planes, each counted once."""
        return self.grid.num_blocks * num_planes(self.design.bits)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, copy by copy, rows before columns; the last copy of a diagonal may be smaller than the rest."""
        grid, rows_each = self.grid, self.cells.shape[2]
        together = sum(grid.row_cuts) // rows_each if self.layer.groups > 1 else 1
        rows, cols = self._total_rows, self.layer.out_channels if self.design.epitome is None else self.cells.shape[3]
        copy_rows, copy_cols = rows_each * together, sum(grid.col_cuts)
        found = []
        for copy in range(grid.copies):
            row = copy * copy_rows
            for r, num_rows in enumerate(grid.row_cuts):
                col = copy * copy_cols
                for c, num_cols in enumerate(grid.col_cuts):
                    step = float(self.steps[r, copy * len(grid.col_cuts) + c])
                    found.append(Block(row, min(num_rows, rows - row), col, min(num_cols, cols - col), step))
                    col += num_cols
                row += num_rows
        return tuple(found)

    def block_cells(self, block: Block) -> NDArray[np.uint8]:
        """The cells in use of a block.

        Returns:
            (b − 1) × 2 × num_rows × num_cols uint8, a copy; where several groups share a crossbar, 0 off the diagonal.
        """
        rows_each, cols = self.cells.shape[2], slice(block.col_start, block.col_start + block.num_cols)
        if self.layer.groups == 1:
            return self.cells[:, :, block.row_start : block.row_start + block.num_rows, cols].copy()
        outs = self.layer.out_channels // self.layer.groups
        rows = block.row_start + np.arange(block.num_rows)
        picked = self.cells[:, :, rows % rows_each, cols]
        same = (rows // rows_each)[:, None] == np.arange(cols.start, cols.stop) // outs
        return np.ascontiguousarray(picked * same.astype(np.uint8))

    def codes(self) -> NDArray[np.int16]:
        """The codes of the matrix, as they were mapped."""
        magnitudes = np.tensordot(2 ** np.arange(len(self.cells)), self.cells.astype(np.int32), 1)
        codes: NDArray[np.int16] = (magnitudes[0] - magnitudes[1]).astype(np.int16)
        return codes

    @property
    def _total_rows(self) -> int:
        return int(self.cells.shape[2]) * self.layer.groups


@dataclass(frozen=True, eq=False)
class NetworkMapping:
    """The mapped layers of a network.

    Attributes:
        layers: by name, in the network's order.
    """

    layers: dict[str, LayerMapping]

    @property
    def num_crossbars(self) -> int:
        """Pairs of all planes of all layers."""
        return sum(layer.num_crossbars for layer in self.layers.values())

    @property
    def table_bits(self) -> tuple[int, int, int]:
        """Bits of IFAT, IFRT and OFAT over all layers."""
        ifat, ifrt, ofat = np.array([(0, 0, 0), *(m.tables.bits for m in self.layers.values())]).sum(0).tolist()
        return ifat, ifrt, ofat


def map_layer(
    codes: Tensor,
    steps: Tensor,
    layer: LayerShape,
    design: LayerDesign,
    crossbar: CrossbarSize,
    activation_bits: int,
    *,
    input_step: float = 1.0,
) -> LayerMapping:
    """Puts a layer's codes on crossbars.

    Args:
        codes: integers −(2^(b−1)−1) .. 2^(b−1)−1, rows × columns of the crossbars' matrix, or (Eo, Ei, p, q) as stored
            (a dense convolution: as its weight).
        steps: row blocks × column blocks, > 0.
        layer: its shape.
        design: dense or an epitome, and bits b of 2 to 16.
        crossbar: the size.
        activation_bits: of the inputs, 1 to 16.
        input_step: of the inputs' codes, > 0.

    Raises:
        ArgumentError: codes, steps or bits out of range.
        DtypeError: codes that are no integers, or steps that are not floating.
        ShapeError: codes or steps of another shape, or an epitome that does not fit.
    """
    if codes.is_floating_point() or codes.is_complex():
        raise DtypeError(f"codes: expected integers, got {codes.dtype}")
    if not steps.is_floating_point():
        raise DtypeError(f"steps: expected floating numbers, got {steps.dtype}")
    tables = round_tables(layer, design)
    shape = _matrix_shape(layer, design)
    matrix = codes.flatten(1).T if codes.ndim == 4 else codes
    if tuple(matrix.shape) != shape:
        raise ShapeError(f"codes: expected a matrix of {shape[0]} × {shape[1]}, got shape {tuple(codes.shape)}")
    planes = num_planes(design.bits)
    values = matrix.detach().cpu().numpy().astype(np.int64)
    largest = int(np.abs(values).max(initial=0))
    if design.bits != FLOAT_BITS and largest >= 1 << planes:
        raise ArgumentError(
            f"codes: expected magnitudes up to {(1 << planes) - 1} at {design.bits} bits, got {largest}"
        )
    halves = np.stack([values.clip(min=0), (-values).clip(min=0)])
    cells = ((halves >> np.arange(planes)[:, None, None, None]) & 1).astype(np.uint8)
    numbers = steps.detach().cpu().float().numpy().copy()
    return LayerMapping(layer, design, crossbar, activation_bits, float(input_step), cells, numbers, tables)


def map_network(
    model: nn.Module, network: NetworkShape, design: NetworkDesign, crossbar: CrossbarSize
) -> NetworkMapping:
    """Puts the quantized layers of a network on crossbars; layers of 32 bits stay digital.

    Args:
        model: after :func:`~sparing.pim.quantization.quantize_` with this design and crossbar, inputs calibrated.
        network: its layers.
        design: of this network.
        crossbar: the size.

    Raises:
        ArgumentError: a layer that is not quantized, has no range of its inputs yet, was quantized for other blocks, or
            is another epitome; one with a forward pass of its own or with padding by anything but zeros.
        ShapeError: a design that does not fit the network.
    """
    design.check(network)
    quantized = {layer.name: layer for layer in quantized_layers(model)}
    found = {}
    for shape in network.layers:
        own = design.layers.get(shape.name)
        if own is None or own.bits == FLOAT_BITS:
            continue
        layer = quantized.get(shape.name)
        if layer is None or layer.inputs is None or not float(layer.inputs.step) > 0:
            raise ArgumentError(
                f"model: {shape.name}: expected quantized weights and inputs with a range; call quantize_ with "
                "a calibration batch first"
            )
        if layer.weights.grid != layer_grid(shape, own, crossbar) or layer.weights.bits != own.bits:
            raise ArgumentError(f"model: {shape.name} was quantized for another crossbar size or other bits")
        if (None if layer.epitome is None else layer.epitome.shape) != own.epitome:
            raise ArgumentError(f"model: {shape.name} has another epitome than the design, or one of the two has none")
        check_plain(layer.module, shape.name)
        if layer.inputs.bits != design.activation_bits:
            raise ArgumentError(
                f"design: expected activation_bits of {layer.inputs.bits}, as {shape.name} was quantized, got "
                f"{design.activation_bits}"
            )
        step = float(layer.inputs.step)
        found[shape.name] = map_layer(
            layer.codes, layer.weights.steps, shape, own, crossbar, layer.inputs.bits, input_step=step
        )
    if not found:
        raise ArgumentError("design: expected at least one quantized layer, got none")
    return NetworkMapping(found)


def _matrix_shape(layer: LayerShape, design: LayerDesign) -> tuple[int, int]:
    out, in_, p, q = stored_size(layer, design)
    return in_ // layer.groups * p * q, out
