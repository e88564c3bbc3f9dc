"""How a weight matrix is cut over crossbars: blocks of word lines and bit lines, kernels of one channel kept together.

====================  =====================================================
in papers             here
====================  =====================================================
word lines, rows      where inputs are applied, ``rows`` of a crossbar
bit lines, columns    where sums are read, ``cols`` of a crossbar
====================  =====================================================
"""

import math
from dataclasses import dataclass
from typing import Self

from sparing.errors import ArgumentError

__all__ = ["BlockGrid", "CrossbarSize", "FLOAT_BITS", "block_grid", "num_planes"]  # noqa: RUF022 - by letters

FLOAT_BITS = 32
"""Bits that stand for unquantized weights; they count as 32 planes."""

_MOST = 65_536


@dataclass(frozen=True)
class CrossbarSize:
    """Word lines and bit lines of one crossbar.

    Attributes:
        rows: word lines, 1 to 65,536.
        cols: bit lines, 1 to 65,536.

    Raises:
        ArgumentError: out of range.
    """

    rows: int = 256
    cols: int = 256

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= _MOST:
                raise ArgumentError(f"crossbar {name}: expected 1 to {_MOST}, got {value!r}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``"256"`` or ``"256x128"`` (rows × columns).

        Raises:
            ArgumentError: something else.
        """
        parts = text.lower().split("x")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise ArgumentError(f"crossbar: expected a size such as 256 or 256x128, got {text!r}")
        return cls(int(parts[0]), int(parts[-1]))

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


def num_planes(bits: int) -> int:
    """One-bit planes that hold a weight: 32 unquantized, else b − 1, the sign being in the pair of crossbars.

    Raises:
        ArgumentError: bits other than 2 to 16, or 32.
    """
    if bits == FLOAT_BITS:
        return FLOAT_BITS
    if not 2 <= bits <= 16:
        raise ArgumentError(f"bits: expected 2 to 16, or {FLOAT_BITS} for unquantized weights, got {bits}")
    return bits - 1


@dataclass(frozen=True)
class BlockGrid:
    """One bit-plane of a weight matrix over crossbars.

    Attributes:
        row_cuts: word lines used in each block along the rows.
        col_cuts: bit lines used in each block along the columns.
        copies: how often this grid is laid down, for grouped convolutions.
        channels_per_block: input channels whose kernels fit one block; 0 where a kernel is longer than a crossbar.
    """

    row_cuts: tuple[int, ...]
    col_cuts: tuple[int, ...]
    copies: int
    channels_per_block: int

    @property
    def num_blocks(self) -> int:
        """Crossbars (pairs) of one plane."""
        return len(self.row_cuts) * len(self.col_cuts) * self.copies


def block_grid(
    in_channels: int, out_channels: int, kernel_elements: int, crossbar: CrossbarSize, *, groups: int = 1
) -> BlockGrid:
    """Cuts a matrix of in_channels · kernel_elements rows and out_channels columns over crossbars.

    The rows of one channel's kernel stay in one block; a kernel longer than a crossbar is split over blocks of its own.
    Groups of a grouped convolution stand in one crossbar along its diagonal, as many as fit.

    Args:
        in_channels: all groups together.
        out_channels: all groups together.
        kernel_elements: height times width of the kernel.
        crossbar: the size.
        groups: divides both numbers of channels.

    Returns:
        The blocks; without groups ``ceil(out / cols) · ceil(in / floor(rows / kernel_elements))`` of them.

    Raises:
        ArgumentError: a number below 1, or groups that do not divide.
    """
    numbers = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "kernel_elements": kernel_elements,
        "groups": groups,
    }
    for name, value in numbers.items():
        if value < 1:
            raise ArgumentError(f"{name}: expected at least 1, got {value}")
    if in_channels % groups or out_channels % groups:
        raise ArgumentError(f"groups: expected a divisor of {in_channels} and {out_channels} channels, got {groups}")
    ins, outs = in_channels // groups, out_channels // groups
    per_block = crossbar.rows // kernel_elements
    together = max(1, min(per_block // ins, crossbar.cols // outs, groups))
    if together > 1:
        # Whole groups on the diagonal. The last crossbar may hold fewer: it is counted as full.
        cuts = (together * ins * kernel_elements,), (together * outs,)
        return BlockGrid(*cuts, math.ceil(groups / together), per_block)
    if per_block:
        rows = tuple(kernel_elements * n for n in _cuts(ins, per_block))
    else:
        rows = _cuts(kernel_elements, crossbar.rows) * ins
    return BlockGrid(rows, _cuts(outs, crossbar.cols), groups, per_block)


def _cuts(total: int, most: int) -> tuple[int, ...]:
    whole, rest = divmod(total, most)
    return (most,) * whole + ((rest,) if rest else ())
