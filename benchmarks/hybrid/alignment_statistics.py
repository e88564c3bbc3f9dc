"""The candidate alignment statistics: a scale from sampled scores, `spread(dense) / spread(sparse)`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from benchmarks.hybrid.data import Collection


def _spread_range(values: np.ndarray) -> float:
    low, high = np.quantile(values, [0.05, 0.95])
    return float(high - low)


STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "std": lambda values: float(values.std()),
    "range": _spread_range,
    "mean": lambda values: float(values.mean()),
}


def row_dots(left: sp.csr_matrix, right: sp.csr_matrix) -> np.ndarray:
    """Inner products of matching rows."""
    return np.asarray(left.multiply(right).sum(1), np.float64).ravel()


def passage_pairs(collection: Collection, num_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Dense and sparse scores of random pairs of distinct passages."""
    rng = np.random.default_rng(seed)
    size = len(collection.dense)
    first = rng.integers(0, size, num_pairs)
    second = (first + rng.integers(1, size, num_pairs)) % size
    dense = np.einsum("ij,ij->i", collection.dense[first], collection.dense[second])
    return dense.astype(np.float64), row_dots(collection.sparse[first], collection.sparse[second])


def query_pairs(collection: Collection, num_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Dense and sparse scores of random query–passage pairs."""
    rng = np.random.default_rng(seed)
    query = rng.integers(0, len(collection.query_dense), num_pairs)
    passage = rng.integers(0, len(collection.dense), num_pairs)
    dense = np.einsum("ij,ij->i", collection.query_dense[query], collection.dense[passage])
    return dense.astype(np.float64), row_dots(collection.query_sparse[query], collection.sparse[passage])


def near_pairs(collection: Collection, num_passages: int, seed: int, near: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Dense and sparse scores of passages with the union of their nearest `near` by either score."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(collection.dense), num_passages, replace=False)
    dense_parts, sparse_parts = [], []
    for row in rows:
        dense = collection.dense @ collection.dense[row]
        sparse = (collection.sparse @ collection.sparse[[row]].T).toarray().ravel()
        dense[row] = sparse[row] = -np.inf
        union = np.union1d(np.argpartition(-dense, near)[:near], np.argpartition(-sparse, near)[:near])
        dense_parts.append(dense[union])
        sparse_parts.append(sparse[union])
    return np.concatenate(dense_parts).astype(np.float64), np.concatenate(sparse_parts).astype(np.float64)


def scale_of(pairs: tuple[np.ndarray, np.ndarray], statistic: str) -> float:
    """`spread(dense) / spread(sparse)`; 1 when the sparse scores do not vary."""
    spread = STATISTICS[statistic]
    bottom = spread(pairs[1])
    return spread(pairs[0]) / bottom if bottom > 0 else 1.0
