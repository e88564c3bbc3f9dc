"""The alignment factor against a direct computation over the same kind of pairs."""

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.hybrid.alignment import Alignment, align
from sparing.hybrid.inputs import as_rows


def all_pairs(data):
    rows, columns = np.triu_indices(len(data.dense), 1)
    dense = (data.dense @ data.dense.T)[rows, columns]
    sparse = (data.sparse @ data.sparse.T).toarray()[rows, columns]
    return dense, sparse


SPREADS = {
    "std": np.std,
    "range": lambda scores: np.subtract(*np.percentile(scores, [95, 5])),
    "mean": np.mean,
}


@pytest.mark.parametrize("statistic", SPREADS)
def test_it_estimates_the_ratio_over_all_pairs(small, statistic):
    found = align(as_rows(small.dense, small.sparse), statistic=statistic, num_pairs=40_000, seed=1)
    dense, sparse = (SPREADS[statistic](scores) for scores in all_pairs(small))
    assert found.dense_spread == pytest.approx(dense, rel=0.1)
    assert found.sparse_spread == pytest.approx(sparse, rel=0.1)
    assert found.scale == pytest.approx(found.dense_spread / found.sparse_spread, rel=1e-6)
    assert (found.num_pairs, found.seed, found.statistic) == (40_000, 1, statistic)


def test_same_seed_same_scale(small):
    rows = as_rows(small.dense, small.sparse)
    assert align(rows, seed=3) == align(rows, seed=3)
    assert align(rows, seed=3) != align(rows, seed=4)


def test_scaling_one_part_scales_the_factor(small):
    plain = align(as_rows(small.dense, small.sparse))
    scaled = align(as_rows(small.dense, small.sparse * np.float32(8)))
    assert scaled.scale == pytest.approx(plain.scale / 64, rel=1e-5)


def test_items_that_lack_a_part_do_not_count(small):
    dense = np.vstack([small.dense, np.zeros_like(small.dense)])
    sparse = [
        dict(zip(r.indices.tolist(), r.data.tolist(), strict=True)) for r in (small.sparse[[i]] for i in range(300))
    ]
    padded = align(as_rows(dense, [*sparse, *sparse]))
    assert padded.scale == pytest.approx(align(as_rows(small.dense, small.sparse)).scale, rel=1e-6)


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        (np.ones((5, 3), np.float32), None),
        (None, [{1: 1.0}] * 5),
        (np.ones((1, 3), np.float32), [{1: 1.0}]),
        (np.ones((5, 3), np.float32), [{1: 1.0}] * 5),
        (np.zeros((5, 3), np.float32), [{1: 1.0}] * 5),
        (np.eye(5, dtype=np.float32), [{i: 1.0} for i in range(5)]),
        (np.empty((0, 3), np.float32), []),
    ],
    ids=["dense only", "sparse only", "one item", "constant", "zero rows", "no common term", "empty"],
)
def test_nothing_to_measure_gives_one(dense, sparse):
    assert align(as_rows(dense, sparse)).scale == 1.0


def test_none_and_given(small):
    assert HybridIndex.build(small.dense, small.sparse, config=HybridConfig(alignment="none")).alignment.scale == 1.0
    given = HybridIndex.build(small.dense, small.sparse, config=HybridConfig(scale=0.25)).alignment
    assert given == Alignment(0.25, 0.0, 0.0, 0, 0, "given")
    assert given.to_dict()["statistic"] == "given"


def test_the_scale_is_in_the_scores_and_stays(small):
    index = HybridIndex.build(small.dense, small.sparse, config=HybridConfig(scale=0.25))
    plain = HybridIndex.build(small.dense, small.sparse, config=HybridConfig(scale=1.0))
    found = index.search_exact(None, small.sparse_queries, weights=(0, 1))
    np.testing.assert_allclose(
        found.scores * 4, plain.search_exact(None, small.sparse_queries, weights=(0, 1)).scores, rtol=1e-6
    )
    measured = HybridIndex.build(small.dense[:200], small.sparse[:200])
    before = measured.alignment
    measured.add(small.dense[200:] * 9, small.sparse[200:], ids=np.arange(200, 300))
    assert measured.alignment == before


def test_spreads_too_far_apart_for_a_factor_give_one():
    dense = np.array([[1.0], [3.0], [-1.0]], dtype=np.float32)
    tiny = [{1: 1e-30}, {1: 2e-30}, {1: 1e-30}]  # products of 1e-60: no float32 factor brings them up
    assert HybridIndex.build(dense, tiny).alignment.scale == 1.0
