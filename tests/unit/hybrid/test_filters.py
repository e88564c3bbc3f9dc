"""Filters: only allowed ids, k of them if k exist, exact scores, good recall, from one item to all of them."""

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridIndex
from sparing.testing import exact_scores, recall, top_ids

SHARES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("share", SHARES)
def test_the_promise_at_every_selectivity(clustered, clustered_index, share, weights):
    count = max(1, round(3000 * share))
    allowed = np.random.default_rng(count).choice(3000, count, replace=False)
    truth = exact_scores(
        clustered.dense,
        clustered.sparse,
        clustered.dense_queries,
        clustered.sparse_queries,
        weights=weights,
        scale=clustered_index.alignment.scale,
    )
    queries = clustered.dense_queries, clustered.sparse_queries
    found = clustered_index.search(*queries, weights=weights, filter=allowed)
    exact = clustered_index.search_exact(*queries, weights=weights, filter=allowed)
    wanted = top_ids(truth[:, allowed], allowed, 10)
    for answers in (found, exact):
        valid = answers.ids >= 0
        np.testing.assert_array_equal(valid.sum(axis=1), min(10, count))
        assert np.isin(answers.ids[valid], allowed).all()
        assert np.isneginf(answers.scores[~valid]).all()
        assert all(len(set(row[row >= 0])) == min(10, count) for row in answers.ids)
        of_ids = np.take_along_axis(truth, np.maximum(answers.ids, 0), axis=1)
        np.testing.assert_allclose(answers.scores[valid], of_ids[valid], rtol=1e-5, atol=1e-6)
    assert recall(exact.ids, wanted) > 0.999
    assert recall(found.ids, wanted) >= 0.95


def test_a_filter_next_to_the_query_and_far_from_it(clustered, clustered_index):
    """Allowed items in one corner of the graph, asked from anywhere: a walk alone would miss them."""
    near = clustered.dense @ clustered.dense[0]
    allowed = np.argsort(-near)[:300]
    queries = clustered.dense_queries, clustered.sparse_queries
    found = clustered_index.search(*queries, filter=allowed)
    exact = clustered_index.search_exact(*queries, filter=allowed)
    assert (found.ids >= 0).all()
    assert recall(found.ids, exact.ids) >= 0.9


def test_unknown_repeated_and_negative_ids_in_a_filter(clustered, clustered_index):
    queries = clustered.dense_queries[:5], clustered.sparse_queries[:5]
    odd = [7, 7, 7, 8, 999_999, -1, -(2**63), 2**63 - 1]
    found = clustered_index.search(*queries, k=5, filter=odd)
    assert (np.sort(found.ids[:, :2], axis=1) == [7, 8]).all()
    assert (found.ids[:, 2:] == -1).all()


def test_an_empty_filter_allows_nothing_and_none_allows_all(clustered, clustered_index):
    queries = clustered.dense_queries[:5], clustered.sparse_queries[:5]
    for search in (clustered_index.search, clustered_index.search_exact):
        assert (search(*queries, filter=[]).ids == -1).all()
        assert (search(*queries, filter=None).ids >= 0).all()


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_filter_types(clustered, clustered_index, dtype):
    queries = clustered.dense_queries[:5], clustered.sparse_queries[:5]
    found = clustered_index.search(*queries, k=3, filter=np.arange(100, 200)[::2].astype(dtype))
    assert ((found.ids >= 100) & (found.ids < 200) & (found.ids % 2 == 0)).all()


def test_filters_and_deleted_items(small):
    index = HybridIndex.build(small.dense, small.sparse)
    index.delete(np.arange(100))
    for search in (index.search, index.search_exact):
        found = search(small.dense_queries, small.sparse_queries, k=20, filter=np.arange(90, 110))
        assert (np.sort(found.ids[:, :10], axis=1) == np.arange(100, 110)).all()
        assert (found.ids[:, 10:] == -1).all()
