"""Exact scores and exact top k of the weighted sum, by blocked NumPy and SciPy, cached in the work folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.hybrid.data import Collection

BLOCK = 200


def score_blocks(
    collection: Collection, num_queries: int | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (first query, dense scores, sparse scores) in blocks of queries, each (block, n) float32."""
    total = num_queries or len(collection.query_dense)
    passages = collection.sparse.T.tocsr()
    for start in range(0, total, BLOCK):
        stop = min(start + BLOCK, total)
        dense = collection.query_dense[start:stop] @ collection.dense.T
        sparse = (collection.query_sparse[start:stop] @ passages).toarray()
        yield start, dense, sparse.astype(np.float32, copy=False)


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows' best k columns, best first, ties by column."""
    k = min(k, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    # A tie at the k-th place may be cut either way by the partition: take the lowest columns among equals.
    border = np.take_along_axis(scores, best, 1).min(1)
    answer = np.empty((len(scores), k), np.int64)
    for row, least in enumerate(border):
        columns = np.flatnonzero(scores[row] >= least)
        order = np.lexsort((columns, -scores[row, columns]))[:k]
        answer[row] = columns[order]
    return answer


def exact_top_k(
    collection: Collection, weights: tuple[float, float], scale: float, *, num_queries: int, k: int, work: Path
) -> np.ndarray:
    """(num_queries, k) rows of the exact weighted top k, from the cache where it exists."""
    mark = collection.fingerprint.replace(":", "_")
    cache = work / f"exact-{mark}-{num_queries}-{k}-{weights[0]:g}-{weights[1]:g}-{scale:.6g}.npy"
    if cache.is_file():
        cached: np.ndarray = np.load(cache, allow_pickle=False)
        return cached
    parts = []
    for _, dense, sparse in score_blocks(collection, num_queries):
        mixed = np.float32(weights[0]) * dense + np.float32(weights[1] * scale) * sparse
        parts.append(top_k(mixed, k))
    answer = np.concatenate(parts)
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, answer)
    return answer
