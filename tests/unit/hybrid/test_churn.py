"""Adding, deleting, updating and compacting: quality stays that of a fresh build."""

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.testing import exact_scores, make_clustered, recall, top_ids

WEIGHTS = [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]


def recalls(index, dense, sparse, ids, data):
    scale = index.alignment.scale
    shares = []
    for weights in WEIGHTS:
        truth = exact_scores(dense, sparse, data.dense_queries, data.sparse_queries, weights=weights, scale=scale)
        found = index.search(data.dense_queries, data.sparse_queries, weights=weights)
        assert np.isin(found.ids, ids).all()
        shares.append(recall(found.ids, top_ids(truth, ids, 10)))
    return np.array(shares)


@pytest.mark.parametrize("fields", [{}, {"two_stage": False}, {"doc_terms": None, "dense_code": "float32"}])
def test_a_third_of_the_items_changed(fields):
    """10 % deleted, 10 % updated, 10 % added; before and after compact within .02 of a fresh build."""
    data = make_clustered(2200, seed=11)
    config = HybridConfig(**fields, scale=0.03)
    rng = np.random.default_rng(12)
    index = HybridIndex.build(data.dense[:1800], data.sparse[:1800], config=config)
    shuffled = rng.permutation(1800)
    gone, moved = shuffled[:180], shuffled[180:360]
    index.delete(gone)
    index.update(data.dense[1800:1980], data.sparse[1800:1980], ids=moved)
    index.add(data.dense[1980:2160], data.sparse[1980:2160], ids=np.arange(5000, 5180))
    source = np.arange(1800)
    source[moved] = np.arange(1800, 1980)
    kept = np.setdiff1d(np.arange(1800), gone)
    source, ids = np.concatenate([source[kept], np.arange(1980, 2160)]), np.concatenate([kept, np.arange(5000, 5180)])
    dense, sparse = data.dense[source], data.sparse[source]
    fresh = recalls(HybridIndex.build(dense, sparse, ids=ids, config=config), dense, sparse, ids, data)
    assert (len(index), index.stats.num_deleted) == (1800, 360)
    assert (recalls(index, dense, sparse, ids, data) >= fresh - 0.02).all()
    index.compact()
    assert (len(index), index.stats.num_deleted) == (1800, 0)
    assert (recalls(index, dense, sparse, ids, data) >= fresh - 0.02).all()


def test_many_rounds_of_churn():
    """Twelve rounds that turn over the whole index."""
    data = make_clustered(2400, seed=13)
    config = HybridConfig(scale=0.03)
    index = HybridIndex.build(data.dense[:1200], data.sparse[:1200], config=config)
    for i in range(12):
        index.add(
            data.dense[1200 + 100 * i : 1300 + 100 * i],
            data.sparse[1200 + 100 * i : 1300 + 100 * i],
            ids=np.arange(1200 + 100 * i, 1300 + 100 * i),
        )
        index.delete(np.arange(100 * i, 100 * (i + 1)))
        if i % 4 == 3:
            index.compact()
    ids = np.arange(1200, 2400)
    fresh = HybridIndex.build(data.dense[1200:], data.sparse[1200:], ids=ids, config=config)
    expected = recalls(fresh, data.dense[1200:], data.sparse[1200:], ids, data)
    assert (recalls(index, data.dense[1200:], data.sparse[1200:], ids, data) >= expected - 0.03).all()


def test_growing_one_by_one(small):
    index = HybridIndex.build(small.dense[:1], small.sparse[:1], config=HybridConfig(scale=0.05))
    for i in range(1, 300):
        index.add(small.dense[i : i + 1], small.sparse[[i]], ids=[i])
    shares = recalls(index, small.dense, small.sparse, np.arange(300), small)
    assert (shares >= 0.95).all()


def test_everything_deleted_then_filled_again(small):
    index = HybridIndex.build(small.dense, small.sparse)
    index.delete(np.arange(300))
    assert len(index) == 0
    assert (index.search(small.dense_queries, small.sparse_queries).ids == -1).all()
    index.compact()
    assert (index.search(small.dense_queries, small.sparse_queries).ids == -1).all()
    index.add(small.dense, small.sparse, ids=np.arange(300))
    assert (recalls(index, small.dense, small.sparse, np.arange(300), small) >= 0.95).all()


def test_everything_deleted_and_filled_without_compact(small):
    index = HybridIndex.build(small.dense[:150], small.sparse[:150], config=HybridConfig(scale=0.05))
    index.delete(np.arange(150))
    index.add(small.dense, small.sparse, ids=np.arange(300))
    assert (recalls(index, small.dense, small.sparse, np.arange(300), small) >= 0.95).all()
    index.compact()
    assert len(index) == 300
    assert (recalls(index, small.dense, small.sparse, np.arange(300), small) >= 0.95).all()


def test_a_deleted_id_can_come_back(small):
    index = HybridIndex.build(small.dense, small.sparse)
    index.delete([5])
    assert 5 not in index
    index.add(small.dense[6:7], small.sparse[[6]], ids=[5])
    found = index.search_exact(small.dense[6], small.sparse[[6]], k=2, weights=(1, 0))
    assert found.ids.tolist() == [5, 6]
    index.compact()
    assert 5 in index
    assert len(index) == 300


def test_an_update_can_drop_a_part(small):
    index = HybridIndex.build(small.dense, small.sparse)
    index.update(small.dense[:1], None, ids=[0])
    index.update(None, small.sparse[[1]], ids=[1])
    queries = small.dense[:2], small.sparse[[0, 1]]
    dense = index.search_exact(*queries, weights=(1, 0), k=300)
    sparse = index.search_exact(*queries, weights=(0, 1), k=300)
    assert sparse.scores[0][sparse.ids[0] == 0] == 0
    assert dense.scores[1][dense.ids[1] == 1] == 0
    assert dense.ids[0, 0] == 0


def test_compacting_twice_changes_nothing(small, tmp_path):
    index = HybridIndex.build(small.dense, small.sparse)
    index.delete([1, 2, 3])
    index.compact()
    index.save(tmp_path / "once")
    index.compact()
    index.save(tmp_path / "twice")
    assert (tmp_path / "once").read_bytes() == (tmp_path / "twice").read_bytes()
