"""HybridIndex against plain NumPy, and every approximation on its own."""

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.testing import exact_scores, recall, top_ids

WEIGHTS = [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)]


def truth_of(index, data, weights):
    return exact_scores(
        data.dense, data.sparse, data.dense_queries, data.sparse_queries, weights=weights, scale=index.alignment.scale
    )


@pytest.mark.parametrize("weights", WEIGHTS)
def test_exact_search_equals_numpy(clustered, clustered_index, weights):
    truth = truth_of(clustered_index, clustered, weights)
    found = clustered_index.search_exact(clustered.dense_queries, clustered.sparse_queries, k=20, weights=weights)
    np.testing.assert_allclose(found.scores, -np.sort(-truth, axis=1)[:, :20], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.ids, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("fields", [{"dense_code": "float32", "doc_terms": None}, {}])
def test_a_beam_as_wide_as_the_index_is_exact(small, weights, fields):
    index = HybridIndex.build(small.dense, small.sparse, config=HybridConfig(**fields))
    exact = index.search_exact(small.dense_queries, small.sparse_queries, weights=weights)
    found = index.search(small.dense_queries, small.sparse_queries, weights=weights, beam=len(index))
    if fields:
        np.testing.assert_array_equal(found.scores, exact.scores)
        np.testing.assert_array_equal(found.ids, exact.ids)
    else:  # codes may hide one in hundreds from re-scoring
        assert recall(found.ids, exact.ids) >= 0.99


@pytest.mark.parametrize(("dense_weight", "floor"), [(0.1, 0.9), (0.25, 0.95), (0.5, 0.95), (0.75, 0.95), (0.9, 0.9)])
def test_recall_at_the_default_beam(clustered, clustered_index, dense_weight, floor):
    weights = (dense_weight, 1 - dense_weight)
    wanted = top_ids(truth_of(clustered_index, clustered, weights), np.arange(3000), 10)
    found = clustered_index.search(clustered.dense_queries, clustered.sparse_queries, weights=weights)
    assert recall(found.ids, wanted) >= floor


def test_a_wider_beam_finds_more_and_works_more(clustered, clustered_index):
    wanted = top_ids(truth_of(clustered_index, clustered, (0.5, 0.5)), np.arange(3000), 10)
    shares, work = [], []
    for beam in (10, 40, 200):
        found = clustered_index.search(clustered.dense_queries, clustered.sparse_queries, beam=beam)
        shares.append(recall(found.ids, wanted))
        work.append(found.stats.dense_evaluations)
    assert shares[0] - 0.005 <= shares[1] <= shares[2] + 0.005
    assert shares[2] >= 0.97
    assert work == sorted(work)


OPTIONS = {
    "default": ({}, 0.95),
    "naive": (None, 0.95),
    "float32": ({"dense_code": "float32"}, 0.95),
    "int8": ({"dense_code": "int8"}, 0.95),
    "all terms": ({"doc_terms": None}, 0.95),
    "16 terms": ({"doc_terms": 16}, 0.8),
    "query terms": ({"query_terms": 8}, 0.8),
    "one stage": ({"two_stage": False}, 0.9),
    "no seeds": ({"seeds_per_term": 0}, 0.9),
    "no seed terms": ({"seed_terms": 0}, 0.9),
    "one entry": ({"num_entries": 1}, 0.9),
    "l2": ({"similarity": "l2"}, 0.8),
    "cosine similarity": ({"similarity": "cosine"}, 0.8),
    "narrow": ({"degree": 8, "build_beam": 32}, 0.7),
    "wide": ({"degree": 64}, 0.95),
    "no alignment": ({"alignment": "none"}, 0.9),
    "range": ({"alignment": "range"}, 0.95),
    "mean": ({"alignment": "mean"}, 0.9),
    "given scale": ({"scale": 0.01}, 0.95),
    "dense construction": ({"weights": (1.0, 0.0)}, 0.7),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_alone(clustered, name):
    """Any option may cost recall, never the exactness of scores."""
    fields, floor = OPTIONS[name]
    config = HybridConfig.naive() if fields is None else HybridConfig(**fields)
    index = HybridIndex.build(clustered.dense[:1500], clustered.sparse[:1500], config=config)
    truth = exact_scores(
        clustered.dense[:1500],
        clustered.sparse[:1500],
        clustered.dense_queries,
        clustered.sparse_queries,
        scale=index.alignment.scale,
    )
    found = index.search(clustered.dense_queries, clustered.sparse_queries)
    np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.ids, axis=1), rtol=1e-5, atol=1e-6)
    assert recall(found.ids, top_ids(truth, np.arange(1500), 10)) >= floor


@pytest.mark.parametrize("fields", [{}, {"two_stage": False, "dense_code": "int8"}, {"doc_terms": None}])
def test_the_number_of_threads_changes_nothing(clustered, tmp_path, fields):
    data, config = clustered, HybridConfig(**fields)
    files, answers = [], []
    for threads in (1, 2, 4):
        index = HybridIndex.build(data.dense[:700], data.sparse[:700], config=config, num_threads=threads)
        index.add(data.dense[700:900], data.sparse[700:900], ids=np.arange(700, 900), num_threads=threads)
        index.update(data.dense[900:1000], data.sparse[900:1000], ids=np.arange(100), num_threads=threads)
        index.delete(np.arange(200, 300))
        index.compact(num_threads=threads)
        index.save(tmp_path / str(threads))
        files.append((tmp_path / str(threads)).read_bytes())
        answers.append(index.search(data.dense_queries, data.sparse_queries, num_threads=threads))
    assert files[0] == files[1] == files[2]
    for other in answers[1:]:
        np.testing.assert_array_equal(answers[0].ids, other.ids)
        np.testing.assert_array_equal(answers[0].scores, other.scores)


def test_another_seed_gives_another_index(small, tmp_path):
    for seed in (0, 1):
        HybridIndex.build(small.dense, small.sparse, config=HybridConfig(seed=seed)).save(tmp_path / str(seed))
    assert (tmp_path / "0").read_bytes() != (tmp_path / "1").read_bytes()


def test_weights_per_query_and_as_a_pair(small):
    index = HybridIndex.build(small.dense, small.sparse)
    queries = small.dense_queries, small.sparse_queries
    pair = index.search(*queries, weights=(0.3, 0.7))
    rows = index.search(*queries, weights=np.tile([0.3, 0.7], (20, 1)))
    np.testing.assert_array_equal(pair.scores, rows.scores)
    doubled = index.search_exact(*queries, weights=(0.6, 1.4))
    np.testing.assert_allclose(doubled.scores, 2 * index.search_exact(*queries, weights=(0.3, 0.7)).scores, rtol=1e-6)


def test_zero_weights_score_zero(small):
    index = HybridIndex.build(small.dense, small.sparse)
    found = index.search(small.dense_queries, small.sparse_queries, k=5, weights=(0, 0))
    assert (found.scores == 0).all()
    assert (found.ids >= 0).all()


def test_one_query_and_a_batch_give_the_same(small):
    index = HybridIndex.build(small.dense, small.sparse)
    row = small.sparse_queries[[3]]
    as_dict = dict(zip(row.indices.tolist(), row.data.tolist(), strict=True))
    batch = index.search(small.dense_queries[3:4], row, k=7)
    for sparse_q in (as_dict, [as_dict], row, sp.csr_matrix(row)):
        single = index.search(small.dense_queries[3], sparse_q, k=7)
        assert single.ids.shape == single.scores.shape == (7,)
        np.testing.assert_array_equal(single.ids, batch.ids[0])
        np.testing.assert_array_equal(single.scores, batch.scores[0])
    assert index.search(None, as_dict, k=7).ids.shape == (7,)
    assert index.search(small.dense_queries[3], k=7).ids.shape == (7,)
    assert index.search(None, row, k=7).ids.shape == (1, 7)


def test_result_types_and_stats(small):
    index = HybridIndex.build(small.dense, small.sparse)
    found = index.search(small.dense_queries, small.sparse_queries, k=3)
    assert found.ids.dtype == np.int64
    assert found.scores.dtype == np.float32
    assert found.stats.num_queries == 20
    assert found.stats.seconds > 0
    assert min(found.stats.hops, found.stats.sparse_evaluations, found.stats.exact_evaluations) > 0
    dense_only = index.search(small.dense_queries, small.sparse_queries, k=3, weights=(1, 0))
    assert dense_only.stats.sparse_evaluations == 0
    sparse_only = index.search(small.dense_queries, small.sparse_queries, k=3, weights=(0, 1))
    assert sparse_only.stats.dense_evaluations == 0


def test_more_answers_than_items_are_padded(small):
    index = HybridIndex.build(small.dense[:5], small.sparse[:5])
    for search in (index.search, index.search_exact):
        found = search(small.dense_queries, small.sparse_queries, k=50)
        assert (np.sort(found.ids[:, :5]) == np.arange(5)).all()
        assert (found.ids[:, 5:] == -1).all()
        assert np.isneginf(found.scores[:, 5:]).all()


def test_an_empty_batch(small):
    index = HybridIndex.build(small.dense, small.sparse)
    found = index.search(small.dense_queries[:0], small.sparse_queries[:0], k=4)
    assert found.ids.shape == found.scores.shape == (0, 4)
    index.add(small.dense[:0], small.sparse[:0], ids=[])
    index.update(small.dense[:0], small.sparse[:0], ids=[])
    index.delete([])
    assert len(index) == 300


def test_an_empty_index_answers_with_padding_and_takes_items(small):
    index = HybridIndex.build(small.dense[:0], small.sparse[:0])
    assert len(index) == 0
    assert index.stats.index_bytes_per_item == 0 or index.stats.num_items == 0
    assert (index.search(small.dense_queries, small.sparse_queries, k=3).ids == -1).all()
    assert (index.search_exact(small.dense_queries, small.sparse_queries, k=3).ids == -1).all()
    index.add(small.dense, small.sparse, ids=np.arange(300))
    fresh = HybridIndex.build(small.dense, small.sparse)
    assert index.alignment == fresh.alignment
    np.testing.assert_array_equal(
        index.search(small.dense_queries, small.sparse_queries).ids,
        fresh.search(small.dense_queries, small.sparse_queries).ids,
    )


def test_a_single_item():
    index = HybridIndex.build(np.ones((1, 3), np.float32), [{5: 2.0}], ids=[42])
    found = index.search(np.ones(3, np.float32), {5: 3.0}, k=2, weights=(1, 1))
    assert found.ids.tolist() == [42, -1]
    assert found.scores[0] == pytest.approx(3 + 6 * index.alignment.scale)


@pytest.mark.parametrize("part", ["dense", "sparse"])
def test_an_index_of_one_part(clustered, part):
    data = clustered
    dense, sparse = (data.dense, None) if part == "dense" else (None, data.sparse)
    dense_q, sparse_q = (data.dense_queries, None) if part == "dense" else (None, data.sparse_queries)
    index = HybridIndex.build(dense, sparse)
    assert index.alignment.scale == 1.0
    wanted = top_ids(exact_scores(dense, sparse, dense_q, sparse_q), np.arange(3000), 10)
    assert recall(index.search(dense_q, sparse_q).ids, wanted) >= 0.95
    assert recall(index.search_exact(dense_q, sparse_q).ids, wanted) > 0.999


def test_a_sparse_query_on_a_dense_index_scores_zero(small):
    index = HybridIndex.build(small.dense, None)
    assert (index.search(None, small.sparse_queries, k=3).scores == 0).all()


def test_negative_sparse_weights():
    rng = np.random.default_rng(3)
    rows = [{int(t): float(rng.standard_normal()) for t in rng.choice(200, 12, replace=False)} for _ in range(800)]
    queries = [{int(t): float(rng.standard_normal()) for t in rng.choice(200, 8, replace=False)} for _ in range(40)]
    index = HybridIndex.build(None, rows)
    truth = exact_scores(None, rows, None, queries, weights=(0, 1))
    exact = index.search_exact(None, queries, weights=(0, 1))
    np.testing.assert_allclose(exact.scores, -np.sort(-truth, axis=1)[:, :10], rtol=1e-5, atol=1e-5)
    found = index.search(None, queries, weights=(0, 1), beam=200)
    assert recall(found.ids, exact.ids) >= 0.9


def test_the_whole_range_of_term_ids():
    """Traversal knows terms by 16-bit names; where these collide, exact scores still tell terms apart."""
    rng = np.random.default_rng(4)
    extremes = [0, 65534, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
    rows = [
        {term: float(rng.random() + 0.1) for term in {*rng.integers(0, 2**32, 10).tolist(), extremes[i % 7]}}
        for i in range(500)
    ]
    index = HybridIndex.build(None, rows)
    queries = [{term: 1.0, int(rng.integers(0, 2**32)): 1.0} for term in extremes]
    truth = exact_scores(None, rows, None, queries, weights=(0, 1))
    exact = index.search_exact(None, queries, k=60, weights=(0, 1))
    np.testing.assert_allclose(exact.scores, -np.sort(-truth, axis=1)[:, :60], rtol=1e-6)
    found = index.search(None, queries, weights=(0, 1))
    assert recall(found.ids, exact.ids[:, :10]) >= 0.95


@pytest.mark.parametrize("count", [100, 700, 5000, 40_000])
def test_a_query_of_many_terms(count):
    rows = [dict.fromkeys(range(i % 7, count, 7 + i), 1.0) for i in range(12)]
    index = HybridIndex.build(None, rows, config=HybridConfig(scale=1.0))
    query = {t: 1.0 + (t % 3) for t in range(count)}
    truth = exact_scores(None, rows, None, [query], weights=(0, 1))
    found = index.search_exact(None, [query], k=12, weights=(0, 1))
    np.testing.assert_allclose(found.scores, -np.sort(-truth, axis=1), rtol=1e-5)


@pytest.mark.parametrize("terms", [500, 600, 2000])
def test_many_equal_terms_do_not_overflow_traversal(terms):
    """32-bit sums of 16-bit by 8-bit products hold 516 products of the largest values."""
    same = dict.fromkeys(range(terms), 1.0)
    rows = [same, *({10_000 + i: 1.0, 5: 0.5} for i in range(300))]
    index = HybridIndex.build(None, rows, config=HybridConfig(scale=1.0, doc_terms=4096))
    found = index.search(None, same, k=3, beam=10, weights=(0, 1))
    assert found.ids[0] == 0
    assert found.scores[0] == terms


@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200])
@pytest.mark.parametrize("dense_code", ["int4", "int8", "float32"])
def test_any_dimension(dim, dense_code):
    rng = np.random.default_rng(dim)
    dense, queries = rng.standard_normal((200, dim), np.float32), rng.standard_normal((10, dim), np.float32)
    index = HybridIndex.build(dense, None, config=HybridConfig(dense_code=dense_code))
    exact = index.search_exact(queries, weights=(1, 0))
    np.testing.assert_allclose(exact.scores, -np.sort(-(queries @ dense.T), axis=1)[:, :10], rtol=1e-4, atol=1e-5)
    assert recall(index.search(queries, weights=(1, 0), beam=150).ids, exact.ids) >= 0.95


def test_cosine_normalises_the_dense_part_only(small):
    stretched = small.dense * np.random.default_rng(5).uniform(0.1, 9, (300, 1)).astype(np.float32)
    queries = small.dense_queries * 7
    index = HybridIndex.build(stretched, small.sparse, config=HybridConfig(metric="cosine"))
    plain = HybridIndex.build(small.dense, small.sparse)
    assert index.alignment.scale == pytest.approx(plain.alignment.scale, rel=1e-5)
    found = index.search_exact(queries, small.sparse_queries)
    expected = plain.search_exact(small.dense_queries, small.sparse_queries)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    zero = HybridIndex.build(np.zeros((3, 4), np.float32), None, config=HybridConfig(metric="cosine"))
    assert (zero.search_exact(np.ones(4, np.float32), k=3).scores == 0).all()


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_cosine_of_extreme_lengths(size):
    index = HybridIndex.build(
        np.eye(3, dtype=np.float32) * np.float32(size), None, config=HybridConfig(metric="cosine")
    )
    found = index.search_exact(np.eye(3, dtype=np.float32)[1] * np.float32(size), k=3, weights=(1, 0))
    assert found.ids[0] == 1
    assert found.scores[0] == pytest.approx(1.0, rel=1e-5)


def test_zero_vectors_are_absent_parts():
    dense = np.eye(6, 8, dtype=np.float32)
    dense[[1, 4]] = 0
    index = HybridIndex.build(dense, [{1: 1.0}, {}, {1: 2.0}, {}, {}, {2: 0.0}])
    found = index.search_exact(np.ones(8, np.float32), {1: 1.0}, k=6, weights=(1, 0))
    assert found.ids.tolist() == [0, 2, 3, 5, 1, 4]
    assert found.scores.tolist() == [1, 1, 1, 1, 0, 0]
    nothing = index.search(np.zeros(8, np.float32), {}, k=6)
    assert sorted(nothing.ids.tolist()) == list(range(6))
    assert (nothing.scores == 0).all()


def test_huge_and_tiny_values_never_break_a_search():
    rng = np.random.default_rng(6)
    for size in (1e-45, 1e-38, 1e15):
        dense = (rng.choice([-1, 1], (400, 16)) * size).astype(np.float32)
        rows = [{int(t): float(np.float32(size)) for t in rng.choice(50, 5, replace=False)} for _ in range(400)]
        index = HybridIndex.build(dense, rows, config=HybridConfig(scale=1.0))
        found = index.search(dense[:20], rows[:20], k=50)
        assert (found.ids >= 0).all()
        assert np.isfinite(found.scores).all()


def test_membership_and_printing(small):
    index = HybridIndex.build(small.dense[:3], small.sparse[:3], ids=[1, 10, 2**62])
    assert 1 in index
    assert 2**62 in index
    assert 2 not in index
    assert "3 items, dim=24" in repr(index)
    stats = index.stats
    assert (stats.num_items, stats.num_deleted, stats.dim) == (3, 0, 24)
    assert stats.num_nonzeros == small.sparse[:3].nnz
    assert stats.to_dict()["num_items"] == 3


@pytest.mark.parametrize("value", [1.5, 2**70, "a", None, -1])
def test_what_is_no_id_is_not_in_the_index(small, value):
    assert value not in HybridIndex.build(small.dense[:3], small.sparse[:3])


def test_progress_reaches_the_end(small):
    calls = []
    HybridIndex.build(small.dense, small.sparse, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("build", 300, 300)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_re_scoring_goes_on_while_codes_are_far_from_the_truth():
    """Rows of 60 terms of like weight of which codes keep 8: the order of code scores says little."""
    generator = np.random.default_rng(7)
    sparse = [
        dict(zip(generator.choice(90, 60, replace=False).tolist(), generator.uniform(1, 2, 60), strict=True))
        for _ in range(400)
    ]
    queries = [
        dict(zip(generator.choice(90, 30, replace=False).tolist(), generator.uniform(1, 2, 30), strict=True))
        for _ in range(40)
    ]
    index = HybridIndex.build(None, sparse, config=HybridConfig(doc_terms=8))
    found = index.search(None, queries, k=10, beam=400).ids
    exact = index.search_exact(None, queries, k=10).ids
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    assert np.mean(shared) > 0.95
