"""Dense HNSW: faiss (full floats or 8-bit codes) and hnswlib; alone for dense-only queries, or as one of two routes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hybrid.data import Collection
from benchmarks.hybrid.rivals.protocol import Answer, Engine, Params, Queries

EFS = [10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]


class Faiss:
    """faiss HNSW under inner product; `code` "flat" keeps floats, "sq8" and "fp16" store scalar-quantized vectors."""

    name = "faiss"
    family = "dense only"
    version = ""

    def builds(self) -> list[Params]:
        return [
            {"m": m, "efc": efc, "code": code} for m, efc in [(16, 200), (32, 200)] for code in ["flat", "sq8", "fp16"]
        ]

    def searches(self, build: Params) -> list[Params]:
        return [{"ef": ef} for ef in EFS]

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        import faiss

        faiss.omp_set_num_threads(threads)
        start = time.perf_counter()
        dim = data.dense.shape[1]
        index: Any
        if build["code"] == "flat":
            index = faiss.IndexHNSWFlat(dim, build["m"], faiss.METRIC_INNER_PRODUCT)
        else:
            kinds: Any = {"sq8": faiss.ScalarQuantizer.QT_8bit, "fp16": faiss.ScalarQuantizer.QT_fp16}
            index = faiss.IndexHNSWSQ(dim, kinds[build["code"]], build["m"], faiss.METRIC_INNER_PRODUCT)
            index.train(data.dense)
        index.hnsw.efConstruction = build["efc"]
        index.add(data.dense)
        seconds = time.perf_counter() - start
        faiss.write_index(index, str(folder / "index.faiss"))
        return seconds

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        import faiss

        return _FaissEngine(faiss.read_index(str(folder / "index.faiss")))


class _FaissEngine:
    def __init__(self, index: Any) -> None:
        self._index = index

    def prepare(self, queries: Queries, params: Params) -> np.ndarray:
        return np.ascontiguousarray(queries.dense, np.float32)

    def search(self, prepared: np.ndarray, k: int, params: Params) -> Answer:
        import faiss

        faiss.omp_set_num_threads(1)
        self._index.hnsw.efSearch = max(params["ef"], k)
        return Answer(self._index.search(prepared, k)[1])


class Hnswlib:
    """hnswlib under inner product."""

    name = "hnswlib"
    family = "dense only"
    version = ""

    def builds(self) -> list[Params]:
        return [{"m": 16, "efc": 200}, {"m": 32, "efc": 200}]

    def searches(self, build: Params) -> list[Params]:
        return [{"ef": ef} for ef in EFS]

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        import hnswlib

        start = time.perf_counter()
        index = hnswlib.Index(space="ip", dim=data.dense.shape[1])
        index.init_index(max_elements=len(data.dense), ef_construction=build["efc"], M=build["m"], random_seed=0)
        index.add_items(data.dense, num_threads=threads)
        seconds = time.perf_counter() - start
        index.save_index(str(folder / "index.hnsw"))
        return seconds

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=data.dense.shape[1])
        index.load_index(str(folder / "index.hnsw"))
        return _HnswlibEngine(index)


class _HnswlibEngine:
    def __init__(self, index: Any) -> None:
        self._index = index

    def prepare(self, queries: Queries, params: Params) -> np.ndarray:
        return np.ascontiguousarray(queries.dense, np.float32)

    def search(self, prepared: np.ndarray, k: int, params: Params) -> Answer:
        self._index.set_ef(max(params["ef"], k))
        labels, _ = self._index.knn_query(prepared, k=k, num_threads=1)
        return Answer(labels.astype(np.int64))
