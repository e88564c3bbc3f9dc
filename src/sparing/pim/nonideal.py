"""Cells as they come out of a fab: stuck, off by the programming, and never quite off; drawn once for each cell.

Cells are those of the crossbars as stored. One cell of an epitome gives c(e) weights, so one that is stuck changes all
of them.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from sparing.faults import StuckAt
from sparing.pim.mapping import LayerMapping, NetworkMapping

__all__ = ["CONDUCTANCE_STEP", "CellChange", "CellVariation", "NetworkCells", "change_cells", "snap_cells"]

CellChange = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[Any]]
"""Maps the cells of a block, (b − 1) × 2 × rows × columns of 0 and 1, to conductances of that shape."""

NetworkCells = dict[str, tuple[NDArray[np.float32], ...]]
"""Conductances by layer, block by block, in units of a cell that is on."""

CONDUCTANCE_STEP = 1 / 4096
"""Conductances are multiples of this: sums of a whole crossbar are then exact in any order, on any machine."""

_MOST = 16.0
_Distribution = Literal["lognormal", "normal"]


@dataclass(frozen=True)
class CellVariation:
    """Draws what cells conduct.

    A cell is to conduct 1 (on) or ``1 / on_off_ratio`` (off). Programming multiplies that by exp(σ·n) (lognormal: the
    median stays) or by max(0, 1 + σ·n) (normal), with n of the standard normal distribution, for each cell by itself,
    and at most 16 come out. A stuck cell was not programmed: it conducts exactly 0's or 1's conductance.

    Attributes:
        p_stuck_0: probability that a cell is stuck off, 0 to 1.
        p_stuck_1: probability that it is stuck on; with `p_stuck_0` at most 1.
        sigma: σ of the programming, 0 to 2.
        distribution: ``"lognormal"`` or ``"normal"``.
        on_off_ratio: above 1; None: a cell that is off conducts nothing.

    Raises:
        ArgumentError: out of range.
    """

    p_stuck_0: float = 0.0
    p_stuck_1: float = 0.0
    sigma: float = 0.0
    distribution: _Distribution = "lognormal"
    on_off_ratio: float | None = None

    def __post_init__(self) -> None:
        if not (self.p_stuck_0 >= 0 and self.p_stuck_1 >= 0 and self.p_stuck_0 + self.p_stuck_1 <= 1):
            raise ArgumentError(
                f"p_stuck_0, p_stuck_1: expected probabilities that add up to at most 1, got {self.p_stuck_0} and "
                f"{self.p_stuck_1}"
            )
        if not 0 <= self.sigma <= 2:
            raise ArgumentError(f"sigma: expected 0 to 2, got {self.sigma}")
        if self.distribution not in get_args(_Distribution):
            raise ArgumentError(f"distribution: expected lognormal or normal, got {self.distribution!r}")
        if self.on_off_ratio is not None and not self.on_off_ratio > 1:
            raise ArgumentError(f"on_off_ratio: expected more than 1, got {self.on_off_ratio}")

    @classmethod
    def of_fault(cls, fault: StuckAt, **others: Any) -> Self:
        """The cells of a fault model of :mod:`sparing.faults`, one bit each.

        Args:
            fault: of form ``"bit"``.
            **others: further fields, for example `sigma`.

        Raises:
            ArgumentError: another form; mapped weights have cells of one bit.
        """
        if fault.form != "bit":
            raise ArgumentError(f"fault: expected StuckAt(form='bit'), as mapped cells hold one bit, got {fault!r}")
        high = fault.rate * fault.share_high
        return cls(p_stuck_0=fault.rate - high, p_stuck_1=high, **others)

    def __call__(self, cells: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
        """Draws the conductances of one block.

        Every cell takes the same numbers of the generator whatever the settings, so that the cells stuck at a lower
        probability are among those stuck at a higher one.
        """
        off = 0.0 if self.on_off_ratio is None else 1 / self.on_off_ratio
        draw, noise = rng.random(cells.shape), rng.standard_normal(cells.shape)
        programmed = np.where(cells != 0, 1.0, off)
        lognormal = self.distribution == "lognormal"
        programmed *= np.exp(self.sigma * noise) if lognormal else np.maximum(0.0, 1 + self.sigma * noise)
        programmed = programmed.clip(max=_MOST)
        programmed[draw < self.p_stuck_0] = off
        programmed[draw >= 1 - self.p_stuck_1] = 1.0
        return programmed.astype(np.float32)


def change_cells(mapping: NetworkMapping, change: CellChange, *, seed: int) -> NetworkCells:
    """Draws what the cells of a network conduct.

    Args:
        mapping: of the network.
        change: :class:`CellVariation`, or any other model of cells: it gets the cells of a block and a generator.
        seed: 0 or more. Each block has a generator of its own, from the seed, the layer's name and the block's place:
            neither other layers nor batches change what is drawn.

    Returns:
        For :func:`~sparing.pim.executor.executing`.

    Raises:
        ArgumentError: a negative seed, or conductances below 0 or beyond 16.
        DtypeError, NonFiniteError, ShapeError: `change` gave something else than finite numbers, one for each cell.
    """
    if seed < 0:
        raise ArgumentError(f"seed: expected 0 or more, got {seed}")
    return {name: _changed(name, layer, change, seed) for name, layer in mapping.layers.items()}


def snap_cells(conductances: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Checks conductances and rounds them to multiples of :data:`CONDUCTANCE_STEP`.

    Raises:
        ArgumentError: below 0 or beyond 16 cells that are on.
        DtypeError: no real numbers.
        NonFiniteError: NaN or infinity.
        ShapeError: another shape.
    """
    values = np.asarray(conductances)
    if values.dtype.kind not in "biuf":
        raise DtypeError(f"cells: expected real numbers, got {values.dtype}")
    if values.shape != shape:
        raise ShapeError(f"cells: expected one number for each cell, {shape}, got {values.shape}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise NonFiniteError("cells: expected finite conductances, got NaN or infinity")
    if values.size and not (values.min() >= 0 and values.max() <= _MOST):
        raise ArgumentError(f"cells: expected conductances of 0 to {_MOST:g}, got {values.min()} to {values.max()}")
    snapped: NDArray[np.float32] = (np.rint(values / CONDUCTANCE_STEP) * CONDUCTANCE_STEP).astype(np.float32)
    return snapped


def _changed(name: str, layer: LayerMapping, change: CellChange, seed: int) -> tuple[NDArray[np.float32], ...]:
    found = []
    for number, block in enumerate(layer.blocks):
        cells = layer.block_cells(block)
        shape = cells.shape
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        found.append(snap_cells(change(cells, rng), shape))
    return tuple(found)
