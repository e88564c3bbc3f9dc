"""What can be said of accuracy under faults from a number of draws: means, intervals, and when to stop drawing.

A *draw* is one realization of the faults, measured on all images. Images of one draw share its faults, so draws, not
images, are the independent observations: intervals here are those of the mean over draws, for the images at hand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError

__all__ = ["Interval", "PairedDifference", "enough_draws", "mean_interval", "paired_difference", "share_interval"]


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
    less often than it says. Values that are all equal give an interval of no width: that none differed, not that none
    can.

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


def share_interval(shares: Sequence[float] | npt.NDArray[np.float64], *, confidence: float = 0.95) -> Interval:
    """The interval of the mean of shares, within 0 to 1.

    By Student's t over draws. Where every draw gave exactly 0 (or 1), t would say that nothing can ever change. Then
    the far end is 1 − (α/2)^(1/n), α = 1 − confidence (or its mirror): the largest probability of *any* change in a
    draw with which n draws without one are still likely. The mean share cannot be larger than that probability.

    Args:
        shares: two or more numbers of 0 to 1.
        confidence: between 0 and 1.

    Raises:
        ArgumentError: fewer than two values, or a confidence out of range.
    """
    numbers = np.asarray(shares, np.float64)
    _check(len(numbers), confidence)
    bound = 1 - ((1 - confidence) / 2) ** (1 / len(numbers))
    if not numbers.any():
        return Interval(0.0, bound)
    if (numbers == 1).all():
        return Interval(1 - bound, 1.0)
    found = mean_interval(numbers, confidence=confidence)
    return Interval(max(found.low, 0.0), min(found.high, 1.0))


def enough_draws(
    values: Sequence[float], *, min_draws: int, max_draws: int, half_width: float | None, confidence: float = 0.95
) -> bool:
    """Whether to stop: the interval of the mean is narrow enough, or the draws are used up.

    Asked after each draw in their order, so that the answer is the same however many ran at a time.

    Args:
        values: of the draws so far.
        min_draws: before which nothing stops, 2 or more.
        max_draws: after which everything stops.
        half_width: of the interval at which to stop; None: never before `max_draws`.
        confidence: of the interval.
    """
    if len(values) >= max_draws:
        return True
    if half_width is None or len(values) < min_draws:
        return False
    return mean_interval(values, confidence=confidence).half_width <= half_width


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
    interval = mean_interval(difference, confidence=confidence)
    varies = a.std() > 0 and b.std() > 0
    return PairedDifference(
        rate=rate,
        num_draws=count,
        mean=float(difference.mean()),
        sd=float(difference.std(ddof=1)),
        interval=interval,
        correlation=float(np.corrcoef(a, b)[0, 1]) if varies else None,
    )


def _check(count: int, confidence: float) -> None:
    if count < 2:
        raise ArgumentError(f"values: expected two or more for an interval, got {count}")
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence: expected more than 0 and less than 1, got {confidence}")


def _quantile(count: int, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + confidence) / 2))
