"""The exact answers, in a few lines of NumPy that share nothing with the index."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = ["exact_scores", "recall", "top_ids"]


def exact_scores(
    dense: Any, sparse: Any, dense_q: Any, sparse_q: Any, *, weights: npt.ArrayLike = (0.5, 0.5), scale: float = 1.0
) -> npt.NDArray[np.float64]:
    """Hybrid scores of every query with every item, in float64.

    Args:
        dense: `(n, dim)` or None.
        sparse: CSR `(n, vocabulary)`, a list of `{term: weight}`, or None.
        dense_q: `(queries, dim)` or None.
        sparse_q: as `sparse`.
        weights: (dense, sparse), or `(queries, 2)`.
        scale: the alignment factor.

    Returns:
        `(queries, n)`.
    """
    total: Any = 0.0
    factors = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    if dense is not None and dense_q is not None:
        total = total + factors[:, :1] * (np.asarray(dense_q, np.float64) @ np.asarray(dense, np.float64).T)
    if sparse is not None and sparse_q is not None:
        items, queries = _together(sparse, sparse_q)
        total = total + factors[:, 1:] * scale * np.asarray((queries @ items.T).todense())
    return np.asarray(total, dtype=np.float64)


def top_ids(scores: npt.NDArray[Any], ids: npt.ArrayLike, k: int) -> npt.NDArray[np.int64]:
    """The k best ids a row, best first, ties by id; padded with -1."""
    names = np.asarray(ids, dtype=np.int64)
    best = np.full((len(scores), k), -1, dtype=np.int64)
    for row, line in enumerate(scores):
        order = np.lexsort((names, -line))[:k]
        best[row, : len(order)] = names[order]
    return best


def recall(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Mean share of the wanted ids of a row that were found; padding does not count."""
    shares = [
        len(set(row[row >= 0]) & set(goal[goal >= 0])) / max(1, int((goal >= 0).sum()))
        for row, goal in zip(found, wanted, strict=True)
    ]
    return float(np.mean(shares))


def _together(items: Any, queries: Any) -> tuple[Any, Any]:
    """Both as float64 CSR with one numbering of the terms."""
    if hasattr(items, "indptr") and hasattr(queries, "indptr") and items.shape[1] == queries.shape[1]:
        return items.astype(np.float64), queries.astype(np.float64)
    left, right = _dicts(items), _dicts(queries)
    number: dict[int, int] = {}
    for row in [*left, *right]:
        for term in row:
            number.setdefault(int(term), len(number))
    return _matrix(left, number), _matrix(right, number)


def _dicts(rows: Any) -> list[Mapping[int, float]]:
    if isinstance(rows, Mapping):
        return [rows]
    if not hasattr(rows, "indptr"):
        return list(rows)
    names, weights = rows.indices.tolist(), rows.data.tolist()
    return [dict(zip(names[a:b], weights[a:b], strict=True)) for a, b in pairwise(rows.indptr.tolist())]


def _matrix(rows: list[Mapping[int, float]], number: dict[int, int]) -> Any:
    begin = np.cumsum([0, *(len(row) for row in rows)])
    columns = [number[int(term)] for row in rows for term in row]
    weights = [float(weight) for row in rows for weight in row.values()]
    shape = (len(rows), max(1, len(number)))
    return sp.csr_array((np.asarray(weights, np.float64), np.asarray(columns, np.int64), begin), shape=shape)
