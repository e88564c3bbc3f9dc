"""Pareto fronts: which candidates no other beats in every objective, how good a front is, and what a budget buys."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError

__all__ = ["best_under_budget", "front_ranks", "hypervolume", "pareto_front"]


def pareto_front(costs: ArrayLike, *, minimize: bool | Sequence[bool] = True) -> NDArray[np.intp]:
    """Indices of the points that no other point dominates.

    A point dominates another if it is at least as good in every objective and better in one. Of equal points the first
    is kept.

    Args:
        costs: ``(n, m)``, real, finite; n points in m >= 1 objectives. ``n`` may be 0.
        minimize: whether less is better, for all objectives or for each.

    Returns:
        ``(f,)`` indices, ascending. Cost: ``O(n log n)`` up to three objectives, ``O(n·f·m)`` beyond.

    Raises:
        DtypeError: not real numbers.
        NonFiniteError: NaN or infinity.
        ShapeError: not 2 axes, no objectives, or another number of ``minimize``.

    Example:
        >>> pareto_front([[1, 5], [2, 2], [3, 3], [4, 1]]).tolist()
        [0, 1, 3]
    """
    points = _as_minimised(costs, minimize, name="costs")
    if len(points) == 0:
        return np.empty(0, np.intp)
    # In this order no point is dominated by a later one, and the first of equal points comes first.
    order = np.lexsort((np.arange(len(points)), *points.T[::-1]))
    ranked = points[order]
    if points.shape[1] <= 2:
        last = ranked[:, -1]
        is_kept = np.ones(len(points), np.bool_)
        is_kept[1:] = last[1:] < np.minimum.accumulate(last)[:-1]
        return np.sort(order[is_kept])
    if points.shape[1] == 3:
        stairs = _Stairs()
        steps = zip(order.tolist(), ranked[:, 1].tolist(), ranked[:, 2].tolist(), strict=True)
        return np.sort(np.array([index for index, y, z in steps if stairs.add(y, z)], np.intp))
    kept: list[np.intp] = []
    while len(ranked):
        kept.append(order[0])
        is_open = (ranked < ranked[0]).any(axis=1)
        ranked, order = ranked[is_open], order[is_open]
    return np.sort(np.array(kept, np.intp))


def front_ranks(costs: ArrayLike, *, minimize: bool | Sequence[bool] = True) -> NDArray[np.intp]:
    """The front that each point is in: the first holds what nothing dominates, the next what then remains, and so on.

    Source: non-dominated sorting, N. Srinivas, K. Deb, 1994; found by binary search as in X. Zhang et al., *An
    Efficient Approach to Nondominated Sorting*, 2015.

    Args:
        costs: as :func:`pareto_front`.
        minimize: as :func:`pareto_front`.

    Returns:
        ``(n,)`` ranks from 0. Of equal points each is one front behind the one before. Cost: ``O(n log² n)`` up to
        three objectives, that of :func:`pareto_front` for each front beyond.

    Raises:
        DtypeError, NonFiniteError, ShapeError: as :func:`pareto_front`.

    Example:
        >>> front_ranks([[1, 5], [2, 2], [3, 3], [4, 1]]).tolist()
        [0, 0, 1, 0]
    """
    points = _as_minimised(costs, minimize, name="costs")
    if points.shape[1] > 3:
        return _peeled_ranks(points)
    ranks = np.empty(len(points), np.intp)
    if points.shape[1] < 3:
        points = np.hstack([points, np.zeros((len(points), 3 - points.shape[1]))])
    order = np.lexsort((np.arange(len(points)), *points.T[::-1]))
    fronts: list[_Stairs] = []
    found = []
    for _, y, z in points[order].tolist():
        # What a front does not dominate, no later front does.
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            if fronts[middle].dominates(y, z):
                low = middle + 1
            else:
                high = middle
        if low == len(fronts):
            fronts.append(_Stairs())
        fronts[low].add(y, z)
        found.append(low)
    ranks[order] = found
    return ranks


def hypervolume(points: ArrayLike, reference: ArrayLike, *, minimize: bool | Sequence[bool] = True) -> float:
    """Area that a set of points in two objectives dominates, up to a reference point.

    Source: E. Zitzler, L. Thiele, *Multiobjective evolutionary algorithms*, 1999 (the S metric).

    Args:
        points: ``(n, 2)``, real, finite. Those that are not better than the reference in both objectives add nothing.
        reference: ``(2,)``, a point that is worse than those of interest.
        minimize: whether less is better, for both objectives or for each.

    Returns:
        The area, >= 0.

    Raises:
        DtypeError: not real numbers.
        NonFiniteError: NaN or infinity.
        ShapeError: other shapes.

    Example:
        >>> hypervolume([[1, 2], [2, 1]], [3, 3])
        3.0
    """
    found = _as_minimised(points, minimize, name="points")
    if found.shape[1] != 2:
        raise ShapeError(f"points: expected shape (n, 2), got {found.shape}; only two objectives are supported")
    corner = np.asarray(reference)
    if corner.shape != (2,):
        raise ShapeError(f"reference: expected shape (2,), got {corner.shape}")
    corner = _as_minimised(corner[None], minimize, name="reference")[0]
    found = found[(found < corner).all(axis=1)]
    front = found[pareto_front(found)]
    front = front[np.argsort(front[:, 0])]
    heights = np.concatenate([corner[1:], front[:-1, 1]]) - front[:, 1] if len(front) else np.empty(0)
    return float(np.sum((corner[0] - front[:, 0]) * heights))


def best_under_budget(errors: ArrayLike, costs: ArrayLike, *, budget: float | Sequence[float]) -> int:
    """Index of the candidate with the least error among those that a budget allows.

    Args:
        errors: ``(n,)``, real, finite; less is better.
        costs: ``(n,)`` or ``(n, m)``, real, finite.
        budget: the largest cost allowed, or one for each of the m costs; infinity is no limit.

    Returns:
        An index. Of equal errors the one with the least first cost, then the next cost, then the first.

    Raises:
        ArgumentError: nothing fits the budget, or it is NaN.
        DtypeError: not real numbers.
        NonFiniteError: NaN or infinity in errors or costs.
        ShapeError: shapes that do not fit.
    """
    error = _as_real(errors, name="errors")
    cost = _as_real(costs, name="costs")
    if cost.ndim == 1:
        cost = cost[:, None]
    if error.ndim != 1 or cost.ndim != 2 or len(error) != len(cost):
        raise ShapeError(f"errors, costs: expected shapes (n,) and (n,) or (n, m), got {error.shape} and {cost.shape}")
    limit = np.atleast_1d(np.asarray(budget, np.float64))
    if limit.shape != cost.shape[1:]:
        raise ShapeError(f"budget: expected {cost.shape[1]} number(s), one a cost, got shape {limit.shape}")
    if np.isnan(limit).any():
        raise ArgumentError("budget: expected a number, got NaN")
    fits = np.flatnonzero((cost <= limit).all(axis=1))
    if len(fits) == 0:
        least = cost.min(axis=0).tolist() if len(cost) else "no candidates"
        raise ArgumentError(f"budget: nothing fits {limit.tolist()}; the least costs are {least}")
    order = np.lexsort((fits, *cost[fits].T[::-1], error[fits]))
    return int(fits[order[0]])


class _Stairs:
    """The lower left border of points (y, z); what comes later is dominated by it, or stands below it somewhere."""

    def __init__(self) -> None:
        self.ys: list[float] = []  # rising
        self.zs: list[float] = []  # falling

    def dominates(self, y: float, z: float) -> bool:
        """Whether a point is above the border or on a corner of it."""
        left = bisect_right(self.ys, y) - 1
        return left >= 0 and self.zs[left] <= z

    def add(self, y: float, z: float) -> bool:
        """Moves the border to a point, unless it dominates that."""
        if self.dominates(y, z):
            return False
        start = stop = bisect_left(self.ys, y)
        while stop < len(self.zs) and self.zs[stop] >= z:
            stop += 1
        self.ys[start:stop] = [y]
        self.zs[start:stop] = [z]
        return True


def _peeled_ranks(points: NDArray[np.float64]) -> NDArray[np.intp]:
    ranks = np.empty(len(points), np.intp)
    left, rank = np.arange(len(points)), 0
    while len(left):
        front = pareto_front(points[left])
        ranks[left[front]] = rank
        left, rank = np.delete(left, front), rank + 1
    return ranks


def _as_real(values: ArrayLike, *, name: str) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name}: expected finite numbers, got NaN or infinity; leave such candidates out")
    return array


def _as_minimised(values: ArrayLike, minimize: bool | Sequence[bool], *, name: str) -> NDArray[np.float64]:
    """``(n, m)`` float64 in which less is better everywhere."""
    array = _as_real(values, name=name)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ShapeError(f"{name}: expected shape (n, m) with m >= 1 objectives, got {array.shape}")
    signs = np.where(np.asarray(minimize, np.bool_), 1.0, -1.0)
    if signs.ndim > 1 or (signs.ndim == 1 and len(signs) != array.shape[1]):
        raise ShapeError(f"minimize: expected one bool or {array.shape[1]}, one an objective, got shape {signs.shape}")
    return array * signs
