"""zvec: an embedded database with a dense and a sparse HNSW and weighted fusion of the two lists."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hybrid.data import Collection
from benchmarks.hybrid.rivals.protocol import Answer, Engine, Params, Queries, rows_of

BATCH = 1000
_started = False


def _init(threads: int) -> None:
    import zvec

    global _started  # noqa: PLW0603 - zvec can be initialised once a process
    if not _started:
        zvec.init(query_threads=1, optimize_threads=threads, log_level=zvec.LogLevel.ERROR)
        _started = True


class Zvec:
    """Weighted fusion turns a score s into 0.5 + atan(s)/π first; a small factor on both queries keeps that linear."""

    name = "zvec"
    family = "database"
    version = ""

    def builds(self) -> list[Params]:
        return [{"m": 16, "efc": 200, "code": "none"}, {"m": 32, "efc": 200, "code": "none"}]

    def searches(self, build: Params) -> list[Params]:
        pairs = [(10, 32), (20, 32), (50, 64), (100, 100), (200, 200), (400, 400)]
        return [{"pool": pool, "ef": ef, "shrink": shrink} for pool, ef in pairs for shrink in [1.0, 0.1]]

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        import zvec

        _init(threads)
        ip = zvec.MetricType.IP
        graph = {"metric_type": ip, "m": build["m"], "ef_construction": build["efc"], "use_contiguous_memory": True}
        sparse_graph = graph | {"use_contiguous_memory": False}  # dense vectors only
        schema = zvec.CollectionSchema(
            name="passages",
            vectors=[
                zvec.VectorSchema(
                    "dense", zvec.DataType.VECTOR_FP32, data.dense.shape[1], index_param=zvec.HnswIndexParam(**graph)
                ),
                zvec.VectorSchema(
                    "sparse", zvec.DataType.SPARSE_VECTOR_FP32, 0, index_param=zvec.HnswIndexParam(**sparse_graph)
                ),
            ],
        )
        start = time.perf_counter()
        collection = zvec.create_and_open(str(folder / "collection"), schema)
        rows = rows_of(data.sparse)
        for first in range(0, len(rows), BATCH):
            stop = min(first + BATCH, len(rows))
            collection.insert([self._document(data, rows, item) for item in range(first, stop)])
        collection.optimize(zvec.OptimizeOption(concurrency=threads))
        seconds = time.perf_counter() - start
        collection.close()
        return seconds

    @staticmethod
    def _document(data: Collection, rows: list[tuple[np.ndarray, np.ndarray]], item: int) -> Any:
        import zvec

        terms, values = rows[item]
        sparse = dict(zip(terms.tolist(), values.tolist(), strict=True))
        return zvec.Doc(id=str(item), vectors={"dense": data.dense[item], "sparse": sparse})

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        import zvec

        _init(1)
        return _ZvecEngine(zvec.open(str(folder / "collection"), zvec.CollectionOption(read_only=True)))


class _ZvecEngine:
    def __init__(self, collection: Any) -> None:
        self._collection = collection

    def prepare(self, queries: Queries, params: Params) -> Any:
        import zvec

        option = zvec.HnswQueryParam(ef=max(params["ef"], params["pool"]))
        shrink = params["shrink"]
        batch = []
        for dense, (terms, values) in zip(queries.dense, rows_of(queries.sparse), strict=True):
            sparse = dict(zip(terms.tolist(), (values * (queries.scale * shrink)).tolist(), strict=True))
            batch.append(
                [
                    zvec.Query("dense", vector=dense * np.float32(shrink), param=option),
                    zvec.Query("sparse", vector=sparse, param=option),
                ]
            )
        return batch, zvec.WeightedReRanker(list(queries.weights))

    def search(self, prepared: Any, k: int, params: Params) -> Answer:
        batch, fuse = prepared
        ids = np.full((len(batch), k), -1, np.int64)
        query, pool = self._collection.query, max(params["pool"], k)
        for row, pair in enumerate(batch):
            found = query(queries=pair, topk=pool, reranker=fuse, output_fields=[])[:k]
            ids[row, : len(found)] = [int(document.id) for document in found]
        return Answer(ids)
