"""The alignment factor against a direct computation over the same kind of pairs."""

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.errors import DuplicateIdError, NonFiniteError
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


def test_an_index_filled_item_by_item_is_measured_as_one_built_at_once():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((300, 16)).astype(np.float32)
    sparse = [{int(t): float(rng.gamma(2, 5)) for t in rng.integers(0, 100, 20)} for _ in dense]
    whole = HybridIndex.build(dense, sparse)
    grown = HybridIndex.build(dense[:0], [])
    for i in range(300):
        grown.add(dense[i : i + 1], sparse[i : i + 1], ids=[i])
    assert grown.alignment.scale == pytest.approx(whole.alignment.scale, rel=0.1)
    assert len(grown) == 300
    a, b = (index.search_exact(dense[:20], sparse[:20], k=5) for index in (whole, grown))
    assert (a.ids == b.ids).mean() > 0.95


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_growing_index_keeps_what_it_was_told(tmp_path):
    dense, sparse = np.eye(8, dtype=np.float32), [{i: 1.0} for i in range(8)]
    index = HybridIndex.build(dense[:2], sparse[:2], ids=[5, 6], config=HybridConfig(degree=4, doc_terms=64))
    index.delete([5])
    index.save(tmp_path / "two")
    for opened in (index, HybridIndex.open(tmp_path / "two")):
        with pytest.raises(DuplicateIdError, match=r"id 6 is in the index already; use update"):
            opened.add(dense, sparse, ids=[1, 2, 3, 4, 5, 6, 7, 8])
        with pytest.raises(NonFiniteError, match=r"dense item row 3, column 0 is nan"):
            opened.add(np.where(np.arange(8)[:, None] == 3, np.nan, dense), sparse, ids=np.arange(10, 18))
        with pytest.raises(KeyboardInterrupt):
            opened.add(dense, sparse, ids=np.arange(10, 18), progress=interrupt)
        assert len(opened) == 1  # nothing happened
        opened.add(dense[2:], None, ids=[1, 2, 3, 4, 7, 8])
        opened.update(dense[:1], sparse[:1], ids=[6])
        found = opened.search_exact(dense, None, k=1)
        assert found.ids[:, 0].tolist()[2:] == [1, 2, 3, 4, 7, 8]
        assert found.ids[0, 0] == 6
        assert (opened.config.degree, opened.stats.doc_terms, opened.stats.num_nonzeros) == (4, 64, 2)


def test_a_large_index_keeps_its_measure():
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((3000, 4)).astype(np.float32)
    sparse = [{0: float(x)} for x in rng.random(3000)]
    index = HybridIndex.build(dense[:1000], sparse[:1000])
    before = index.alignment
    index.add(100 * dense[1000:], sparse[1000:], ids=np.arange(1000, 3000))
    assert index.alignment == before


def test_rows_that_hardly_ever_share_a_term():
    rng = np.random.default_rng(0)
    sparse = [dict.fromkeys(rng.integers(0, 200_000, 3).tolist(), 1.0) for _ in range(3000)]
    rows = as_rows(rng.standard_normal((3000, 16)).astype(np.float32), sparse)
    found = [align(rows, seed=seed) for seed in range(5)]
    scales = [alignment.scale for alignment in found]
    assert max(scales) < 1.05 * min(scales)
    assert found[0].sparse_spread == pytest.approx((9 / 200_000) ** 0.5, rel=0.3)
    apart = as_rows(np.eye(5, dtype=np.float32), [{i: 1.0} for i in range(5)])
    assert (align(apart).scale, align(apart).num_pairs) == (1.0, 0)
