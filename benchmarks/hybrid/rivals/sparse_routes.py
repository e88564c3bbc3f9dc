"""Sparse inverted indexes: pyseismic-lsr (Seismic) and pyvsag (SINDI), as one of two routes."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.hybrid.data import Collection
from benchmarks.hybrid.rivals.protocol import Answer, Engine, Params, Queries, rows_of


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends the process's standard output (also a native library's) to nowhere for a while."""
    kept = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class Seismic:
    """Seismic: clustered posting lists with summaries, exact scores of what it visits."""

    name = "pyseismic"
    family = "sparse only"
    version = ""

    def builds(self) -> list[Params]:
        return [{"postings": 2000, "energy": 0.5}, {"postings": 4000, "energy": 0.4}]

    def searches(self, build: Params) -> list[Params]:
        return [{"cut": cut, "heap": heap} for cut in [3, 5, 8, 12] for heap in [0.7, 0.8, 0.9, 1.0]]

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        import seismic

        source = folder / "vectors.bin"
        _write_seismic(data.sparse, source)
        start = time.perf_counter()
        with quiet():
            index = seismic.SeismicIndexRaw.build(
                str(source), n_postings=build["postings"], summary_energy=build["energy"]
            )
        seconds = time.perf_counter() - start
        source.unlink()
        with quiet():
            index.save(str(folder / "seismic"))
        return seconds

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        import seismic

        with quiet():
            return _SeismicEngine(seismic.SeismicIndexRaw.load(str(next(folder.glob("seismic*")))))


def _write_seismic(matrix: sp.csr_matrix, file: Path) -> None:
    """Seismic's own file: rows, then for each row its length, term ids (u32) and values (f32)."""
    with file.open("wb") as out:
        out.write(np.uint32(matrix.shape[0]).tobytes())
        for terms, values in rows_of(matrix):
            out.write(np.uint32(len(terms)).tobytes())
            out.write(terms.astype(np.uint32).tobytes())
            out.write(values.astype(np.float32).tobytes())


class _SeismicEngine:
    def __init__(self, index: Any) -> None:
        self._index = index

    def prepare(self, queries: Queries, params: Params) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(terms.astype(np.int32), values.astype(np.float32)) for terms, values in rows_of(queries.sparse)]

    def search(self, prepared: list[tuple[np.ndarray, np.ndarray]], k: int, params: Params) -> Answer:
        # One query a call: measured as fast as its batch call, which reads queries from a file.
        search, cut, heap = self._index.search, params["cut"], params["heap"]
        found = [search(terms, values, k, cut, heap, 0, True) for terms, values in prepared]
        ids = np.full((len(found), k), -1, np.int64)
        for row, pairs in enumerate(found):
            ids[row, : len(pairs)] = [item for _, item in pairs]
        return Answer(ids)


class Sindi:
    """SINDI of VSAG: term-at-a-time over windowed posting lists, with pruning of documents, queries and lists."""

    name = "pyvsag"
    family = "sparse only"
    version = ""

    def builds(self) -> list[Params]:
        return [
            {"doc_prune": 0.0, "reorder": False, "quantized": False},
            {"doc_prune": 0.2, "reorder": False, "quantized": False},
            {"doc_prune": 0.4, "reorder": False, "quantized": False},
            {"doc_prune": 0.6, "reorder": False, "quantized": False},
            {"doc_prune": 0.4, "reorder": False, "quantized": True},
            {"doc_prune": 0.4, "reorder": True, "quantized": False},
        ]

    def searches(self, build: Params) -> list[Params]:
        return [
            {"query_prune": query, "term_prune": term} for query in [0.0, 0.2, 0.4] for term in [0.0, 0.2, 0.4, 0.6]
        ]

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        index = _new_sindi(build)
        matrix = data.sparse
        ids = np.arange(matrix.shape[0], dtype=np.int64)
        start = time.perf_counter()
        index.build(
            index_pointers=matrix.indptr.astype(np.uint32),
            indices=matrix.indices.astype(np.uint32),
            values=matrix.data,
            ids=ids,
        )
        seconds = time.perf_counter() - start
        index.save(str(folder / "index.sindi"))
        return seconds

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        index = _new_sindi(build)
        index.load(str(folder / "index.sindi"))
        return _SindiEngine(index)


def _new_sindi(build: Params) -> Any:
    import pyvsag

    pyvsag.set_logger_off()
    settings = {
        "use_reorder": build["reorder"],
        "use_quantization": build["quantized"],
        "doc_prune_ratio": build["doc_prune"],
        "term_id_limit": 30_522,
        "window_size": 60_000,  # the largest allowed: fewest passes
        "avg_doc_term_length": 143,
    }
    return pyvsag.Index(
        "sindi", json.dumps({"dtype": "sparse", "metric_type": "ip", "dim": 1024, "index_param": settings})
    )


class _SindiEngine:
    def __init__(self, index: Any) -> None:
        self._index = index

    def prepare(self, queries: Queries, params: Params) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return [
            (np.array([0, len(terms)], np.uint32), terms.astype(np.uint32), values.astype(np.float32))
            for terms, values in rows_of(queries.sparse)
        ]

    def search(self, prepared: list[tuple[np.ndarray, np.ndarray, np.ndarray]], k: int, params: Params) -> Answer:
        text = json.dumps(
            {
                "sindi": {
                    "n_candidate": k,
                    "query_prune_ratio": params["query_prune"],
                    "term_prune_ratio": params["term_prune"],
                }
            }
        )
        search = self._index.knn_search
        ids = np.full((len(prepared), k), -1, np.int64)
        for row, (pointers, terms, values) in enumerate(prepared):
            found = search(pointers, terms, values, k, text)[0]
            ids[row, : found.size] = found.ravel()
        return Answer(ids)
