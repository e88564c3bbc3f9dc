"""What goes wrong in a device, as small frozen values: each says which numbers it hits, how often, and what it leaves.

======================  ===========================================================================================
in papers               here
======================  ===========================================================================================
MiBB, p_m               :class:`BitBias` with `p_m`: p = 1 − (1 − p_m)^M with M products behind an output
iBB                     :class:`BitBias` with `p`
iBF                     :class:`BitFlip`
adSAF                   :class:`StuckAt`, ``form="cell"`` or ``"bit"``
1-bit adSAF             :class:`StuckAt`, ``form="one_bit"``
Gaussian variation      :class:`GaussianNoise`
reciprocal normal       :class:`ReciprocalNormalNoise`
======================  ===========================================================================================

Numbers are those of an 8-bit format, as codes: a value is code · 2^(S − 7), with codes of −127 to 127 as they are
written and −128 to 127 as faults leave them; S = ceil(log2 max|x|) of the tensor. Whatever a fault does, the result
saturates at the ends.

Sources: X. Ning et al., *FTT-NAS*, arXiv 2003.10375, 2020, section 3 (MiBB, adSAF); B. Reagen et al., *Ares*, 2018
(bit flips); B. Liu et al., *Vortex*, 2015 (variation of programmed conductances).
"""

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from torch import Tensor, nn

from sparing.errors import ConfigError, DtypeError
from sparing.faults.sampling import choose_masks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparing.faults.maps import FaultMap

__all__ = [
    "AnyFault",
    "BitBias",
    "BitFlip",
    "FaultModel",
    "FaultSum",
    "GaussianNoise",
    "ReciprocalNormalNoise",
    "SingleFault",
    "StuckAt",
    "Where",
    "check_fault",
    "parse_fault",
]

Where = Literal["weights", "features"]
_Probability = Annotated[float, Field(ge=0, le=1)]
_Sigma = Annotated[float, Field(ge=0, le=16)]

_MOST = 127
"""The largest code; as bits, the cells of one polarity."""
_LEAST_DENOMINATOR = 0.1
_BIASES = np.array([sign * (1 << alpha) for sign in (1, -1) for alpha in range(8)] * 16, np.float32)
"""By a byte: 16 alike."""


def check_fault(fault: object) -> None:
    """Refuses what is no fault model.

    Raises:
        DtypeError: something else, for example the text of one.
    """
    if not isinstance(fault, FaultModel):
        raise DtypeError(f"fault: expected a fault model, got {type(fault).__name__}")


class FaultModel(BaseModel):
    """A fault model or a sum of them; frozen, printable, JSON by ``model_dump_json()``.

    Raises:
        ConfigError: a field that is unknown or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError.from_validation(type(self).__name__, error) from None

    @property
    def parts(self) -> "tuple[SingleFault, ...]":
        """The models that are added up, at least one."""
        raise NotImplementedError

    @property
    def rate_name(self) -> str:
        """The field that :meth:`with_rate` changes: how much goes wrong."""
        raise NotImplementedError

    def with_rate(self, rate: float) -> Self:
        """The same model at another rate; of a sum, the first part.

        Raises:
            ConfigError: out of range.
        """
        return type(self)(**{**self.model_dump(), self.rate_name: rate})

    def __add__(self, other: "FaultModel") -> "FaultSum":
        return FaultSum(faults=(*self.parts, *other.parts))

    def sample(
        self,
        model: nn.Module,
        *,
        seed: int,
        draw: int = 0,
        example: Tensor | None = None,
        include: "Sequence[str] | None" = None,
        exclude: "Sequence[str] | None" = None,
    ) -> "FaultMap":
        """Draws the faults of one device; see :func:`~sparing.faults.maps.sample_map`."""
        from sparing.faults.maps import sample_map  # it knows this module

        return sample_map(model, self, seed=seed, draw=draw, example=example, include=include, exclude=exclude)


class SingleFault(FaultModel):
    """One fault model: which share of the numbers it hits, and what a hit does.

    Attributes:
        whole: it reads and leaves codes; else any numbers between the ends.
    """

    whole: ClassVar[bool]

    @property
    def parts(self) -> "tuple[SingleFault, ...]":
        """Itself."""
        return (self,)

    @property
    def place(self) -> Where:
        """What it hits."""
        raise NotImplementedError

    def p_hit(self, num_macs: float) -> float:
        """Probability that a number is hit.

        Args:
            num_macs: M, products summed up for one output of the layer.
        """
        raise NotImplementedError

    def draw_effects(self, num: int, rng: np.random.Generator) -> NDArray[Any]:
        """What happens at each of `num` hits: a number each, of a type of its own."""
        raise NotImplementedError

    def apply(self, codes: Tensor, effects: Tensor) -> Tensor:
        """What hits leave.

        Args:
            codes: floats; if the model is :attr:`whole`, from −128 to 127 and whole. May be changed.
            effects: of :meth:`draw_effects`, the same shape.

        Returns:
            New codes; the caller clamps them to −128 .. 127.
        """
        raise NotImplementedError


class BitBias(SingleFault):
    """Features: a broken part of the datapath adds ±2^alpha steps to an output, alpha of 0 to 7, all 16 alike.

    Attributes:
        p_m: probability that a product is hit (MiBB): an output of M products is with 1 − (1 − p_m)^M.
        p: probability that an output is hit, whatever the layer (iBB); one of both.
        rate: ``"exact"``; ``"rounded"``, for comparison: at 1 / int(1 / p), which the published code does and which
            makes .369 of it .5.
    """

    kind: Literal["bit-bias"] = "bit-bias"
    p_m: _Probability | None = None
    p: _Probability | None = None
    rate: Literal["exact", "rounded"] = "exact"

    whole: ClassVar[bool] = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.p_m is None) == (self.p is None):
            raise ValueError("expected p_m (of a product) or p (of an output), one of both")
        return self

    @property
    def rate_name(self) -> str:
        """``"p_m"`` or ``"p"``."""
        return "p" if self.p_m is None else "p_m"

    @property
    def place(self) -> Where:
        """Features."""
        return "features"

    def p_hit(self, num_macs: float) -> float:
        """1 − (1 − p_m)^M, or p."""
        p = self.p if self.p_m is None else _any_of(num_macs, self.p_m)
        if p is None:
            raise AssertionError("unreachable: one of p and p_m is given")
        # Below 1e-15 rounding changes nothing that a float could tell.
        return 1 / int(1 / p) if self.rate == "rounded" and p > 1e-15 else p

    def draw_effects(self, num: int, rng: np.random.Generator) -> NDArray[Any]:
        """±1, ±2, .. ±128 steps, float32."""
        return _BIASES.take(np.frombuffer(rng.bytes(num), np.uint8))

    def apply(self, codes: Tensor, effects: Tensor) -> Tensor:
        """Adds."""
        return codes.add_(effects)


class BitFlip(SingleFault):
    """Upsets of a memory: every one of the 8 two's-complement bits of a number flips with probability p.

    Attributes:
        p: of a bit.
        where: ``"weights"`` or ``"features"``.
    """

    kind: Literal["bit-flip"] = "bit-flip"
    p: _Probability
    where: Where = "weights"

    whole: ClassVar[bool] = True

    @property
    def rate_name(self) -> str:
        """``"p"``."""
        return "p"

    @property
    def place(self) -> Where:
        """As given."""
        return self.where

    def p_hit(self, num_macs: float) -> float:  # noqa: ARG002 -- of no matter here
        """1 − (1 − p)^8."""
        return _any_of(8, self.p)

    def draw_effects(self, num: int, rng: np.random.Generator) -> NDArray[Any]:
        """Which bits flip, uint8, not 0."""
        return choose_masks(num, 8, self.p, rng, nonzero=True).astype(np.uint8)

    def apply(self, codes: Tensor, effects: Tensor) -> Tensor:
        """Flips."""
        flipped = codes.to(torch.int8).bitwise_xor_(effects.view(torch.int8))
        return flipped.to(codes.dtype)


class StuckAt(SingleFault):
    """Weights in resistive cells that can no longer be programmed. A weight is the difference of two polarities.

    A weight w has max(w, 0) in its positive cells and max(−w, 0) in its negative ones.

    Attributes:
        rate: probability that a cell is stuck (``"one_bit"``: that a weight has a stuck cell).
        form: ``"cell"``: one cell for each polarity, at 0 or at the largest code if stuck. ``"bit"``: seven cells of
            one bit for each polarity, at 0 or 1. ``"one_bit"``: the same cells, and in a weight that is hit exactly
            one of the 14 is stuck.
        share_high: of stuck cells, those stuck high (at 1, or at the largest code).
    """

    kind: Literal["stuck-at"] = "stuck-at"
    rate: _Probability = 0.08
    form: Literal["cell", "bit", "one_bit"] = "cell"
    share_high: _Probability = 0.163

    whole: ClassVar[bool] = True

    @property
    def rate_name(self) -> str:
        """``"rate"``."""
        return "rate"

    @property
    def place(self) -> Where:
        """Weights."""
        return "weights"

    def p_hit(self, num_macs: float) -> float:  # noqa: ARG002 -- of no matter here
        """That at least one cell of a weight is stuck."""
        return self.rate if self.form == "one_bit" else _any_of(self._num_cells, self.rate)

    def draw_effects(self, num: int, rng: np.random.Generator) -> NDArray[Any]:
        """Cells that are stuck, bits 0 to 13 of an int32, and those that are stuck high, 16 to 29: positive first."""
        if self.form == "one_bit":
            stuck = np.left_shift(1, rng.integers(0, 14, num, dtype=np.int32), dtype=np.int32)
            high = np.where(rng.random(num) < self.share_high, stuck, 0)
            one: NDArray[np.int32] = (stuck | high << 16).astype(np.int32)
            return one
        cells = self._num_cells
        stuck = choose_masks(num, cells, self.rate, rng, nonzero=True)
        high = stuck & choose_masks(num, cells, self.share_high, rng, nonzero=False)
        if self.form == "cell":
            all_bits = np.array([0, _MOST, _MOST << 7, _MOST | _MOST << 7], np.int32)
            stuck, high = all_bits[stuck], all_bits[high]
        both: NDArray[np.int32] = stuck | high << 16
        return both

    def apply(self, codes: Tensor, effects: Tensor) -> Tensor:
        """Reads the cells again; of −128, which cells cannot hold, those of −127."""
        whole = codes.to(torch.int32)
        high = effects >> 16
        positive = (whole.clamp(min=0) & ~effects | high) & _MOST
        negative = ((-whole).clamp_(0, _MOST) & ~(effects >> 7) | high >> 7) & _MOST
        return (positive - negative).to(codes.dtype)

    @property
    def _num_cells(self) -> int:
        return 2 if self.form == "cell" else 14


class GaussianNoise(SingleFault):
    """Every number is off by a normal error.

    Attributes:
        sigma: of the error, 0 to 16, as a part of the range 2^S or of each value.
        where: ``"weights"`` or ``"features"``.
        relative_to: ``"range"`` or ``"value"``.
    """

    kind: Literal["gaussian"] = "gaussian"
    sigma: _Sigma
    where: Where = "weights"
    relative_to: Literal["range", "value"] = "range"

    whole: ClassVar[bool] = False

    @property
    def rate_name(self) -> str:
        """``"sigma"``."""
        return "sigma"

    @property
    def place(self) -> Where:
        """As given."""
        return self.where

    def p_hit(self, num_macs: float) -> float:  # noqa: ARG002 -- of no matter here
        """1."""
        return 1.0

    def draw_effects(self, num: int, rng: np.random.Generator) -> NDArray[Any]:
        """Normal numbers times sigma, float32."""
        noise = rng.standard_normal(num, dtype=np.float32)
        noise *= np.float32(self.sigma)
        return noise

    def apply(self, codes: Tensor, effects: Tensor) -> Tensor:
        """Adds, or multiplies."""
        return codes.add_(effects, alpha=_MOST + 1) if self.relative_to == "range" else codes.mul_(effects + 1)


class ReciprocalNormalNoise(SingleFault):
    """Weights as conductances of cells whose resistance is off by a normal error: w / (1 + sigma · n).

    Attributes:
        sigma: of the resistance, 0 to 16, as a part of it. No resistance falls below a tenth of what it should be.
    """

    kind: Literal["reciprocal-normal"] = "reciprocal-normal"
    sigma: _Sigma

    whole: ClassVar[bool] = False

    @property
    def rate_name(self) -> str:
        """``"sigma"``."""
        return "sigma"

    @property
    def place(self) -> Where:
        """Weights."""
        return "weights"

    def p_hit(self, num_macs: float) -> float:  # noqa: ARG002 -- of no matter here
        """1."""
        return 1.0

    def draw_effects(self, num: int, rng: np.random.Generator) -> NDArray[Any]:
        """max(1 + sigma · n, 0.1), float32."""
        noise = rng.standard_normal(num, dtype=np.float32)
        noise *= np.float32(self.sigma)
        noise += 1
        return np.maximum(noise, np.float32(_LEAST_DENOMINATOR), out=noise)

    def apply(self, codes: Tensor, effects: Tensor) -> Tensor:
        """Divides."""
        return codes.div_(effects)


_Single = Annotated[
    BitBias | BitFlip | StuckAt | GaussianNoise | ReciprocalNormalNoise,
    Field(discriminator="kind"),
]


class FaultSum(FaultModel):
    """Several faults at once, for example of weights and of features; ``a + b`` makes one.

    Where two hit the same number, the later one meets what the earlier one left.

    Attributes:
        faults: at least one; their order is part of what is drawn.
    """

    kind: Literal["sum"] = "sum"
    faults: Annotated[tuple[_Single, ...], Field(min_length=1)]

    @property
    def parts(self) -> tuple[SingleFault, ...]:
        """The faults."""
        return self.faults

    @property
    def rate_name(self) -> str:
        """That of the first fault."""
        return self.faults[0].rate_name

    def with_rate(self, rate: float) -> Self:
        """The first fault at another rate, and the others.

        Raises:
            ConfigError: out of range.
        """
        return type(self)(faults=(self.faults[0].with_rate(rate), *self.faults[1:]))


AnyFault = Annotated[
    BitBias | BitFlip | StuckAt | GaussianNoise | ReciprocalNormalNoise | FaultSum,
    Field(discriminator="kind"),
]
"""For fields of documents: any fault model, told apart by ``kind``."""

_ANY: TypeAdapter[SingleFault] = TypeAdapter(_Single)


def parse_fault(text: str) -> FaultModel:
    """Reads a fault model as it is written on a command line.

    Args:
        text: ``kind:field=value,field=value``; several are joined by " + ".

    Returns:
        The model, or the sum.

    Raises:
        ConfigError: not of that form, an unknown kind, or a field that is unknown or out of range.

    Example:
        >>> parse_fault("stuck-at:rate=0.08,form=bit + gaussian:sigma=0.02").parts[0].form
        'bit'
    """
    found = []
    for part in re.split(r"\s\+\s", text.strip()):
        kind, _, rest = part.strip().partition(":")
        fields: dict[str, str] = {"kind": kind}
        for pair in filter(None, rest.split(",")):
            name, equals, value = pair.partition("=")
            if not equals or name.strip() in fields:
                raise ConfigError(
                    f"fault: expected kind:field=value,field=value, each field once, for example "
                    f"'stuck-at:rate=0.08,form=bit', got {part.strip()!r}"
                )
            fields[name.strip()] = value.strip()
        try:
            found.append(_ANY.validate_python(fields))
        except ValidationError as error:
            raise ConfigError.from_validation(f"fault {part.strip()!r}", error) from None
    return found[0] if len(found) == 1 else FaultSum(faults=tuple(found))


def _any_of(num: float, p: float) -> float:
    """Probability that at least one of `num` things happens, each with p."""
    return 1.0 if p >= 1 else -math.expm1(num * math.log1p(-p))
