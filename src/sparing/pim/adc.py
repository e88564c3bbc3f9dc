"""What an ADC makes of a column sum."""

import math
from dataclasses import dataclass

from sparing.errors import ArgumentError

__all__ = ["AdcModel"]


@dataclass(frozen=True)
class AdcModel:
    """How column sums become numbers.

    A sum s, in cells that are on and driven, becomes the code ``min(round(s / lsb), 2**bits − 1)`` (float32, ties to
    even) and stands for code · lsb, with lsb = full_scale / (2**bits − 1).

    Attributes:
        bits: 1 to 16; None: an ideal ADC, which gives s itself.
        full_scale: the largest sum there is a code for, > 0. None: the smallest power of two as lsb with which
            ``2**bits`` steps cover the word lines driven at once (6 bits: lsb 1 up to 64 lines, 2 up to 128).
        num_dacs: word lines driven at once, at least 1; longer columns take several conversions.

    Raises:
        ArgumentError: out of range.
    """

    bits: int | None = 6
    full_scale: float | None = None
    num_dacs: int = 128

    def __post_init__(self) -> None:
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise ArgumentError(f"bits: expected an ADC of 1 to 16 bits, or None for an ideal one, got {self.bits}")
        if self.full_scale is not None and not 0 < self.full_scale < float("inf"):
            raise ArgumentError(f"full_scale: expected a finite number above 0, got {self.full_scale}")
        if self.full_scale is not None and self.bits is None:
            raise ArgumentError("full_scale: an ideal ADC has none; give bits too")
        if self.num_dacs < 1:
            raise ArgumentError(f"num_dacs: expected at least 1, got {self.num_dacs}")

    def lsb(self, rows: int) -> float:
        """Cells in one step of the code.

        Args:
            rows: word lines of a crossbar.
        """
        if self.bits is None:
            return 1.0
        if self.full_scale is not None:
            return self.full_scale / self.max_code
        return float(2 ** math.ceil(math.log2(max(1.0, min(rows, self.num_dacs) / 2**self.bits))))

    @property
    def max_code(self) -> int:
        """The largest code; of an ideal ADC, 0."""
        return 0 if self.bits is None else int(2**self.bits) - 1
