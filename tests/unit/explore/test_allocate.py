import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from sparing.explore import allocate_exact, allocate_greedy, allocation_front

SITE = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=4)
PROBLEMS = st.lists(SITE, min_size=1, max_size=5)


def split(sites):
    return [[e for e, _ in site] for site in sites], [[c for _, c in site] for site in sites]


@settings(max_examples=300, deadline=None)
@given(PROBLEMS, st.integers(0, 20))
def test_exact_is_the_best_of_all_and_greedy_keeps_the_budget(sites, room):
    errors, costs = split(sites)
    least = sum(min(e) for e in errors)
    budget = least + room
    every = [
        (sum(c[i] for c, i in zip(costs, pick, strict=True)), sum(e[i] for e, i in zip(errors, pick, strict=True)))
        for pick in itertools.product(*(range(len(site)) for site in sites))
    ]
    best = min(pair for pair in every if pair[1] <= budget)
    exact = allocate_exact(errors, costs, budget=budget)
    assert (exact.cost, exact.error) == best
    greedy = allocate_greedy(errors, costs, budget=budget)
    for found in (exact, greedy):
        assert found.error == sum(e[i] for e, i in zip(errors, found.choices, strict=True)) <= budget
        assert found.cost == sum(c[i] for c, i in zip(costs, found.choices, strict=True))
    assert best[0] <= greedy.cost <= sum(c[i] for c, i in zip(costs, map(np.argmin, errors), strict=True))


def test_by_hand():
    # 8 saved for 0.2, then 4 for 0.8; 8 for 0.5: with 0.7 to spend the first and the last.
    errors, costs = [[0.0, 0.2, 1.0], [0.0, 0.5]], [[16, 8, 4], [16, 8]]
    for allocate in (allocate_greedy, allocate_exact):
        assert allocate(errors, costs, budget=0.7).choices == (1, 1)
        assert allocate(errors, costs, budget=0.0).choices == (0, 0)
        assert allocate(errors, costs, budget=float("inf")).choices == (2, 1)


def test_greedy_is_near_the_optimum_when_sites_are_many():
    rng = np.random.default_rng(0)
    errors = [np.sort(rng.integers(0, 50, 4)) for _ in range(60)]
    costs = [np.sort(rng.integers(0, 1000, 4))[::-1] for _ in range(60)]
    least = sum(int(e.min()) for e in errors)
    for room in (100, 300, 1000):
        exact = allocate_exact(errors, costs, budget=least + room)
        greedy = allocate_greedy(errors, costs, budget=least + room)
        assert exact.cost <= greedy.cost <= 1.01 * exact.cost + 10


@settings(max_examples=60, deadline=None)
@given(PROBLEMS, st.integers(0, 10))
def test_a_larger_budget_never_costs_more_exactly(sites, room):
    errors, costs = split(sites)
    least = sum(min(e) for e in errors)
    smaller, larger = (allocate_exact(errors, costs, budget=least + extra).cost for extra in (room, room + 3))
    assert larger <= smaller


@pytest.mark.parametrize("allocate", [allocate_greedy, allocate_exact])
def test_bad_arguments(allocate):
    with pytest.raises(ArgumentError, match="at least one site"):
        allocate([], [], budget=1)
    with pytest.raises(ArgumentError, match="add up to 3, more than the budget 2"):
        allocate([[1], [2, 4]], [[1], [1, 1]], budget=2)
    with pytest.raises(ArgumentError, match="NaN"):
        allocate([[1]], [[1]], budget=float("nan"))
    with pytest.raises(ShapeError, match="expected 1 sites"):
        allocate([[1]], [], budget=1)
    with pytest.raises(ShapeError, match=r"costs\[0\]"):
        allocate([[1]], [[1, 2]], budget=1)
    with pytest.raises(ShapeError, match=r"errors\[1\]"):
        allocate([[1], []], [[1], []], budget=1)
    with pytest.raises(NonFiniteError, match=r"errors\[0\]"):
        allocate([[float("nan")]], [[1]], budget=1)
    with pytest.raises(DtypeError, match=r"costs\[0\]"):
        allocate([[1]], [["a"]], budget=1)


def test_too_many_states():
    rng = np.random.default_rng(0)
    with pytest.raises(ArgumentError, match="max_states"):
        allocate_exact(rng.random((30, 8)), rng.random((30, 8)), budget=1e9, max_states=1000)


def supported(sites):
    """The (error, cost) of all allocations that alone are best at some price, by trying every one at every price."""
    sums = {(sum(e for e, _ in pick), sum(c for _, c in pick)) for pick in itertools.product(*sites)}
    # Between two prices at which some pair of them is equal nothing changes.
    pairs = ((a, b) for a, b in itertools.permutations(sums, 2) if a[0] < b[0] and a[1] > b[1])
    turns = [Fraction(0), *sorted({Fraction(b[0] - a[0], a[1] - b[1]) for a, b in pairs})]
    prices = [(low + high) / 2 for low, high in itertools.pairwise([*turns, turns[-1] + 2])]
    return sorted({min(sums, key=lambda s: s[0] + price * s[1]) for price in prices})


@settings(max_examples=100, deadline=None)
@given(st.lists(SITE, min_size=1, max_size=3))
def test_the_front_is_what_is_best_at_some_price(sites):
    errors, costs = split(sites)
    front = allocation_front(errors, costs)
    assert [(found.error, found.cost) for found in front] == supported(sites)
    for found in front:
        assert found.error == sum(e[i] for e, i in zip(errors, found.choices, strict=True))
        assert found.cost == sum(c[i] for c, i in zip(costs, found.choices, strict=True))


def test_the_front_of_any_numbers():
    rng = np.random.default_rng(0)
    for _ in range(50):
        errors, costs = rng.random((2, 20, 6)) ** 8
        front = allocation_front(errors, costs)
        points = np.array([(found.error, found.cost) for found in front])
        assert (np.diff(points[:, 0]) > 0).all()
        assert (np.diff(points[:, 1]) < 0).all()
        for price in np.geomspace(1e-9, 1e9, 400):
            best = np.min(errors + price * costs, axis=1).sum()
            assert (points @ [1, price]).min() == pytest.approx(best, rel=1e-12)


def test_the_front_by_hand():
    errors, costs = [[0.0, 0.2, 1.0], [0.0, 0.5]], [[16, 8, 4], [16, 8]]
    assert [found.choices for found in allocation_front(errors, costs)] == [(0, 0), (1, 0), (1, 1), (2, 1)]
    # Of equal errors the least cost; what moves at one price moves at once; nothing that is beaten.
    assert [f.choices for f in allocation_front([[1, 1, 2, 9], [0, 1]], [[5, 4, 2, 2], [3, 1]])] == [(1, 0), (2, 1)]
    assert [f.choices for f in allocation_front([[3]], [[7]])] == [(0,)]
    with pytest.raises(ArgumentError, match="errors: expected at least one site"):
        allocation_front([], [])
