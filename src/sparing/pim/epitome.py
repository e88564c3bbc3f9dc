"""Epitomes: a convolution whose kernel is gathered from a smaller stored tensor, and the least-squares way back.

D. Zhou et al., *Neural Epitome Search*, arXiv 1907.05642; C. Wang et al., *EPIM*, arXiv 2311.07620, 2024.

====================  ============================================================================
in papers             here
====================  ============================================================================
epitome E             ``(Eo, Ei, p, q)``; as a crossbar matrix Ei·p·q rows × Eo columns
virtual weight W      ``(Cout, Cin, kh, kw)`` = ``E.flatten()[index]``
patch                 :class:`Patch`, a block of W and where it comes from; one round of the crossbar
repetition map c(e)   :func:`repetition_map`, how often an element is used
====================  ============================================================================

A patch's channels go round: behind the last channel of the epitome comes the first. Where each output group reads the
whole epitome this costs nothing but entries of the tables, and it lets groups differ that would otherwise be copies.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sparing.errors import ArgumentError, NonFiniteError, ShapeError

__all__ = ["Epitome", "EpitomeShape", "Patch", "epitome_index", "fit_epitome", "patches_of", "repetition_map"]

WeightShape = tuple[int, int, int, int]


class EpitomeShape(BaseModel):
    """Size of a stored epitome, and how it is laid over the weight; frozen, printable, JSON.

    Attributes:
        out_channels: Eo, at least 1.
        in_channels: Ei, at least 1.
        kernel: p and q, at least the weight's own; None for the weight's own.
        wrapped: all groups of output channels read the same part, so that one group is computed and its feature map
            repeated: fewer rounds, less to represent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out_channels: int = Field(ge=1)
    in_channels: int = Field(ge=1)
    kernel: tuple[int, int] | None = None
    wrapped: bool = False

    def kernel_of(self, weight_shape: WeightShape) -> tuple[int, int]:
        """(p, q) for a weight."""
        return self.kernel or (weight_shape[2], weight_shape[3])

    def size_of(self, weight_shape: WeightShape) -> WeightShape:
        """(Eo, Ei, p, q) for a weight."""
        return (self.out_channels, self.in_channels, *self.kernel_of(weight_shape))

    def check(self, weight_shape: WeightShape) -> None:
        """Refuses an epitome that is larger than the weight, or whose kernel is smaller.

        Raises:
            ShapeError: it does not fit; says how.
        """
        out, in_, height, width = weight_shape
        p, q = self.kernel_of(weight_shape)
        if self.out_channels > out or self.in_channels > in_:
            raise ShapeError(
                f"epitome: expected at most {out} output and {in_} input channels, those of the weight, got "
                f"{self.out_channels} and {self.in_channels}"
            )
        if p < height or q < width:
            raise ShapeError(f"epitome: expected a kernel of at least {height} × {width}, got {p} × {q}")


@dataclass(frozen=True)
class Patch:
    """A block of the virtual weight and where it comes from.

    Attributes:
        out_start, num_out: output channels of the weight.
        in_start, num_in: input channels of the weight.
        from_out: first output channel in the epitome.
        from_in: first input channel in the epitome; channels go round behind the last.
        from_row, from_col: corner of the kernel in the epitome's.
    """

    out_start: int
    num_out: int
    in_start: int
    num_in: int
    from_out: int
    from_in: int
    from_row: int
    from_col: int


@lru_cache(maxsize=4096)
def patches_of(weight_shape: WeightShape, epitome: EpitomeShape) -> tuple[Patch, ...]:
    """The patches of a weight, output group by output group; their offsets are spread evenly over the epitome.

    Args:
        weight_shape: (Cout, Cin, kh, kw).
        epitome: the shape.

    Returns:
        ceil(Cout / Eo) · ceil(Cin / Ei) patches, none empty.

    Raises:
        ShapeError: the epitome does not fit the weight.
    """
    epitome.check(weight_shape)
    out, in_, height, width = weight_shape
    p, q = epitome.kernel_of(weight_shape)
    # A repeated feature map has the epitome's width; other groups are equal, so that no round is nearly empty.
    outs = _groups(out, epitome.out_channels, equal=not epitome.wrapped)
    ins = _groups(in_, epitome.in_channels)
    corners = list(product(range(p - height + 1), range(q - width + 1)))
    found = []
    for g, (out_start, num_out) in enumerate(outs):
        from_out = 0 if epitome.wrapped else _spread(g, len(outs), epitome.out_channels - num_out)
        for a, (in_start, num_in) in enumerate(ins):
            # Wrapped: every output group takes the places of the first.
            place = (a, len(ins), 0, 1) if epitome.wrapped else (a, len(ins), g, len(outs))
            from_in, corner = _offsets(*place, epitome.in_channels, len(corners))
            found.append(Patch(out_start, num_out, in_start, num_in, from_out, from_in, *corners[corner]))
    return tuple(found)


def _groups(total: int, most: int, *, equal: bool = True) -> list[tuple[int, int]]:
    """(start, count) of groups, the last possibly smaller."""
    count = math.ceil(total / math.ceil(total / most)) if equal else most
    return [(start, min(count, total - start)) for start in range(0, total, count)]


def _offsets(a: int, num_ins: int, g: int, num_outs: int, channels: int, corners: int) -> tuple[int, int]:
    """First channel and corner of a patch: spread evenly where there are as many as patches.

    Where there are fewer, the output groups of one input group still get different pairs as long as there are some
    (g mod the numbers of both, with a shift after each common multiple), and after that other pairs at other inputs.
    """
    place, places = a * num_outs + g, num_ins * num_outs
    turn = g + g // math.lcm(channels, corners) + a * (g // (channels * corners))
    from_in = place * channels // places if places <= channels else (a * channels // num_ins + turn) % channels
    if places <= corners:
        return from_in, _spread(place, places, corners - 1)
    return from_in, (a * corners // num_ins + g) % corners


def _spread(i: int, count: int, last: int) -> int:
    """The i-th of `count` places spread evenly over 0..last."""
    return round(i * last / (count - 1)) if count > 1 else 0


def epitome_index(weight_shape: WeightShape, epitome: EpitomeShape) -> Tensor:
    """Where each weight comes from.

    Args:
        weight_shape: (Cout, Cin, kh, kw).
        epitome: the shape.

    Returns:
        (Cout, Cin, kh, kw) int64, places in the flattened epitome: ``W = E.flatten()[index]``.

    Raises:
        ShapeError: the epitome does not fit the weight.
    """
    _, ei, p, q = epitome.size_of(weight_shape)
    index = torch.empty(weight_shape, dtype=torch.int64)
    rows = torch.arange(weight_shape[2])[:, None]
    cols = torch.arange(weight_shape[3])
    for patch in patches_of(weight_shape, epitome):
        o = patch.from_out + torch.arange(patch.num_out)[:, None, None, None]
        i = (patch.from_in + torch.arange(patch.num_in)[:, None, None]) % ei
        places = ((o * ei + i) * p + patch.from_row + rows) * q + patch.from_col + cols
        outs = slice(patch.out_start, patch.out_start + patch.num_out)
        index[outs, patch.in_start : patch.in_start + patch.num_in] = places
    return index


def repetition_map(index: Tensor, size: WeightShape) -> Tensor:
    """How many weights each element of the epitome gives.

    Args:
        index: of :func:`epitome_index`.
        size: (Eo, Ei, p, q).

    Returns:
        (Eo, Ei, p, q) int64; its sum is the number of weights.
    """
    return torch.bincount(index.flatten(), minlength=math.prod(size)).view(size)


@torch.no_grad()
def fit_epitome(weight: Tensor, index: Tensor, size: WeightShape) -> tuple[Tensor, float]:
    """The epitome that is nearest to a weight in squared error: each element is the mean of the weights it gives.

    Args:
        weight: (Cout, Cin, kh, kw) floating, finite.
        index: of :func:`epitome_index`.
        size: (Eo, Ei, p, q).

    Returns:
        (Eo, Ei, p, q) in the weight's dtype (elements that no weight uses are 0), and the relative residual
        |W − W'|² / |W|², 0 to 1.

    Raises:
        ShapeError: index and weight differ in shape.
        NonFiniteError: NaN or infinity.
    """
    if weight.shape != index.shape:
        raise ShapeError(f"weight: expected the shape of the index, {tuple(index.shape)}, got {tuple(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise NonFiniteError("weight: expected finite numbers, got NaN or infinity")
    index = index.to(weight.device)
    flat, places = weight.flatten().double(), index.flatten()
    sums = torch.zeros(math.prod(size), dtype=torch.float64, device=weight.device).index_add_(0, places, flat)
    uses = torch.bincount(places, minlength=len(sums))
    means = sums / uses.clamp(min=1)
    energy = float(flat.square().sum())
    residual = float((flat - means[places]).square().sum()) / energy if energy else 0.0
    return means.view(size).to(weight.dtype), residual


class Epitome(nn.Module):
    """A parametrization of a weight by an epitome, for :mod:`torch.nn.utils.parametrize`.

    The gradient of the epitome is the sum of the gradients of the weights that each element gives.

    Args:
        weight_shape: (Cout, Cin, kh, kw), or (out, in) of a linear layer.
        epitome: the shape.

    Attributes:
        shape: the epitome's shape, as given.
        residual: of the last fit, |W − W'|² / |W|²; None before one.
        quantizer: maps the epitome to rounded numbers before weights are gathered from it; None for none.

    Raises:
        ArgumentError: a weight of other axes.
        ShapeError: the epitome does not fit the weight.
    """

    index: Tensor
    quantizer: nn.Module | None

    def __init__(self, weight_shape: tuple[int, ...], epitome: EpitomeShape) -> None:
        super().__init__()
        if len(weight_shape) not in (2, 4):
            raise ArgumentError(f"weight_shape: expected (Cout, Cin, kh, kw) or (out, in), got {tuple(weight_shape)}")
        self.weight_shape = tuple(weight_shape)
        self.full_shape: WeightShape = (*self.weight_shape, 1, 1)[:4]  # type: ignore[assignment]
        self.shape = epitome
        self.size = epitome.size_of(self.full_shape)
        self.residual: float | None = None
        self.quantizer = None
        # Not saved: it follows from the shapes.
        self.register_buffer("index", epitome_index(self.full_shape, epitome), persistent=False)

    def forward(self, epitome: Tensor) -> Tensor:
        """Maps the epitome (Eo, Ei, p, q) to the weight."""
        stored = epitome if self.quantizer is None else self.quantizer(epitome)
        # Not stored.flatten()[index]: its gradient is slower, and on several threads sums in any order.
        return stored.flatten().gather(0, self.index.flatten()).view(self.weight_shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Maps a weight to the nearest epitome."""
        epitome, self.residual = fit_epitome(weight.view(self.full_shape), self.index, self.size)
        return epitome

    def extra_repr(self) -> str:
        """Says both sizes when printed."""
        return f"{tuple(self.weight_shape)} from {self.size}{', wrapped' if self.shape.wrapped else ''}"
