"""Writing hits into tensors, in place and only where they are, in any order of memory; and taking them back."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparing.errors import ArgumentError
from sparing.faults.models import SingleFault
from sparing.faults.sampling import hit_positions

__all__ = ["Hits", "draw_hits", "hit_", "put_back_"]

_HIGHEST, _LOWEST = 127, -128
_NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Hits:
    """Which numbers of a tensor are hit, and what happens there; both on the CPU.

    Attributes:
        positions: in logical order (the last axis fastest) whatever the memory's, ascending, int64; None: all.
        effects: one for each, of the fault model's type.
    """

    positions: Tensor | None
    effects: Tensor

    def __len__(self) -> int:
        return len(self.effects)

    def repeated(self, times: int, num: int) -> "Hits":
        """The same for each of `times` tensors of `num` numbers that lie behind one another."""
        positions = self.positions
        if positions is not None:
            positions = (torch.arange(times)[:, None] * num + positions).view(-1)
        return Hits(positions, self.effects.repeat(times))


def draw_hits(fault: SingleFault, num: int, num_macs: float, rng: np.random.Generator) -> Hits:
    """Draws the hits among `num` numbers of a layer with `num_macs` products an output."""
    p = fault.p_hit(num_macs)
    if p >= 1:
        return Hits(None, torch.from_numpy(fault.draw_effects(num, rng)))
    positions = hit_positions(num, p, rng)
    return Hits(torch.from_numpy(positions), torch.from_numpy(fault.draw_effects(len(positions), rng)))


@torch.no_grad()
def hit_(x: Tensor, hits: Hits, fault: SingleFault, *, step: Tensor | float, lowest: int, on_grid: bool) -> Tensor:
    """Writes what a fault leaves of a tensor; gradients pass as if nothing had happened.

    Args:
        x: changed in place. Floats, or int8 codes, whose step is 1.
        hits: as many effects as positions, or as numbers of `x`.
        fault: whose hits they are.
        step: of the number format, on the device of `x`, or a number.
        lowest: code that a number below becomes before the fault: −127, or −128 where an upset may have left it.
        on_grid: numbers are kept as codes, so that also a fault of any size starts from one.

    Returns:
        The numbers that were there, for :func:`put_back_`.
    """
    numbers, index = _locate(x.detach(), hits.positions)
    before = numbers.clone() if index is None else numbers.index_select(0, index)
    effects = hits.effects if index is not None else hits.effects.view(x.shape)
    if x.device.type != "cpu":
        effects = effects.to(x.device, non_blocking=True)
    wide = before.float() if before.dtype in (*_NARROW, torch.int8) else before
    codes = wide / step
    if fault.whole or on_grid:
        codes.round_().clamp_(lowest, _HIGHEST)
    if fault.whole:
        after = fault.apply(codes, effects)
        # Where the code stays, so does the number that it stands for.
        after = torch.where(after == codes, wide, after * step)
    else:
        after = fault.apply(codes, effects).clamp_(_LOWEST, _HIGHEST)
        after = after.round_() if x.dtype == torch.int8 else after.mul_(step)
    _write_(numbers, index, after.to(x.dtype))
    return before


@torch.no_grad()
def put_back_(x: Tensor, positions: Tensor | None, before: Tensor) -> None:
    """Writes back, bit for bit, what :func:`hit_` returned."""
    _write_(*_locate(x.detach(), positions), before)


def _write_(numbers: Tensor, index: Tensor | None, values: Tensor) -> None:
    if index is None:
        numbers.copy_(values)
        return
    if numbers.dtype in _NARROW:
        # As bits: of these types scatter_ copies the whole tensor to another and back.
        numbers, values = numbers.view(torch.int16), values.view(torch.int16)
    numbers.scatter_(0, index, values)


def _locate(x: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The numbers of a tensor as they lie in memory, and the places of logical positions there."""
    if positions is None:
        return x, None
    dense = x
    if not x.is_contiguous():
        strides = x.stride()
        order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
        dense = x.permute(order)
        if not dense.is_contiguous():
            raise ArgumentError(
                f"model: a tensor of shape {tuple(x.shape)} and strides {strides} has gaps in memory; make it "
                "contiguous"
            )
        positions = torch.from_numpy(_places(positions.numpy(), tuple(x.shape), strides))
    if x.device.type != "cpu":
        positions = positions.to(x.device, non_blocking=True)
    return dense.view(-1), positions


def _places(positions: NDArray[np.int64], shape: tuple[int, ...], strides: tuple[int, ...]) -> NDArray[np.int64]:
    """Logical positions to places in memory."""
    places, rest = np.zeros_like(positions), positions
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        rest, digit = np.divmod(rest, size)
        places += digit * stride
    return places
