"""Published test suites and data: what any hybrid index must pass, and what to feed it.

Nothing else in sparing imports this.

Example:
    >>> from sparing.testing import HybridIndexContract
    >>> class TestMyIndex(HybridIndexContract):
    ...     def build(self, dense, sparse, *, ids):
    ...         return MyIndex.build(dense, sparse, ids=ids)  # doctest: +SKIP
"""

from sparing.testing.data import HybridData, make_clustered
from sparing.testing.index_contract import HybridIndexContract
from sparing.testing.oracle import exact_scores, recall, top_ids
from sparing.testing.strategies import dense_batches, hybrid_batches, sparse_batches

__all__ = [
    "HybridData",
    "HybridIndexContract",
    "dense_batches",
    "exact_scores",
    "hybrid_batches",
    "make_clustered",
    "recall",
    "sparse_batches",
    "top_ids",
]
