"""Two indexes, two lists, exact re-scoring of their union: how hybrid search is done today, at its best."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.hybrid.data import VOCABULARY, Collection
from benchmarks.hybrid.rivals.protocol import Answer, Engine, Params, Queries
from benchmarks.hybrid.rivals.rescore import rescore

POOLS = [20, 30, 50, 100, 200]


@dataclass(frozen=True)
class _Prepared:
    queries: Queries
    dense: Any
    sparse: Any


class TwoRoutesEngine:
    """A dense and a sparse engine behind one search; a route whose weight is 0 is not asked.

    Search settings: `dense` and `sparse` (the routes' own), `dense_pool` and `sparse_pool`.
    """

    def __init__(self, data: Collection, dense: Engine, sparse: Engine) -> None:
        self._dense, self._sparse = dense, sparse
        self._vectors = data.dense
        self._rows = (data.sparse.indptr.astype(np.int64), data.sparse.indices.astype(np.int32), data.sparse.data)

    def prepare(self, queries: Queries, params: Params) -> _Prepared:
        return _Prepared(
            queries,
            self._dense.prepare(queries, params["dense"]),
            self._sparse.prepare(queries, params["sparse"]),
        )

    def search(self, prepared: _Prepared, k: int, params: Params) -> Answer:
        queries = prepared.queries
        none = np.full((len(queries), 1), -1, np.int64)
        start = time.perf_counter()
        by_dense = by_sparse = none
        if queries.weights[0] > 0:
            by_dense = self._dense.search(prepared.dense, params["dense_pool"], params["dense"]).ids
        if queries.weights[1] > 0:
            by_sparse = self._sparse.search(prepared.sparse, params["sparse_pool"], params["sparse"]).ids
        routes_s = time.perf_counter() - start
        sparse = queries.sparse
        ids = rescore(
            self._vectors,
            *self._rows,
            queries.dense,
            sparse.indptr.astype(np.int64),
            sparse.indices,
            sparse.data,
            by_dense,
            by_sparse,
            queries.weights[0],
            queries.weights[1] * queries.scale,
            k,
            VOCABULARY,
        )
        return Answer(ids, routes_s)
