"""qdrant-edge: an embedded database with a dense HNSW, a sparse inverted index and formulas over their lists."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hybrid.data import Collection, K
from benchmarks.hybrid.rivals.protocol import Answer, Engine, Params, Queries, rows_of

BATCH = 1000


class Qdrant:
    """Two ways to write the weighted sum: over the two lists (a missing partner counts 0), or `fill`, where each route
    re-scores the union of both lists first, so that no partner is missing.
    """

    name = "qdrant-edge"
    family = "database"
    version = ""

    def builds(self) -> list[Params]:
        return [{"m": 16, "efc": 200}, {"m": 32, "efc": 200}]

    def searches(self, build: Params) -> list[Params]:
        pairs = [(10, 32), (20, 32), (50, 64), (100, 100), (200, 200), (400, 400)]
        return [{"pool": pool, "ef": ef, "fill": fill} for pool, ef in pairs for fill in [False, True]]

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        import qdrant_edge as edge

        config = edge.EdgeConfig(
            vectors={"dense": edge.EdgeVectorParams(size=data.dense.shape[1], distance=edge.Distance.Dot)},
            sparse_vectors={"sparse": edge.EdgeSparseVectorParams()},
            hnsw_config=edge.HnswIndexConfig(
                m=build["m"], ef_construct=build["efc"], full_scan_threshold=10, max_indexing_threads=threads
            ),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1),
            max_search_threads=1,
            wal_enabled=False,
        )
        start = time.perf_counter()
        (folder / "shard").mkdir()
        shard = edge.EdgeShard.create(str(folder / "shard"), config)
        rows = rows_of(data.sparse)
        for first in range(0, len(rows), BATCH):
            stop = min(first + BATCH, len(rows))
            points = [edge.Point(item, _vectors(data.dense[item], *rows[item]), None) for item in range(first, stop)]
            shard.update(edge.UpdateOperation.upsert_points(points))
        while shard.optimize():
            pass
        seconds = time.perf_counter() - start
        shard.flush()
        shard.close()
        return seconds

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        import qdrant_edge as edge

        return _QdrantEngine(edge.EdgeShard.load(str(folder / "shard")))


def _vectors(dense: np.ndarray, terms: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    import qdrant_edge as edge

    return {"dense": dense.tolist(), "sparse": edge.SparseVector(terms.tolist(), values.tolist())}


class _QdrantEngine:
    def __init__(self, shard: Any) -> None:
        self._shard = shard

    def prepare(self, queries: Queries, params: Params) -> list[Any]:
        import qdrant_edge as edge

        new = edge.Expression
        weights = (queries.weights[0], queries.weights[1] * queries.scale)
        parts = [new.Mult([new.Constant(weight), new.Variable(f"$score[{at}]")]) for at, weight in enumerate(weights)]
        formula = edge.Formula(new.Sum(parts), defaults={"$score[0]": 0.0, "$score[1]": 0.0})
        pool = params["pool"]
        requests = []
        for dense, (terms, values) in zip(queries.dense, rows_of(queries.sparse), strict=True):
            vectors = _vectors(dense, terms, values)
            routes = [
                edge.Prefetch(
                    limit=pool,
                    query=edge.Query.Nearest(vectors[name], using=name),
                    params=edge.SearchParams(hnsw_ef=params["ef"]) if name == "dense" else None,
                )
                for name in ["dense", "sparse"]
            ]
            if params["fill"]:
                routes = [
                    edge.Prefetch(
                        limit=2 * pool, query=edge.Query.Nearest(vectors[name], using=name), prefetches=routes
                    )
                    for name in ["dense", "sparse"]
                ]
            requests.append(edge.QueryRequest(limit=K, query=formula, prefetches=routes))
        return requests

    def search(self, prepared: list[Any], k: int, params: Params) -> Answer:
        ids = np.full((len(prepared), k), -1, np.int64)
        for row, request in enumerate(prepared):
            found = self._shard.query(request)[:k]
            ids[row, : len(found)] = [point.id for point in found]
        return Answer(ids)
