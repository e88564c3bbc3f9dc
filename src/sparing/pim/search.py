"""Design search: fronts of network designs by evolution, for any objectives and limits.

C. Wang et al., *EPIM*, arXiv 2311.07620, 2024, search layer by layer with an evolutionary algorithm; their objectives
and settings could not be read. Where costs add up over layers :mod:`sparing.pim.exact_search` has the best answer to
measure this one by; elsewhere (pipelined time, energy times delay) nothing is proved.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparing.errors import ArgumentError, NonFiniteError, ShapeError
from sparing.explore.breeding import EvolutionConfig
from sparing.explore.evolution import minimize
from sparing.pim.design import NetworkDesign
from sparing.pim.design_tables import DesignTables
from sparing.runs.progress import Progress

__all__ = [
    "CostFunction",
    "DesignFront",
    "FoundDesign",
    "check_limits",
    "evolve_designs",
    "found_designs",
    "search_designs",
]

CostFunction = Callable[[NDArray[np.int64]], ArrayLike]
"""Cost of designs that does not add up over layers: ``(n, sites)`` numbers of options → ``(n,)``."""

# Found by trial on ResNet-50; neighbours mean something, as options stand in the order of their crossbars.
_CONFIG = EvolutionConfig(population=100, crossover=0.6, mutations=1.5, neighbours=0.5)

# Room for the rounding of sums taken in another order, as a share of a limit.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class FoundDesign:
    """A design and what it costs.

    Attributes:
        choices: the option of each layer in the tables.
        design: for :func:`~sparing.pim.convert.convert_` and the rest.
        costs: all columns of the tables, added up, and the functions of the search.
    """

    choices: tuple[int, ...]
    design: NetworkDesign
    costs: Mapping[str, float]


@dataclass(frozen=True)
class DesignFront:
    """What a search found.

    Attributes:
        objectives: names.
        designs: none beats another in all objectives; rising in the first. At least one.
        evaluations: designs that were tried.
    """

    objectives: tuple[str, ...]
    designs: tuple[FoundDesign, ...]
    evaluations: int

    def best(self, name: str, limits: Mapping[str, float] | None = None) -> FoundDesign:
        """The design of least cost within limits.

        Args:
            name: of a cost.
            limits: the largest costs allowed, by name.

        Raises:
            ArgumentError: an unknown cost, or nothing on the front keeps the limits.
        """
        unknown = sorted({name, *(limits or {})} - set(self.designs[0].costs))
        if unknown:
            raise ArgumentError(f"costs: expected some of {', '.join(self.designs[0].costs)}, got {', '.join(unknown)}")
        kept = [x for x in self.designs if all(x.costs[n] <= most for n, most in (limits or {}).items())]
        if not kept:
            raise ArgumentError(
                f"limits: none of the {len(self.designs)} designs of the front keeps {dict(limits or {})}"
            )
        return min(kept, key=lambda x: x.costs[name])


def search_designs(
    tables: DesignTables,
    *,
    objectives: Sequence[str],
    limits: Mapping[str, float] | None = None,
    functions: Mapping[str, CostFunction] | None = None,
    seed: int,
    evaluations: int = 100_000,
    config: EvolutionConfig | None = None,
    start: Sequence[NetworkDesign] = (),
    progress: Progress | None = None,
) -> DesignFront:
    """Searches designs by evolution; see :mod:`sparing.explore.evolution`.

    Args:
        tables: the options and their costs; :meth:`DesignTables.without_beaten` first makes the search shorter.
        objectives: names of columns or functions, less is better.
        limits: from names of columns or functions to the largest cost allowed.
        functions: costs that do not add up over layers, by name; finite.
        seed: 0 or more; the same seed finds the same designs.
        evaluations: designs to try.
        config: how designs are bred; None for a population of 100 that prefers neighbouring sizes.
        start: designs to begin with.
        progress: called with ``("evaluations", done, total)``.

    Returns:
        The front.

    Raises:
        ArgumentError: no objectives, an unknown name, a limit that is NaN or below what the cheapest options take, a
            start that is not among the options, or nothing found within the limits (where several together cannot be
            kept, the message says by how much the nearest design misses them).
        NonFiniteError, ShapeError: a function that does not give ``(n,)`` finite numbers.
    """
    if not objectives:
        raise ArgumentError("objectives: expected at least one, got none")
    bounds, given = dict(limits or {}), dict(functions or {})
    check_limits(tables, bounds, given)
    front, missed = evolve_designs(
        tables,
        objectives,
        bounds,
        given,
        seed=seed,
        evaluations=evaluations,
        config=config,
        start=start,
        progress=progress,
    )
    if not front.designs:
        raise ArgumentError(
            f"limits: none of {front.evaluations} designs keeps {bounds}; the nearest one exceeds them by "
            f"{missed:.2%} of a limit; raise them, or try more designs"
        )
    return front


def evolve_designs(
    tables: DesignTables,
    objectives: Sequence[str],
    bounds: Mapping[str, float],
    given: Mapping[str, CostFunction],
    *,
    seed: int,
    evaluations: int,
    config: EvolutionConfig | None = None,
    start: Sequence[NetworkDesign] = (),
    progress: Progress | None = None,
) -> tuple[DesignFront, float]:
    """As :func:`search_designs`, with an empty front where no design was found within the limits.

    Returns:
        The front, and by what share of a limit the nearest design misses them, 0 where one keeps them.
    """
    names = [*dict.fromkeys([*objectives, *bounds])]
    evaluate = _evaluator(tables, names, given)
    columns = [names.index(name) for name in objectives]
    limited = [names.index(name) for name in bounds]
    most = np.array(list(bounds.values()))

    def costs_of(choices: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        costs = evaluate(choices)
        return costs[:, columns], _violations(costs[:, limited], most)

    front = minimize(
        costs_of,
        tables.num_options.tolist(),
        evaluations=evaluations,
        seed=seed,
        config=config or _CONFIG,
        start=[tables.choices_of(design) for design in start],
        progress=progress,
    )
    found = DesignFront(tuple(objectives), found_designs(tables, front.vectors, given), front.evaluations)
    return found, front.least_violation


def check_limits(tables: DesignTables, limits: Mapping[str, float], functions: Mapping[str, CostFunction]) -> None:
    """Refuses limits that are no numbers, or that not even the cheapest options keep.

    Raises:
        ArgumentError: such a limit, an unknown name, or a function with the name of a column.
    """
    taken = sorted(set(functions) & set(tables.columns))
    if taken:
        raise ArgumentError(f"functions: expected other names than those of columns, got {', '.join(taken)}")
    for name, most in limits.items():
        if math.isnan(most):
            raise ArgumentError(f"limits: {name}: expected a number, got NaN")
        if name in functions:
            continue
        least = float(tables.column(name).min(axis=1).sum())
        if least > most + _ROUNDING * abs(most):
            raise ArgumentError(
                f"limits: {name}: expected at least {least:g}, what the cheapest options take, got {most:g}"
            )


def _evaluator(
    tables: DesignTables, names: Sequence[str], functions: Mapping[str, CostFunction]
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """Costs by name, ``(n, len(names))``."""
    unknown = [name for name in names if name not in functions and name not in tables.columns]
    if unknown:
        known = ", ".join([*tables.columns, *functions])
        raise ArgumentError(f"objectives, limits: expected some of {known}, got {', '.join(unknown)}")
    additive = [name for name in names if name not in functions]
    add = tables.adder(additive)

    def evaluate(choices: NDArray[np.int64]) -> NDArray[np.float64]:
        added = add(choices)
        columns = {name: added[:, at] for at, name in enumerate(additive)}
        for name in names:
            if name in functions:
                columns[name] = _called(functions[name], choices, name)
        return np.stack([columns[name] for name in names], axis=1)

    return evaluate


def _called(function: CostFunction, choices: NDArray[np.int64], name: str) -> NDArray[np.float64]:
    values = np.asarray(function(choices), np.float64)
    if values.shape != (len(choices),):
        raise ShapeError(f"functions: {name}: expected shape ({len(choices)},), got {values.shape}")
    if not np.isfinite(values).all():
        raise NonFiniteError(f"functions: {name}: expected finite numbers, got NaN or infinity")
    return values


def _violations(costs: NDArray[np.float64], most: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far costs exceed limits, in shares of the limits, added up."""
    scale = np.where(most == 0, 1.0, np.abs(most))
    excess = (costs - most) / scale
    violations: NDArray[np.float64] = np.where(excess > _ROUNDING, excess, 0.0).sum(axis=1)
    return violations


def found_designs(
    tables: DesignTables, vectors: NDArray[np.int64], functions: Mapping[str, CostFunction]
) -> tuple[FoundDesign, ...]:
    """The designs of ``(n, sites)`` vectors with all their costs."""
    names = [*tables.columns, *functions]
    costs = _evaluator(tables, names, functions)(vectors)
    return tuple(
        FoundDesign(tuple(vector.tolist()), tables.design(vector), dict(zip(names, row.tolist(), strict=True)))
        for vector, row in zip(vectors, costs, strict=True)
    )
