"""Data and indexes that several files read; none of them changes these."""

import pytest


@pytest.fixture(scope="session")
def clustered():
    """3,000 items in topics, 100 queries."""
    from sparing.testing import make_clustered

    return make_clustered(3000, seed=1)


@pytest.fixture(scope="session")
def clustered_index(clustered):
    """The default index over them, ids 0 to 2,999. Never change it."""
    pytest.importorskip("sparing._core", reason="needs the compiled core")
    from sparing.hybrid import HybridIndex

    return HybridIndex.build(clustered.dense, clustered.sparse)


@pytest.fixture(scope="session")
def small():
    """300 items of 24 dimensions, 20 queries."""
    from sparing.testing import make_clustered

    return make_clustered(300, dim=24, vocabulary=500, terms=15, query_terms=6, topics=12, queries=20, seed=2)
