"""The three tables that steer a layer's rounds on its crossbars, one row a round: what is fetched, driven and summed.

C. Wang et al., *EPIM*, arXiv 2311.07620, 2024; how their tables are encoded is not known: this form is ours.

=========  =========================================  ================================================================
table      columns                                    meaning
=========  =========================================  ================================================================
IFAT       in_start, num_in                           input channels that are fetched, the kernel's whole window of each
IFRT       from_in, from_row, from_col                the epitome's channel and corner whose word lines they drive;
                                                      behind its last channel comes the first
OFAT       from_out, out_start, num_out               first bit line, first output channel, how many of both
=========  =========================================  ================================================================
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparing.errors import ArgumentError, ShapeError
from sparing.pim.design import LayerDesign
from sparing.pim.epitome import Patch, WeightShape, patches_of
from sparing.pim.layers import LayerShape

__all__ = ["IFAT_COLUMNS", "IFRT_COLUMNS", "OFAT_COLUMNS", "RoundTables", "round_tables", "stored_size"]

IFAT_COLUMNS = ("in_start", "num_in")
IFRT_COLUMNS = ("from_in", "from_row", "from_col")
OFAT_COLUMNS = ("from_out", "out_start", "num_out")


@dataclass(frozen=True, eq=False)
class RoundTables:
    """The tables of a layer, as they are replayed.

    Attributes:
        ifat: R × 2 int32.
        ifrt: R × 3 int32.
        ofat: R × 3 int32.
        repeats: how often the sums of the rounds are laid down along the output channels, the last time possibly in
            part; 1 but for wrapped epitomes.
        row_bits: bits of one row of the three; zeros where nothing needs a table (a dense layer).
    """

    ifat: NDArray[np.int32]
    ifrt: NDArray[np.int32]
    ofat: NDArray[np.int32]
    repeats: int
    row_bits: tuple[int, int, int]

    @property
    def num_rounds(self) -> int:
        """Rounds of one output pixel."""
        return len(self.ifat)

    @property
    def bits(self) -> tuple[int, int, int]:
        """Bits of IFAT, IFRT and OFAT: rows times the bits of the fields, each field ceil(log2) of its values."""
        ifat, ifrt, ofat = (bits * self.num_rounds for bits in self.row_bits)
        return ifat, ifrt, ofat

    def word_lines(self, at: int, size: WeightShape, kernel: tuple[int, int]) -> NDArray[np.int64]:
        """The word lines of one round.

        Args:
            at: the round, 0 to R − 1.
            size: (Eo, Ei, p, q) as stored.
            kernel: height and width of the layer's own kernel.

        Returns:
            num_in × height × width rows of the crossbars' matrix, in the order in which features are fetched.
        """
        _, channels, p, q = size
        from_in, from_row, from_col = self.ifrt[at].tolist()
        channel = (from_in + np.arange(int(self.ifat[at, 1]))) % channels
        row, col = from_row + np.arange(kernel[0]), from_col + np.arange(kernel[1])
        lines: NDArray[np.int64] = (channel[:, None, None] * p + row[:, None]) * q + col
        return lines

    def check(self, layer: LayerShape, size: WeightShape) -> None:
        """Refuses tables that lead outside a layer or its crossbars.

        Raises:
            ArgumentError: a number out of range; names table, column and row.
            ShapeError: an array of another shape.
        """
        rounds = self.num_rounds
        for name, table, columns in self._named():
            if rounds < 1 or table.shape != (rounds, len(columns)) or table.dtype != np.int32:
                raise ShapeError(
                    f"tables: {name}: expected int32 of at least 1 × {len(columns)}, as many rows as the others, got "
                    f"{table.dtype} {table.shape}"
                )
        out, in_, p, q = size
        (kh, kw), ins = layer.kernel, layer.in_channels
        in_start, num_in = self.ifat.T.astype(np.int64)
        from_out, out_start, num_out = self.ofat.T.astype(np.int64)
        limits = [
            ("IFAT", "num_in", num_in, 1, min(in_, ins)),
            ("IFAT", "in_start", in_start, 0, ins - num_in),
            ("IFRT", "from_in", self.ifrt[:, 0], 0, in_ - 1),
            ("IFRT", "from_row", self.ifrt[:, 1], 0, p - kh),
            ("IFRT", "from_col", self.ifrt[:, 2], 0, q - kw),
            ("OFAT", "num_out", num_out, 1, out),
            ("OFAT", "from_out", from_out, 0, out - num_out),
            ("OFAT", "out_start", out_start, 0, layer.out_channels - num_out),
        ]
        for name, column, values, least, most in limits:
            wrong = np.flatnonzero((values < least) | (values > most))
            if len(wrong):
                raise ArgumentError(
                    f"tables: {name}: {column} of round {wrong[0]} leads outside the layer, got {values[wrong[0]]}"
                )
        width = int((out_start + num_out).max())
        if not width * (self.repeats - 1) < layer.out_channels <= width * self.repeats:
            raise ArgumentError(f"tables: {width} output channels laid down {self.repeats} times do not fill the layer")

    def _named(self) -> tuple[tuple[str, NDArray[np.int32], tuple[str, ...]], ...]:
        return (("IFAT", self.ifat, IFAT_COLUMNS), ("IFRT", self.ifrt, IFRT_COLUMNS), ("OFAT", self.ofat, OFAT_COLUMNS))


def round_tables(layer: LayerShape, design: LayerDesign) -> RoundTables:
    """Writes the tables of a layer; a dense one is its own epitome, a single round that needs no table.

    A wrapped epitome has the rounds of its first output group only.

    Raises:
        ShapeError: an epitome that does not fit the layer.
    """
    size = stored_size(layer, design)
    patches: tuple[Patch, ...]
    repeats, row_bits = 1, (0, 0, 0)
    if design.epitome is None:
        patches = (Patch(0, layer.out_channels, 0, layer.in_channels, 0, 0, 0, 0),)
    else:
        patches = patches_of(layer.weight_shape, design.epitome)
        if design.epitome.wrapped:
            patches = tuple(patch for patch in patches if patch.out_start == 0)
            repeats = math.ceil(layer.out_channels / patches[0].num_out)
        (kh, kw), (out, in_, p, q) = layer.kernel, size
        row_bits = (
            _bits(layer.in_channels) + _bits(in_),
            _bits(in_) + _bits(p - kh + 1) + _bits(q - kw + 1),
            _bits(out) + _bits(layer.out_channels) + _bits(out),
        )
    ifat, ifrt, ofat = (
        np.array([[getattr(patch, column) for column in columns] for patch in patches], np.int32)
        for columns in (IFAT_COLUMNS, IFRT_COLUMNS, OFAT_COLUMNS)
    )
    return RoundTables(ifat, ifrt, ofat, repeats, row_bits)


def stored_size(layer: LayerShape, design: LayerDesign) -> WeightShape:
    """(Eo, Ei, p, q) of what is stored; of a dense layer (Cout, Cin, kh, kw) with the channels of all groups."""
    if design.epitome is None:
        return (layer.out_channels, layer.in_channels, *layer.kernel)
    return design.epitome.size_of(layer.weight_shape)


def _bits(choices: int) -> int:
    return (choices - 1).bit_length()
