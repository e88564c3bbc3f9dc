"""Which numbers a fault hits, and how: exact, sorted, without repeats, at a cost that grows with the hits alone.

Where each of n numbers is hit with probability p by itself, the gaps between hits are geometric: floor(E / −ln(1 − p))
with E of the standard exponential distribution (L. Devroye, *Non-Uniform Random Variate Generation*, 1986, X.2).
Cumulated, they give every position once, in order, for any p. A Poisson number of uniform positions without repeats is
as exact, but has to be sorted to find the repeats. What happens at a hit is drawn given that it is one.

Everything is drawn on the CPU, from a generator of its own for each drawing, so that neither the device, nor the
memory's layout, nor other layers change it.
"""

import math
import operator
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparing.errors import ArgumentError, DtypeError

__all__ = ["check_seed", "choose_masks", "fault_generator", "hit_positions"]

_WORD = 1 << 32
_SIGMAS = 6.0
_EXTRA = 16


def check_seed(name: str, value: int) -> None:
    """Refuses what is no number of a drawing.

    Raises:
        ArgumentError: below 0, or 2**63 and more.
        DtypeError: no integer.
    """
    try:
        operator.index(value)
    except TypeError:
        raise DtypeError(f"{name}: expected an integer, got {value!r}") from None
    if not 0 <= value < 1 << 63:
        raise ArgumentError(f"{name}: expected 0 to 2**63 - 1, got {value}")


def fault_generator(seed: int, draw: int, site: str, *, part: int = 0, call: int = 0) -> np.random.Generator:
    """The generator of one drawing.

    Args:
        seed: 0 or more.
        draw: number of the drawing, 0 or more.
        site: name of the layer.
        part: place in a sum of faults.
        call: number of the forward pass.
    """
    words = [seed % _WORD, seed // _WORD, draw % _WORD, draw // _WORD, zlib.crc32(site.encode()), part, call]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


def hit_positions(num: int, p: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Positions of the hits among `num` numbers, each hit with probability `p`.

    Args:
        num: 0 or more.
        p: 0 to 1.
        rng: advanced.

    Returns:
        Ascending, each at most once, 0 to num − 1.
    """
    if num == 0 or p <= 0:
        return np.empty(0, np.int64)
    if p >= 1:
        return np.arange(num)
    scale, expected = min(-1 / math.log1p(-p), 1e300), num * p
    at_once = int(expected + _SIGMAS * math.sqrt(expected)) + _EXTRA
    found, last = [], -1
    while last < num:
        gaps = rng.standard_exponential(at_once)
        gaps *= scale
        np.minimum(gaps, num, out=gaps)  # a gap of 1e300 is no integer
        positions = gaps.astype(np.int64)
        positions += 1
        positions[0] += last
        np.cumsum(positions, out=positions)
        last = int(positions[-1])
        found.append(positions)
    positions = found[0] if len(found) == 1 else np.concatenate(found)
    return positions[: np.searchsorted(positions, num)]


def choose_masks(num: int, bits: int, p: float, rng: np.random.Generator, *, nonzero: bool) -> NDArray[np.int32]:
    """Masks whose bits are set with probability p, each by itself.

    Args:
        num: masks to draw.
        bits: of a mask, 1 to 14.
        p: 0 to 1; above 0 if `nonzero`.
        rng: advanced.
        nonzero: given that at least one bit is set.

    Returns:
        (num,), 0 to 2**bits − 1.
    """
    if num == 0:
        return np.zeros(0, np.int32)
    below, other = _mask_table(bits, p, nonzero)
    place = rng.random(num)
    place *= len(below)
    column = place.astype(np.int32)
    place -= column
    return np.where(place < below[column], column, other[column])


@lru_cache(maxsize=64)
def _mask_table(bits: int, p: float, nonzero: bool) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """The alias table of masks (A. J. Walker, 1977): column i is i below a threshold, another mask above."""
    size = 1 << bits
    masks = np.arange(size)
    ones = sum((masks >> bit) & 1 for bit in range(bits))
    with np.errstate(divide="ignore", invalid="ignore"):
        set_part = np.where(ones == 0, 0.0, ones * np.log(p))
        clear_part = np.where(ones == bits, 0.0, (bits - ones) * np.log1p(-p))
    logs = set_part + clear_part
    if nonzero:
        logs[0] = -np.inf
    share = np.exp(logs - logs.max())
    share *= size / share.sum()
    below, other = share.copy(), np.arange(size, dtype=np.int32)
    small = [int(i) for i in np.flatnonzero(share < 1)]
    large = [int(i) for i in np.flatnonzero(share >= 1)]
    rest: list[float] = share.tolist()
    while small and large:
        low, high = small.pop(), large[-1]
        below[low], other[low] = rest[low], high
        rest[high] -= 1 - rest[low]
        if rest[high] < 1:
            small.append(large.pop())
    # What is left is 1 up to rounding, unless it has no share at all.
    for i in small + large:
        below[i] = 1.0
    return below, other
