"""Questions in words: encoded, searched, and answered with documents."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sparing.errors import ArgumentError
from sparing.hybrid.index import HybridIndex
from sparing.hybrid.inputs import as_weights
from sparing.hybrid.records import Where
from sparing.hybrid.results import SearchResult
from sparing.hybrid.text_folder import Contents, Encoders

__all__ = ["Hit", "Weights", "default_weights", "encode_queries", "matching", "search_contents"]

Weights = tuple[float, float] | NDArray[np.floating[Any]]
"""`(w_dense, w_sparse)` for all questions, or an array of shape `(n, 2)`."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer.

    Attributes:
        key: the document's key.
        score: the exact hybrid score, higher is better.
        text: the document's text.
        metadata: the document's metadata.
        dense_score: the dense inner product, or None where it was not asked for.
        sparse_score: the sparse inner product times the alignment scale, or None where it was not asked for:
            `score = w_dense * dense_score + w_sparse * sparse_score`.
    """

    key: str
    score: float
    text: str
    metadata: Mapping[str, Any]
    dense_score: float | None = None
    sparse_score: float | None = None


def default_weights(encoders: Encoders) -> tuple[float, float]:
    """Equal weights, or all on the one part that an index has."""
    dense, sparse = (float(settings is not None) for settings in encoders.settings)
    return dense / (dense + sparse), sparse / (dense + sparse)


def encode_queries(
    encoders: Encoders, queries: list[str], weights: Weights
) -> tuple[NDArray[np.float32] | None, sp.csr_array | None]:
    """Encodes questions with the encoders that the weights ask for.

    Args:
        encoders: the encoders of an index.
        queries: n questions.
        weights: a pair, or an array of shape `(n, 2)`.

    Returns:
        Dense vectors, float32 of shape `(n, dim)`, and sparse rows; None where the index has no such part or no
        question gives it weight.

    Raises:
        ArgumentError: no weight on a part that the index has, or a negative one.
        ShapeError: weights of another shape.
        NonFiniteError: NaN or infinity.
        FormatError: a model is not the one that the index was built with.
        MissingExtraError: the encoders' packages are not installed.
    """
    checked = as_weights(weights, len(queries))
    dense = encoders.dense if checked[:, 0].any() else None
    sparse = encoders.sparse if checked[:, 1].any() else None
    if dense is None and sparse is None:
        parts = [name for name, part in zip(("dense", "sparse"), encoders.settings, strict=True) if part is not None]
        raise ArgumentError(f"weights: expected weight on a part of this index ({', '.join(parts)}), got {weights!r}")
    return (
        None if dense is None else dense.encode_queries(queries),
        None if sparse is None else sparse.encode_queries(queries),
    )


def matching(result: SearchResult, dense: NDArray[np.float32] | None, weights: Weights) -> NDArray[np.int64]:
    """The ids of answers; where only words count, -1 in place of those that share none with the question.

    Args:
        result: the answers to n questions.
        dense: their dense vectors, or None.
        weights: a pair, or an array of shape `(n, 2)`.
    """
    only_words = as_weights(weights, len(result.ids))[:, :1] == 0 if dense is not None else True
    return np.where(only_words & (result.scores <= 0), -1, result.ids)


def search_contents(
    contents: Contents,
    queries: list[str],
    *,
    k: int,
    weights: Weights | None,
    where: Where | None,
    beam: int | None,
    parts: bool,
    num_threads: int,
) -> list[list[Hit]]:
    """Answers n questions; arguments and errors as for :meth:`TextIndex.search`."""
    weights = default_weights(contents.encoders) if weights is None else weights
    allowed = None if where is None else contents.documents.allowed(where)
    dense, sparse = encode_queries(contents.encoders, queries, weights)
    result = contents.index.search(
        dense, sparse, k=k, beam=beam, weights=weights, filter=allowed, num_threads=num_threads
    )
    lists = []
    for row, (ids, scores) in enumerate(zip(matching(result, dense, weights), result.scores, strict=True)):
        found = ids[ids >= 0]
        by_dense, by_sparse = _score_parts(contents.index, dense, sparse, row, found) if parts else ({}, {})
        documents = contents.documents.get(found)
        lists.append(
            [
                Hit(d.key, float(score), d.text, d.metadata, by_dense.get(i), by_sparse.get(i))
                for i, score, d in zip(found.tolist(), scores, documents, strict=False)
            ]
        )
    return lists


def _score_parts(
    index: HybridIndex, dense: NDArray[np.float32] | None, sparse: sp.csr_array | None, row: int, ids: NDArray[np.int64]
) -> tuple[dict[int, float], dict[int, float]]:
    def of(dense_row: NDArray[np.float32] | None, sparse_row: sp.csr_array | None) -> dict[int, float]:
        if not len(ids) or (dense_row is None and sparse_row is None):
            return {}
        weights = (float(dense_row is not None), float(sparse_row is not None))
        result = index.search_exact(dense_row, sparse_row, k=len(ids), weights=weights, filter=ids)
        return dict(zip(np.ravel(result.ids).tolist(), np.ravel(result.scores).tolist(), strict=True))

    return of(None if dense is None else dense[[row]], None), of(None, None if sparse is None else sparse[[row]])
