"""kANNolo: one sparse HNSW over concatenated vectors, the dense dimensions appended as extra terms."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.hybrid.data import Collection
from benchmarks.hybrid.rivals.protocol import Answer, Engine, Params, Queries

EFS = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def _concatenated(dense: np.ndarray, sparse: sp.csr_matrix, dense_weight: float, sparse_weight: float) -> Arrays:
    """Components, values and offsets; the square root of the scale goes to each side, so values keep a similar size."""
    joint = sp.hstack([sparse * sparse_weight, sp.csr_matrix(dense * dense_weight)], format="csr")
    joint.sort_indices()
    return joint.indices.astype(np.int32), joint.data.astype(np.float32), joint.indptr.astype(np.int64)


class Kannolo:
    """`keep` 100 is the plain index; below it, a two-stage index whose first stage keeps that share of the L1 mass."""

    name = "kannolo"
    family = "one sparse graph"
    version = ""

    def builds(self) -> list[Params]:
        rerank = [(50, 32, 200), (60, 32, 200), (80, 32, 200), (60, 16, 100)]
        return [{"keep": 100, "m": 32, "efc": 200}] + [{"keep": keep, "m": m, "efc": efc} for keep, m, efc in rerank]

    def searches(self, build: Params) -> list[Params]:
        if build["keep"] == 100:
            return [{"ef": ef} for ef in EFS]
        return [{"ef": ef, "pool": pool} for ef in EFS for pool in [10, 20, 40, 80, 160] if ef / 4 <= pool <= ef]

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        import kannolo

        arrays = _concatenated(data.dense, data.sparse, 1.0, scale**0.5)
        options = {"m": build["m"], "ef_construction": build["efc"]}
        start = time.perf_counter()  # the number of threads is set by RAYON_NUM_THREADS before the process starts
        if build["keep"] == 100:
            index = kannolo.SparsePlainHNSW.build_from_arrays(*arrays, **options)
        else:
            index = kannolo.SparseRerankHNSW.build_from_arrays(*arrays, prune_percentage=build["keep"], **options)
        seconds = time.perf_counter() - start
        index.save(str(folder / "index.kannolo"))
        return seconds

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        import kannolo

        kind = kannolo.SparsePlainHNSW if build["keep"] == 100 else kannolo.SparseRerankHNSW
        return _KannoloEngine(kind.load(str(folder / "index.kannolo")))


class _KannoloEngine:
    def __init__(self, index: Any) -> None:
        self._index = index

    def prepare(self, queries: Queries, params: Params) -> Arrays:
        return _concatenated(queries.dense, queries.sparse, queries.weights[0], queries.weights[1] * queries.scale**0.5)

    def search(self, prepared: Arrays, k: int, params: Params) -> Answer:
        more = {"k_candidates": params["pool"]} if "pool" in params else {}
        _, ids = self._index.batch_search(*prepared, k=k, ef_search=params["ef"], num_threads=1, **more)
        return Answer(np.asarray(ids).astype(np.int64).reshape(-1, k))
