"""Recall and speed of the index and of the naive one, on the same vectors, one thread, the same grid of beams."""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.hybrid.evaluate import recall_of_exact
from sparing.runs.progress import Progress

BEAMS = (10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192)
K = 10
REPEATS = 3
TARGET_RECALL = 0.95


@dataclass(frozen=True)
class Point:
    """One beam: recall against the exact top 10, and questions a second."""

    beam: int
    recall: float
    queries_per_s: float


@dataclass(frozen=True)
class Curve:
    """One index over the grid of beams."""

    name: str
    build_s: float
    points: list[Point]

    def queries_per_s_at(self, recall: float) -> float | None:
        """The best speed among the beams that reach a recall; None where none does."""
        return max((p.queries_per_s for p in self.points if p.recall >= recall), default=None)


@dataclass(frozen=True)
class Vectors:
    """Documents and questions, dense float32 `(n, dim)` and sparse CSR."""

    dense: NDArray[np.float32]
    sparse: sp.csr_array
    dense_q: NDArray[np.float32]
    sparse_q: sp.csr_array


def compare(vectors: Vectors, progress: Progress) -> tuple[Curve, Curve, float]:
    """Measures both; also returns exact questions a second.

    The repeats of the two take turns, so that a busy moment of the machine meets both.
    """
    configs = {"sparing": HybridConfig(), "naive single graph": HybridConfig.naive()}
    indexes, build_s = {}, {}
    for name, config in configs.items():
        begin = time.perf_counter()
        indexes[name] = HybridIndex.build(vectors.dense, vectors.sparse, config=config, progress=progress)
        build_s[name] = time.perf_counter() - begin
    begin = time.perf_counter()
    exact = indexes["sparing"].search_exact(vectors.dense_q, vectors.sparse_q, k=K, num_threads=1)
    exact_per_s = len(vectors.dense_q) / (time.perf_counter() - begin)
    points: dict[str, list[Point]] = {name: [] for name in indexes}
    for done, beam in enumerate(BEAMS, 1):
        seconds: dict[str, list[float]] = {name: [] for name in indexes}
        recalls = {}
        for _ in range(REPEATS):
            for name, index in indexes.items():
                begin = time.perf_counter()
                found = index.search(vectors.dense_q, vectors.sparse_q, k=K, beam=beam, num_threads=1)
                seconds[name].append(time.perf_counter() - begin)
                recalls[name] = float(recall_of_exact(found, exact).mean())
        for name in indexes:
            speed = len(vectors.dense_q) / statistics.median(seconds[name])
            points[name].append(Point(beam, recalls[name], speed))
        progress("measuring", done, len(BEAMS))
    curves = [Curve(name, build_s[name], points[name]) for name in indexes]
    return curves[0], curves[1], exact_per_s
