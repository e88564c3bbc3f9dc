"""How evolution breeds vectors of options and which of them survive: the steps of one generation, as functions.

Source: K. Deb et al., *A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II*, 2002. Beside it: no vector is in
the population twice, and changes may prefer neighbouring options.
"""

from functools import lru_cache
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.explore.pareto import front_ranks

__all__ = [
    "EvolutionConfig",
    "Vectors",
    "check_vectors",
    "children",
    "crowding",
    "distinct",
    "first_vectors",
    "mutate_",
    "survival_order",
]

Vectors = NDArray[np.int64]
"""``(n, sites)``: the number of an option for each site."""

_Share = Annotated[float, Field(ge=0, le=1)]


class EvolutionConfig(BaseModel):
    """How vectors are bred.

    Attributes:
        population: vectors that are kept, and new ones a generation, 4 to 1,000,000.
        crossover: share of new vectors with two parents; each site is then of either with equal chance.
        mutations: sites changed in a new vector, in the mean, above 0.
        neighbours: share of these changes that go to the option before or after, where options are in an order that
            means something; the others go to any.
        archive: most points of the front that are kept; the most crowded ones are dropped first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    population: Annotated[int, Field(ge=4, le=1_000_000)] = 100
    crossover: _Share = 0.9
    mutations: Annotated[float, Field(gt=0)] = 1.5
    neighbours: _Share = 0.0
    archive: Annotated[int, Field(ge=1)] = 2000


def first_vectors(start: Vectors, num_options: NDArray[np.int64], count: int, rng: np.random.Generator) -> Vectors:
    """At most `count` to start with, and as many random ones as make ``(count, sites)``."""
    shape = (count - len(start), len(num_options))
    return np.concatenate([start, rng.integers(num_options, size=shape, dtype=np.int64)])


def children(
    parents: Vectors, num_options: NDArray[np.int64], count: int, config: EvolutionConfig, rng: np.random.Generator
) -> Vectors:
    """New vectors.

    Args:
        parents: ``(n, sites)``, the best first.
        num_options: ``(sites,)``.
        count: how many.
        config: how they are bred.
        rng: draws.

    Returns:
        ``(count, sites)``; those that repeat a parent or one another are changed up to three times more.
    """
    # Of two drawn at random the better one.
    mothers, fathers = (parents[rng.integers(len(parents), size=(2, count)).min(axis=0)] for _ in range(2))
    from_father = rng.random(mothers.shape) < 0.5
    from_father &= rng.random((count, 1)) < config.crossover
    bred: Vectors = np.where(from_father, fathers, mothers)
    mutate_(bred, num_options, config, rng)
    known = _keys(parents)
    for _ in range(3):
        keys = _keys(bred)
        is_first = np.zeros(count, np.bool_)
        is_first[np.unique(keys, return_index=True)[1]] = True
        again = np.flatnonzero(~is_first | np.isin(keys, known))
        if not len(again):
            break
        changed = bred[again]
        mutate_(changed, num_options, config, rng)
        bred[again] = changed
    return bred


def mutate_(
    vectors: Vectors, num_options: NDArray[np.int64], config: EvolutionConfig, rng: np.random.Generator
) -> None:
    """Changes some sites in place; a site with one option stays, and the others are changed the more often."""
    free = num_options > 1
    rate = min(1.0, config.mutations / max(1, int(free.sum())))
    rows, sites = np.nonzero(rng.random(vectors.shape) < np.where(free, rate, 0.0))
    options, now = num_options[sites], vectors[rows, sites]
    # Any other option with equal chance.
    then = (now + rng.integers(1, options)) % options
    if config.neighbours:
        sign = rng.integers(2, size=len(now)) * 2 - 1
        # At either end the way back.
        beside = np.where((now + sign < 0) | (now + sign >= options), now - sign, now + sign)
        then = np.where(rng.random(len(now)) < config.neighbours, beside, then)
    vectors[rows, sites] = then


def distinct(vectors: Vectors) -> NDArray[np.intp]:
    """Places of the first of equal vectors, ascending."""
    return np.sort(np.unique(_keys(vectors), return_index=True)[1])


def crowding(costs: NDArray[np.float64], ranks: NDArray[np.intp]) -> NDArray[np.float64]:
    """Crowding distance within each front.

    Args:
        costs: ``(n, m)``.
        ranks: ``(n,)``, of :func:`~sparing.explore.front_ranks`.

    Returns:
        ``(n,)``; for each objective the distance between the two neighbours in the same front, as a share of the
        front's extent, added up; infinity at the ends.
    """
    total = np.zeros(len(costs))
    for column in costs.T:
        order = np.lexsort((column, ranks))
        value, rank = column[order], ranks[order]
        edge = np.flatnonzero(np.diff(rank)) + 1
        starts, stops = np.concatenate([[0], edge]), np.concatenate([edge, [len(order)]])
        extent = np.repeat(value[stops - 1] - value[starts], stops - starts)
        gap = np.zeros(len(order))
        gap[1:-1] = value[2:] - value[:-2]
        share = np.divide(gap, extent, out=np.zeros(len(order)), where=extent > 0)
        share[starts] = share[stops - 1] = np.inf
        total[order] += share
    return total


def survival_order(costs: NDArray[np.float64], violations: NDArray[np.float64]) -> NDArray[np.intp]:
    """Places of the best first: by front and crowding; then those that break constraints, by how badly.

    Args:
        costs: ``(n, m)``, less is better.
        violations: ``(n,)``, 0 where constraints are kept.
    """
    good, bad = np.flatnonzero(violations == 0), np.flatnonzero(violations > 0)
    ranks = front_ranks(costs[good])
    spread = crowding(costs[good], ranks) if len(good) else np.empty(0)
    return np.concatenate([good[np.lexsort((-spread, ranks))], bad[np.argsort(violations[bad], kind="stable")]])


def check_vectors(vectors: ArrayLike, num_options: NDArray[np.int64], *, name: str) -> Vectors:
    """``(k, sites)`` int64 numbers of options.

    Raises:
        ArgumentError: a number outside the options.
        DtypeError, ShapeError: no array of whole numbers of this shape.
    """
    array = np.asarray(vectors)
    if array.size == 0 and array.ndim <= 2:
        return np.empty((0, len(num_options)), np.int64)
    if array.dtype.kind not in "iu":
        raise DtypeError(f"{name}: expected whole numbers, got dtype {array.dtype}")
    if array.ndim != 2 or array.shape[1] != len(num_options):
        raise ShapeError(f"{name}: expected shape (k, {len(num_options)}), got {array.shape}")
    found: Vectors = np.ascontiguousarray(array, np.int64)
    # Negative numbers are very large ones without a sign.
    is_wrong = found.view(np.uint64) >= num_options.astype(np.uint64)
    if is_wrong.any():
        row, site = np.argwhere(is_wrong)[0].tolist()
        raise ArgumentError(
            f"{name}: expected options 0 to {num_options[site] - 1} at site {site}, got {array[row, site]}"
        )
    return found


def _keys(vectors: Vectors) -> NDArray[np.uint64]:
    """A number for each vector; equal ones for different vectors are as rare as 1 in 2⁶⁴ and cost one vector."""
    added, factors = _secrets(vectors.shape[1])
    mixed = (vectors.astype(np.uint64) + added) * factors
    mixed ^= mixed >> np.uint64(29)
    keys: NDArray[np.uint64] = (mixed * added).sum(axis=1, dtype=np.uint64)
    return keys


@lru_cache(maxsize=16)
def _secrets(sites: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    added, factors = np.random.default_rng(0).integers(1 << 64, size=(2, sites), dtype=np.uint64) | np.uint64(1)
    return added, factors
