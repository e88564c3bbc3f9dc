"""Evolutionary search for fronts over vectors of options: several objectives, constraints, ask and tell.

Source: K. Deb et al., *A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II*, 2002: non-dominated sorting,
crowding, and what keeps the constraints before what breaks them. Besides: no vector is in the population twice, and the
front of all that was ever tried is kept in an archive.

====================  =========================================================
in papers             here
====================  =========================================================
individual, genome    vector, ``(sites,)`` numbers of options
gene, allele          site, option
constraint violation  violation, 0 where all constraints are kept
====================  =========================================================
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from sparing.explore.breeding import (
    EvolutionConfig,
    Vectors,
    check_vectors,
    children,
    crowding,
    distinct,
    first_vectors,
    survival_order,
)
from sparing.explore.pareto import pareto_front

__all__ = ["Evolution", "Front", "minimize"]

Evaluate = Callable[[Vectors], ArrayLike | tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class Front:
    """What no other vector that was told dominates, all constraints kept; rising in the first objective, then the next.

    Attributes:
        vectors: ``(f, sites)`` int64.
        objectives: ``(f, m)`` float64; of equal rows one is kept.
        evaluations: vectors told so far.
        least_violation: of all vectors told; above 0 exactly where the front is empty. Infinity before the first.
    """

    vectors: Vectors
    objectives: NDArray[np.float64]
    evaluations: int
    least_violation: float


class Evolution:
    """The search, one generation at a time: :meth:`ask` for vectors, :meth:`tell` what they cost.

    The same seed, configuration and answers give the same vectors. Not to be used from several threads at once.

    Args:
        num_options: of each site, at least 1.
        seed: 0 or more.
        config: how vectors are bred.
        start: ``(k, sites)`` vectors to begin with, besides random ones; those that a generation has no room for come
            in the next ones.

    Raises:
        ArgumentError: no sites, a site without options, a negative seed, or a start outside the options.
        DtypeError, ShapeError: a start that is no array of whole numbers of this shape.

    Example:
        >>> search = Evolution([4, 4, 4], seed=0, config=EvolutionConfig(population=8))
        >>> for _ in range(20):
        ...     vectors = search.ask()
        ...     search.tell(np.stack([vectors.sum(1), (3 - vectors).max(1)], axis=1))
        >>> search.front().objectives.tolist()
        [[0.0, 3.0], [3.0, 2.0], [6.0, 1.0], [9.0, 0.0]]
    """

    def __init__(
        self,
        num_options: Sequence[int],
        *,
        seed: int,
        config: EvolutionConfig | None = None,
        start: ArrayLike | None = None,
    ) -> None:
        self.config = config or EvolutionConfig()
        self.num_options = _checked_options(num_options)
        if seed < 0:
            raise ArgumentError(f"seed: expected 0 or more, got {seed}")
        self._rng = np.random.default_rng(seed)
        sites = len(self.num_options)
        given = check_vectors([] if start is None else start, self.num_options, name="start")
        self._start = given[distinct(given)]  # those that were not asked for yet
        self._asked: Vectors | None = None
        self._vectors = np.empty((0, sites), np.int64)  # the population, the best first
        self._costs: NDArray[np.float64] | None = None
        self._violations = np.empty(0)
        self._front = np.empty((0, sites), np.int64)
        self._front_costs: NDArray[np.float64] = np.empty((0, 0))
        self._evaluations = 0
        self._least_violation = float("inf")

    def ask(self, most: int | None = None) -> Vectors:
        """New vectors to evaluate; the first time those to start with and random ones.

        Args:
            most: fewer than a generation, at least 1.

        Returns:
            ``(n, sites)`` int64, each below the site's number of options; n is at most the population. Where nearly all
            vectors there are have been tried, some come again.

        Raises:
            ArgumentError: the last vectors' costs have not been told, or fewer than 1 asked for.
        """
        if self._asked is not None:
            raise ArgumentError(f"ask: tell the costs of the {len(self._asked)} vectors that were asked for first")
        count = self.config.population if most is None else min(most, self.config.population)
        if count < 1:
            raise ArgumentError(f"most: expected at least 1, got {most}")
        given, self._start = self._start[:count], self._start[count:]
        if self._costs is None:
            found = first_vectors(given, self.num_options, count, self._rng)
        elif len(given) == count:
            found = given
        else:
            bred = children(self._vectors, self.num_options, count - len(given), self.config, self._rng)
            found = np.concatenate([given, bred])
        self._asked = found
        return found.copy()

    def tell(self, objectives: ArrayLike, violations: ArrayLike | None = None) -> None:
        """What the vectors of the last :meth:`ask` cost.

        Args:
            objectives: ``(n, m)``, finite, less is better; m >= 1 is the same each time.
            violations: ``(n,)``, finite, >= 0; 0 where all constraints are kept, else how badly they are broken. None
                where there are no constraints.

        Raises:
            ArgumentError: nothing was asked for, or a negative violation.
            DtypeError, NonFiniteError, ShapeError: not finite real numbers of these shapes. In all cases nothing has
                changed, and the costs can be told again.
        """
        if self._asked is None:
            raise ArgumentError("tell: expected vectors that were asked for, got costs without an ask before")
        asked = self._asked
        costs = _real(objectives, name="objectives")
        broken = np.zeros(len(asked)) if violations is None else _real(violations, name="violations")
        columns = None if self._costs is None else self._costs.shape[1]
        if costs.ndim != 2 or len(costs) != len(asked) or costs.shape[1] != (columns or max(1, costs.shape[1])):
            raise ShapeError(f"objectives: expected shape ({len(asked)}, {columns or 'm >= 1'}), got {costs.shape}")
        if broken.shape != (len(asked),):
            raise ShapeError(f"violations: expected shape ({len(asked)},), got {broken.shape}")
        if (broken < 0).any():
            raise ArgumentError("violations: expected 0 or more, got a negative one")
        self._asked = None
        self._evaluations += len(asked)
        self._least_violation = min(self._least_violation, float(broken.min()))
        before = np.empty((0, costs.shape[1])) if self._costs is None else self._costs
        self._select(
            np.concatenate([self._vectors, asked]),
            np.concatenate([before, costs]),
            np.concatenate([self._violations, broken]),
        )
        self._remember(asked[broken == 0], costs[broken == 0])

    def front(self) -> Front:
        """The best so far."""
        order = np.lexsort(self._front_costs.T[::-1]) if len(self._front) else np.empty(0, np.intp)
        return Front(self._front[order], self._front_costs[order], self._evaluations, self._least_violation)

    def _select(self, vectors: Vectors, costs: NDArray[np.float64], violations: NDArray[np.float64]) -> None:
        kept = distinct(vectors)
        vectors, costs, violations = vectors[kept], costs[kept], violations[kept]
        order = survival_order(costs, violations)[: self.config.population]
        self._vectors, self._costs, self._violations = vectors[order], costs[order], violations[order]

    def _remember(self, vectors: Vectors, costs: NDArray[np.float64]) -> None:
        if len(self._front):
            vectors, costs = np.concatenate([self._front, vectors]), np.concatenate([self._front_costs, costs])
        kept = pareto_front(costs)
        if len(kept) > self.config.archive:
            spread = crowding(costs[kept], np.zeros(len(kept), np.intp))
            kept = kept[np.sort(np.argsort(-spread, kind="stable")[: self.config.archive])]
        self._front, self._front_costs = vectors[kept], costs[kept]


def minimize(
    evaluate: Evaluate,
    num_options: Sequence[int],
    *,
    evaluations: int,
    seed: int,
    config: EvolutionConfig | None = None,
    start: ArrayLike | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Front:
    """Runs a search until a number of vectors has been evaluated.

    Args:
        evaluate: maps ``(n, sites)`` int64 to objectives ``(n, m)``, or to these and violations ``(n,)``; see
            :meth:`Evolution.tell`.
        num_options: see :class:`Evolution`.
        evaluations: how many, at least 1.
        seed: see :class:`Evolution`.
        config: see :class:`Evolution`.
        start: see :class:`Evolution`.
        progress: called with ``("evaluations", done, total)``.

    Returns:
        The front; empty where no vector that was tried keeps the constraints.

    Raises:
        ArgumentError, DtypeError, NonFiniteError, ShapeError: as :class:`Evolution` and its methods, or fewer than 1
            evaluation.
    """
    if evaluations < 1:
        raise ArgumentError(f"evaluations: expected at least 1, got {evaluations}")
    search, done = Evolution(num_options, seed=seed, config=config, start=start), 0
    while done < evaluations:
        vectors = search.ask(evaluations - done)
        found = evaluate(vectors)
        search.tell(*(found if isinstance(found, tuple) else (found,)))
        done += len(vectors)
        if progress is not None:
            progress("evaluations", done, evaluations)
    return search.front()


def _checked_options(num_options: Sequence[int]) -> NDArray[np.int64]:
    options = np.asarray(num_options)
    if options.ndim != 1 or len(options) == 0:
        raise ArgumentError(f"num_options: expected a number for each of at least one site, got shape {options.shape}")
    if options.dtype.kind not in "iu" or (options < 1).any():
        raise ArgumentError(f"num_options: expected whole numbers of at least 1, got {options.tolist()}")
    return options.astype(np.int64)


def _real(values: ArrayLike, *, name: str) -> NDArray[np.float64]:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DtypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name}: expected finite numbers, got NaN or infinity; tell the cost of every vector")
    return array
