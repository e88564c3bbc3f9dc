import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from sparing.explore import best_under_budget, hypervolume, pareto_front

# Few distinct values, so that ties and duplicates are common.
POINTS = hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.integers(1, 4)), elements=st.integers(0, 4).map(float))
PLANE = hnp.arrays(np.float64, st.tuples(st.integers(0, 8), st.just(2)), elements=st.integers(0, 6).map(float))


def front_by_definition(points):
    kept = []
    for i, point in enumerate(points):
        beaten = any((q <= point).all() and (q < point).any() for q in points)
        if not beaten and not any((points[j] == point).all() for j in range(i)):
            kept.append(i)
    return kept


@settings(max_examples=300)
@given(POINTS, st.data())
def test_front_is_the_definition(points, data):
    found = pareto_front(points)
    assert found.dtype == np.intp
    assert found.tolist() == front_by_definition(points)
    senses = data.draw(st.lists(st.booleans(), min_size=points.shape[1], max_size=points.shape[1]))
    flipped = points * np.where(senses, 1, -1)
    assert pareto_front(flipped, minimize=senses).tolist() == found.tolist()
    assert pareto_front(-points, minimize=False).tolist() == found.tolist()


def test_front_by_hand():
    assert pareto_front([[1, 5], [2, 2], [3, 3], [4, 1], [2, 2], [1, 6]]).tolist() == [0, 1, 3]
    assert pareto_front([[1, 9], [2, 8], [0, 7]], minimize=[True, False]).tolist() == [0, 2]
    assert pareto_front([[3.0], [1.0], [1.0]]).tolist() == [1]


def test_a_large_front_is_quick():
    x = np.random.default_rng(0).random(200_000)
    assert len(pareto_front(np.stack([x, -x], axis=1))) == len(np.unique(x))


@settings(max_examples=200)
@given(PLANE)
def test_hypervolume_counts_unit_squares(points):
    corner = 5
    squares = sum(any(x <= i and y <= j for x, y in points) for i in range(corner) for j in range(corner))
    assert hypervolume(points, [corner, corner]) == squares
    assert hypervolume(-points, [-corner, -corner], minimize=False) == squares


def test_hypervolume_by_hand():
    assert hypervolume([[1, 2], [2, 1], [2, 2], [5, 0]], [3, 3]) == 3
    assert hypervolume(np.empty((0, 2)), [1, 1]) == 0


def test_best_under_budget():
    errors, costs = [0.3, 0.1, 0.1, 0.1, 0.0], [1, 5, 4, 4, 9]
    assert best_under_budget(errors, costs, budget=9) == 4
    assert best_under_budget(errors, costs, budget=8) == 2
    assert best_under_budget(errors, costs, budget=1) == 0
    assert best_under_budget(errors, [[c, -c] for c in costs], budget=[np.inf, -5]) == 4
    with pytest.raises(ArgumentError, match=r"nothing fits \[0.5\]; the least costs are \[1.0\]"):
        best_under_budget(errors, costs, budget=0.5)
    with pytest.raises(ArgumentError, match="no candidates"):
        best_under_budget([], [], budget=1)
    with pytest.raises(ArgumentError, match="NaN"):
        best_under_budget(errors, costs, budget=float("nan"))
    with pytest.raises(ShapeError, match="budget"):
        best_under_budget(errors, costs, budget=[1, 2])
    with pytest.raises(ShapeError, match="errors, costs"):
        best_under_budget(errors[:2], costs, budget=1)


def test_bad_points():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError, match="costs"):
            pareto_front([[1, bad]])
    with pytest.raises(ShapeError, match=r"expected shape \(n, m\)"):
        pareto_front([1, 2])
    with pytest.raises(ShapeError, match="objectives"):
        pareto_front(np.empty((3, 0)))
    with pytest.raises(ShapeError, match="minimize"):
        pareto_front([[1, 2]], minimize=[True])
    with pytest.raises(DtypeError, match="real numbers"):
        pareto_front([["a", "b"]])
    with pytest.raises(ShapeError, match="two objectives"):
        hypervolume([[1, 2, 3]], [4, 4])
    with pytest.raises(ShapeError, match="reference"):
        hypervolume([[1, 2]], [4])
