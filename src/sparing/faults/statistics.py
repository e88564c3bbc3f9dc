"""What can be said of accuracy under faults from a number of draws: means, intervals, and when to stop drawing.

A *draw* is one realization of the faults, measured on all images. Images of one draw share its faults, so draws, not
images, are the independent observations: intervals here are those of the mean over draws, for the images at hand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError

__all__ = ["Interval", "PairedDifference", "enough_draws", "mean_interval", "paired_difference", "share_interval"]

_MANY = 30
"""Draws off the most common value with which a mean is near enough to normal."""
_WEIGHTINGS, _BEYOND = 4000, 100
"""Random weightings, at least: in all, and beyond an end of an interval."""
_MOST_CONFIDENCE = 0.9995


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: its lower end.
        high: its upper end.
    """

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance of its ends."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class PairedDifference:
    """By how much one network is better than another under the same draws.

    Attributes:
        rate: of the faults.
        num_draws: that both were measured under.
        mean: of first minus second, −1 to 1.
        sd: of the differences; 0 for one draw.
        interval: of the mean.
        correlation: of the two over draws, −1 to 1: how much pairing helps. None where one of them never varies.
    """

    rate: float
    num_draws: int
    mean: float
    sd: float
    interval: Interval
    correlation: float | None


def mean_interval(values: Sequence[float] | npt.NDArray[np.float64], *, confidence: float = 0.95) -> Interval:
    """The interval of a mean by Student's t, not cut to any range.

    Exact for normal values; draws of accuracy are skewed to the left, and with 10 or fewer the interval holds somewhat
    less often than it says. For shares of which most may be equal see :func:`share_interval`.

    Args:
        values: two or more finite numbers.
        confidence: between 0 and 1.

    Raises:
        ArgumentError: fewer than two values, or a confidence out of range.
    """
    numbers = np.asarray(values, np.float64)
    _check(len(numbers), confidence)
    mean = float(numbers.mean())
    half = _quantile(len(numbers), confidence) * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return Interval(mean - half, mean + half)


def share_interval(
    shares: Sequence[float] | npt.NDArray[np.float64], *, lowest: float = 0.0, confidence: float = 0.95
) -> Interval:
    """The interval of the mean of shares, or of their differences, within their range.

    Rare faults leave most draws at one value, and Student's t then takes what it has not seen for impossible. So t
    speaks only where more than half of the draws, or 30 of them, differ from the most common value. Else either end is
    Gaffke's: a quantile of the mean with random weights, where one more draw lies at the end of the range. It takes
    nothing for granted. Of two values it is the interval of Clopper and Pearson; where all of n draws gave x, it is x
    moved by (1 − (α/2)^(1/n)) of the way to either end of the range, α = 1 − confidence.

    Args:
        shares: two or more numbers of `lowest` to 1.
        lowest: 0, or −1 for differences of shares.
        confidence: between 0 and 1.

    Raises:
        ArgumentError: fewer than two values, or a confidence out of range.

    Source:
        N. Gaffke, *Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
        variable*, 2005; E. Learned-Miller and P. Thomas, *A new confidence interval for the mean of a bounded random
        variable*, arXiv 1905.06208, 2019 (it has held wherever it was tried; a proof is open).
    """
    numbers = np.asarray(shares, np.float64)
    _check(len(numbers), confidence)
    values, counts = np.unique(numbers, return_counts=True)
    rare = len(numbers) - int(counts.max())
    if 2 * rare > len(numbers) or rare >= _MANY:
        found = mean_interval(numbers, confidence=confidence)
        return Interval(max(found.low, lowest), min(found.high, 1.0))
    low = _lower_end(tuple(values.tolist()), tuple(counts.tolist()), lowest, confidence)
    high = -_lower_end(tuple((-values[::-1]).tolist()), tuple(counts[::-1].tolist()), -1.0, confidence)
    mean = float(numbers.mean())
    return Interval(min(low, mean), max(high, mean))


def enough_draws(
    values: Sequence[float], *, min_draws: int, max_draws: int, half_width: float | None, confidence: float = 0.95
) -> bool:
    """Whether to stop: the interval of the mean (:func:`share_interval`) is narrow enough, or the draws are used up.

    Asked after each draw in their order, so that the answer is the same however many ran at a time.

    Args:
        values: shares, of the draws so far.
        min_draws: before which nothing stops, 2 or more.
        max_draws: after which everything stops.
        half_width: half the width of the interval at which to stop; None: never before `max_draws`.
        confidence: of the interval.
    """
    if len(values) >= max_draws:
        return True
    if half_width is None or len(values) < min_draws:
        return False
    return share_interval(values, confidence=confidence).half_width <= half_width


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, rate: float, confidence: float = 0.95
) -> PairedDifference:
    """Compares two networks over the draws that both have: value d of each belongs to draw d.

    Args:
        first: accuracies of one network, in the order of draws.
        second: those of the other.
        rate: of the faults, to be kept with the result.
        confidence: between 0 and 1.

    Raises:
        ArgumentError: fewer than two common draws, or a confidence out of range.
    """
    count = min(len(first), len(second))
    a, b = np.asarray(first[:count], np.float64), np.asarray(second[:count], np.float64)
    difference = a - b
    interval = share_interval(difference, lowest=-1.0, confidence=confidence)
    varies = a.std() > 0 and b.std() > 0
    return PairedDifference(
        rate=rate,
        num_draws=count,
        mean=float(difference.mean()),
        sd=float(difference.std(ddof=1)),
        interval=interval,
        correlation=float(np.corrcoef(a, b)[0, 1]) if varies else None,
    )


@lru_cache(maxsize=4096)
def _lower_end(values: tuple[float, ...], counts: tuple[int, ...], lowest: float, confidence: float) -> float:
    tail = (1 - confidence) / 2
    if len(values) == 1:
        return float(lowest + (values[0] - lowest) * tail ** (1 / counts[0]))
    # Equal draws have one weight together, so that many draws cost no more than few. Always the same random numbers.
    num = max(_WEIGHTINGS, math.ceil(_BEYOND / tail))
    weights = np.random.default_rng(0).standard_gamma([1, *counts], size=(num, 1 + len(counts)))
    means = weights @ np.array([lowest, *values]) / weights.sum(axis=1)
    return float(np.quantile(means, tail))


def _check(count: int, confidence: float) -> None:
    if count < 2:
        raise ArgumentError(f"values: expected two or more for an interval, got {count}")
    if not 0 < confidence <= _MOST_CONFIDENCE:
        raise ArgumentError(f"confidence: expected more than 0 and at most {_MOST_CONFIDENCE}, got {confidence}")


def _quantile(count: int, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + confidence) / 2))
