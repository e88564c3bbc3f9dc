"""Exact answers of the design search where costs add up over layers: a multiple-choice knapsack.

====================  =================================================================================================
:func:`exact_best`    one additive objective within one additive limit
:func:`exact_front`   two additive objectives, all answers
:func:`bounded_best`  one additive objective within several additive limits, by a mixed-integer solver: a design and a
                      bound that none can beat, equal where the solver gets to the end
====================  =================================================================================================

Crossbars, energy, time layer by layer and the error proxy add up; pipelined time and energy times delay do not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from sparing.errors import ArgumentError
from sparing.explore.allocate import allocate_exact, allocate_exact_front
from sparing.pim.design_tables import DesignTables
from sparing.pim.search import DesignFront, FoundDesign, check_limits, found_designs

__all__ = ["BoundedDesign", "bounded_best", "exact_best", "exact_front"]


@dataclass(frozen=True)
class BoundedDesign:
    """The best design that is known, and what no design can beat.

    Attributes:
        found: the design.
        objective: its cost.
        bound: no design within the limits costs less.
    """

    found: FoundDesign
    objective: float
    bound: float

    @property
    def gap(self) -> float:
        """How far the design may be from the best, as a share of the bound."""
        return (self.objective - self.bound) / abs(self.bound) if self.bound else 0.0


def exact_best(
    tables: DesignTables, *, objective: str, limit: tuple[str, float] | None = None, max_states: int = 20_000_000
) -> FoundDesign:
    """The design of least cost within a limit of another, by dynamic programming.

    Args:
        tables: the options and their costs.
        objective: name of a column.
        limit: name of a column and the largest sum; None for no limit.
        max_states: gives up when more partial sums than this would have to be held; where one of the two columns is in
            whole numbers (crossbars, rounds, conversions) there are never many.

    Raises:
        ArgumentError: an unknown column, a limit below what the cheapest options take, or too many partial sums.
    """
    objectives, spent = tables.column(objective), tables.column(limit[0] if limit else objective)
    budget = limit[1] if limit else math.inf
    if limit:
        check_limits(tables, dict([limit]), {})
    found = allocate_exact(_rows(tables, spent), _rows(tables, objectives), budget=budget, max_states=max_states)
    return found_designs(tables, np.array([found.choices]), {})[0]


def exact_front(
    tables: DesignTables,
    *,
    objectives: tuple[str, str],
    most: float = math.inf,
    max_states: int = 20_000_000,
) -> DesignFront:
    """All designs that no other beats in two additive costs.

    Args:
        tables: the options and their costs.
        objectives: names of two columns; the work grows with the number of different sums of the one that has fewer.
        most: largest sum of the first that is of interest.
        max_states: as :func:`exact_best`.

    Returns:
        The front; of designs of equal costs one. Its evaluations are 0.

    Raises:
        ArgumentError: as :func:`exact_best`.
    """
    first, second = (_rows(tables, tables.column(name)) for name in objectives)
    check_limits(tables, {objectives[0]: most}, {})
    front = allocate_exact_front(first, second, budget=most, max_states=max_states)
    return DesignFront(objectives, found_designs(tables, np.array([found.choices for found in front]), {}), 0)


def bounded_best(
    tables: DesignTables, *, objective: str, limits: Mapping[str, float], time_limit_s: float = 60.0
) -> BoundedDesign:
    """The design of least cost within several limits, as far as a mixed-integer solver (HiGHS) gets in a given time.

    Args:
        tables: the options and their costs.
        objective: name of a column.
        limits: from names of columns to the largest sums, kept to within a millionth.
        time_limit_s: for the solver. A run that it ends may give other designs on another machine.

    Raises:
        ArgumentError: an unknown column, limits that no design keeps together, or none found in the time.
    """
    check_limits(tables, limits, {})
    counts = tables.num_options
    sites = np.repeat(np.arange(len(counts)), counts)
    size = len(sites)
    one_each = csr_array((np.ones(size), (sites, np.arange(size))), shape=(len(counts), size))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for name, most in limits.items():
        if math.isfinite(most):
            # In shares of the limit: the solver's tolerances are absolute.
            row = np.concatenate(_rows(tables, tables.column(name)))
            scale = most if most > 0 else max(1.0, float(row.max()))
            constraints.append(LinearConstraint(row[None] / scale, -np.inf, most / scale))
    costs = np.concatenate(_rows(tables, tables.column(objective)))
    scale = float(np.abs(costs).max()) or 1.0
    solved = milp(
        costs / scale,
        integrality=np.ones(size, np.int64),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    if solved.x is None:
        what = "no design keeps them together" if solved.status == 2 else f"none found in {time_limit_s} s"
        raise ArgumentError(f"limits: {dict(limits)}: {what}")
    starts = np.concatenate([[0], np.cumsum(counts)])
    choices = [int(np.argmax(solved.x[a:b])) for a, b in pairwise(starts.tolist())]
    found = found_designs(tables, np.array([choices]), {})[0]
    return BoundedDesign(
        found, found.costs[objective], min(float(solved.mip_dual_bound) * scale, found.costs[objective])
    )


def _rows(tables: DesignTables, column: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [row[:count] for row, count in zip(column, tables.num_options, strict=True)]
