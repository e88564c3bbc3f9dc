"""What an ADC makes of a column sum."""

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
        full_scale: the largest sum there is a code for, > 0; None for ``2**bits − 1``, an lsb of one cell. Most sums
            are small, since few bits of inputs and weights are set: a coarser step rounds the frequent sum 1 away,
            and costs far more than clipping the rare sums beyond the scale.
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

    @property
    def lsb(self) -> float:
        """Cells in one step of the code; of an ideal ADC, 1."""
        return 1.0 if self.bits is None or self.full_scale is None else self.full_scale / self.max_code

    @property
    def max_code(self) -> int:
        """The largest code; of an ideal ADC, 0."""
        return 0 if self.bits is None else int(2**self.bits) - 1
