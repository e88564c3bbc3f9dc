"""Allocation: one option for each site (layer, head, ...), of least total cost, with total error within a budget.

This is the multiple-choice knapsack problem. The greedy answer follows each site's lower convex hull (P. Sinha, A.
Zoltners, 1979), misses the optimum by less than one step of one site while steps are small, and takes any number of
sites; the exact one keeps every undominated partial sum. Where no budget is known yet, the front holds the answers for
all prices of cost in error (H. Everett, 1963).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from sparing.explore.pareto import pareto_front

__all__ = ["Allocation", "allocate_exact", "allocate_exact_front", "allocate_greedy", "allocation_front"]

_Site = NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """What was chosen.

    Attributes:
        choices: the option of each site.
        error: sum of their errors.
        cost: sum of their costs.
    """

    choices: tuple[int, ...]
    error: float
    cost: float


def allocate_greedy(errors: Sequence[ArrayLike], costs: Sequence[ArrayLike], *, budget: float) -> Allocation:
    """Spends an error budget where it saves the most cost.

    Starts with each site's option of least error; then takes, again and again, the step along a site's convex hull that
    saves the most cost for each unit of error and still fits; last, any single change that still fits and saves.

    Args:
        errors: for each site, ``(k,)`` errors of its k >= 1 options, real, finite.
        costs: for each site, ``(k,)`` costs of the same options.
        budget: the largest sum of errors allowed.

    Returns:
        The allocation, within the budget.

    Raises:
        ArgumentError: no sites, a NaN budget, or one below the sum of the least errors.
        DtypeError: not real numbers.
        NonFiniteError: NaN or infinity in errors or costs.
        ShapeError: sites or options that differ in number.

    Example:
        >>> allocate_greedy([[0.0, 0.2, 1.0], [0.0, 0.5]], [[16, 8, 4], [16, 8]], budget=0.7).choices
        (1, 1)
    """
    sites = _check(errors, costs, budget)
    choices = [_cheapest_of_least_error(site) for site in sites]
    error = sum(site[choice, 0] for site, choice in zip(sites, choices, strict=True))
    for _, index, start, stop in _steps(sites):
        site = sites[index]
        added = site[stop, 0] - site[start, 0]
        if choices[index] == start and error + added <= budget:
            choices[index] = stop
            error += added
    _spend_the_rest_(choices, sites, budget)
    return _allocation(choices, sites)


def allocate_exact(
    errors: Sequence[ArrayLike], costs: Sequence[ArrayLike], *, budget: float, max_states: int = 1_000_000
) -> Allocation:
    """The least cost within an error budget, by dynamic programming over undominated partial sums.

    Args:
        errors: as :func:`allocate_greedy`.
        costs: as :func:`allocate_greedy`.
        budget: as :func:`allocate_greedy`.
        max_states: gives up when more partial sums than this, times a site's options, would have to be held.

    Returns:
        An optimal allocation; of several, the one of least error.

    Raises:
        ArgumentError: as :func:`allocate_greedy`, or more than ``max_states``.
        DtypeError, NonFiniteError, ShapeError: as :func:`allocate_greedy`.
    """
    sites = _check(errors, costs, budget)
    states, history = _undominated_sums(sites, budget, max_states)
    return _traced(int(np.lexsort((states[:, 0], states[:, 1]))[0]), history, sites)


def allocate_exact_front(
    errors: Sequence[ArrayLike],
    costs: Sequence[ArrayLike],
    *,
    budget: float = float("inf"),
    max_states: int = 1_000_000,
) -> list[Allocation]:
    """All that no other allocation dominates: what :func:`allocate_exact` finds, for every budget at once.

    Args:
        errors: as :func:`allocate_greedy`.
        costs: as :func:`allocate_greedy`.
        budget: the largest sum of errors of interest.
        max_states: as :func:`allocate_exact`; where one of the two is in whole numbers, there are never many.

    Returns:
        By growing error and falling cost; of equal sums one.

    Raises:
        ArgumentError, DtypeError, NonFiniteError, ShapeError: as :func:`allocate_exact`.

    Example:
        >>> [found.cost for found in allocate_exact_front([[0, 1, 3], [0, 2]], [[16, 8, 4], [16, 9]])]
        [32.0, 24.0, 17.0, 13.0]
    """
    sites = _check(errors, costs, budget)
    states, history = _undominated_sums(sites, budget, max_states)
    return [_traced(at, history, sites) for at in np.argsort(states[:, 0], kind="stable").tolist()]


def allocation_front(errors: Sequence[ArrayLike], costs: Sequence[ArrayLike]) -> list[Allocation]:
    """The allocations that are best at some price: those that minimise error + price · cost, for every price above 0.

    They are the corners of the lower convex hull of all allocations' errors and costs. Where several sites change at
    the same price, they change together.

    Args:
        errors: as :func:`allocate_greedy`.
        costs: as :func:`allocate_greedy`.

    Returns:
        By growing error and falling cost, from the least error (and of that the least cost) to the least cost (and of
        that the least error). At most one more than there are options.

    Raises:
        ArgumentError: no sites.
        DtypeError, NonFiniteError, ShapeError: as :func:`allocate_greedy`.

    Example:
        >>> [found.choices for found in allocation_front([[0.0, 0.2, 1.0], [0.0, 0.5]], [[16, 8, 4], [16, 8]])]
        [(0, 0), (1, 0), (1, 1), (2, 1)]
    """
    sites = _check(errors, costs, float("inf"))
    choices = [_cheapest_of_least_error(site) for site in sites]
    found = [_allocation(choices, sites)]
    for _, together in groupby(_steps(sites), key=lambda step: step[0]):
        for _, index, _, stop in together:
            choices[index] = stop
        found.append(_allocation(choices, sites))
    return found


_History = list[tuple[NDArray[np.intp], NDArray[np.intp]]]


def _undominated_sums(sites: list[_Site], budget: float, max_states: int) -> tuple[_Site, _History]:
    """Sums over all sites, and for each site which sum and which option each sum came from."""
    # Errors still to come at the least: what leaves less than that is no way on.
    ahead = np.cumsum([site[:, 0].min() for site in sites][::-1])[::-1]
    states = np.zeros((1, 2))
    history: _History = []
    for index, site in enumerate(sites):
        if len(states) * len(site) > max_states:
            raise ArgumentError(
                f"max_states: {len(states) * len(site)} partial sums at site {index}, more than {max_states}; "
                f"raise it, round the errors, or use allocate_greedy"
            )
        sums = (states[:, None] + site[None]).reshape(-1, 2)
        rest = ahead[index + 1] if index + 1 < len(sites) else 0.0
        alive = np.flatnonzero(sums[:, 0] + rest <= budget + _slack(budget, ahead[0]))
        alive = alive[pareto_front(sums[alive])]
        history.append((alive // len(site), alive % len(site)))
        states = sums[alive]
    return states, history


def _traced(at: int, history: _History, sites: list[_Site]) -> Allocation:
    choices: list[int] = []
    for parents, options in reversed(history):
        choices.append(int(options[at]))
        at = int(parents[at])
    return _allocation(choices[::-1], sites)


def _steps(sites: list[_Site]) -> list[tuple[float, int, int, int]]:
    """Steps along all hulls, the most efficient first: cost saved for each unit of error, site, option, next option."""
    steps = []
    for index, site in enumerate(sites):
        efficiency = float("inf")
        for start, stop in _hull_steps(site):
            error, cost = (site[stop] - site[start]).tolist()
            # It falls along a hull but for rounding, which is not to put a step before its predecessor.
            efficiency = min(efficiency, -cost / error)
            steps.append((efficiency, index, start, stop))
    return sorted(steps, key=lambda step: -step[0])


def _hull_steps(site: _Site) -> list[tuple[int, int]]:
    """Neighbours along the lower convex hull of (error, cost), from the least error to the least cost."""
    front = pareto_front(site)
    front = front[np.argsort(site[front, 0])]
    hull: list[int] = []
    for point in front.tolist():
        while len(hull) >= 2 and not _turns_left(site[hull[-2]], site[hull[-1]], site[point]):
            hull.pop()
        hull.append(point)
    return list(pairwise(hull))


def _turns_left(a: _Site, b: _Site, c: _Site) -> bool:
    return bool((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) > 0)


def _spend_the_rest_(choices: list[int], sites: list[_Site], budget: float) -> None:
    """Takes the single change that saves the most and still fits, until none does."""
    while True:
        error = _allocation(choices, sites).error
        best: tuple[float, int, int] | None = None
        for index, site in enumerate(sites):
            now = site[choices[index]]
            saved = np.where(error + (site[:, 0] - now[0]) <= budget, now[1] - site[:, 1], 0.0)
            option = int(saved.argmax())
            if saved[option] > 0 and (best is None or saved[option] > best[0]):
                best = (float(saved[option]), index, option)
        if best is None:
            return
        choices[best[1]] = best[2]


def _cheapest_of_least_error(site: _Site) -> int:
    return int(np.lexsort((site[:, 1], site[:, 0]))[0])


def _allocation(choices: Sequence[int], sites: list[_Site]) -> Allocation:
    chosen = np.array([site[choice] for site, choice in zip(sites, choices, strict=True)])
    error, cost = chosen.sum(axis=0).tolist()
    return Allocation(tuple(choices), error, cost)


def _slack(budget: float, least: float) -> float:
    """Room for the rounding of sums taken in another order; far below any error that matters."""
    return 1e-12 * max(abs(budget) if np.isfinite(budget) else 0.0, abs(least))


def _check(errors: Sequence[ArrayLike], costs: Sequence[ArrayLike], budget: float) -> list[_Site]:
    if len(errors) == 0:
        raise ArgumentError("errors: expected at least one site, got none")
    if len(errors) != len(costs):
        raise ShapeError(f"costs: expected {len(errors)} sites, as errors has, got {len(costs)}")
    if np.isnan(budget):
        raise ArgumentError("budget: expected a number, got NaN")
    sites = []
    for index, (error, cost) in enumerate(zip(errors, costs, strict=True)):
        pair = np.asarray(error), np.asarray(cost)
        for name, array in zip(("errors", "costs"), pair, strict=True):
            if array.dtype.kind not in "biuf":
                raise DtypeError(f"{name}[{index}]: expected real numbers, got dtype {array.dtype}")
            if array.ndim != 1 or array.shape != pair[0].shape or len(array) == 0:
                raise ShapeError(
                    f"{name}[{index}]: expected shape (k,) with k >= 1 options, the same in errors and costs, got "
                    f"{array.shape}"
                )
            if not np.isfinite(array).all():
                raise NonFiniteError(f"{name}[{index}]: expected finite numbers, got NaN or infinity; leave it out")
        sites.append(np.stack(pair, axis=1).astype(np.float64))
    least = sum(float(site[:, 0].min()) for site in sites)
    if least > budget + _slack(budget, least):
        raise ArgumentError(f"budget: the least errors already add up to {least:g}, more than the budget {budget:g}")
    return sites
