"""The frozen records that searches and indexes give back."""

import dataclasses
import json

import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridIndex, IndexStats, SearchResult, SearchStats


def test_they_are_frozen(small):
    index = HybridIndex.build(small.dense, small.sparse)
    found = index.search(small.dense_queries, small.sparse_queries)
    for record, kind in ((found, SearchResult), (found.stats, SearchStats), (index.stats, IndexStats)):
        assert type(record) is kind
        name = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)


def test_stats_add_up(small):
    index = HybridIndex.build(small.dense, small.sparse)
    stats = index.stats
    assert stats.link_bytes == 300 * 28 * 4
    assert stats.num_links <= 300 * 28
    assert stats.num_links > 300
    assert stats.index_bytes_per_item == pytest.approx((stats.code_bytes + stats.link_bytes + stats.entry_bytes) / 300)
    assert stats.vector_bytes >= small.dense.nbytes + 6 * small.sparse.nnz  # terms below 65,536 take two bytes
    assert json.loads(json.dumps(stats.to_dict())) == stats.to_dict()
    index.delete([1, 2])
    assert (index.stats.num_items, index.stats.num_deleted) == (298, 2)
    index.compact()
    assert (index.stats.num_items, index.stats.num_deleted) == (298, 0)
