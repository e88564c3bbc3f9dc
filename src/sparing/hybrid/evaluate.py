"""How good and how fast a text index answers: quality against judgements, recall against exact search, latency."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparing.errors import ArgumentError, MissingExtraError
from sparing.hybrid.results import SearchResult
from sparing.hybrid.text import TextIndex
from sparing.hybrid.text_files import Query
from sparing.hybrid.text_search import default_weights, encode_queries, matching
from sparing.runs.progress import Progress

__all__ = ["EvaluationReport", "Latency", "evaluate", "recall_of_exact"]

_NDCG_DEPTH = 10
_TIE = 1e-5


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall-clock times of questions answered one at a time, in seconds.

    Attributes:
        p50: the median; p95, p99: percentiles.
        mean: the mean, whose inverse is questions a second.
    """

    p50: float
    p95: float
    p99: float
    mean: float

    @classmethod
    def of(cls, times_s: Sequence[float]) -> "Latency":
        """Summarises times in seconds, at least one."""
        p50, p95, p99 = np.percentile(times_s, [50, 95, 99]).tolist()
        return cls(p50, p95, p99, float(np.mean(times_s)))


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found; all numbers are measured.

    Attributes:
        num_queries: questions asked.
        num_judged: those of them with judgements, over which quality is averaged.
        k: answers a question.
        weights: `(w_dense, w_sparse)`.
        beam: width of the search.
        ndcg_at_10: mean nDCG of the first 10 answers, 0 to 1; None without judgements.
        recall_at_k: mean share of the relevant documents among the first k; None without judgements.
        recall_of_exact: mean share of the exact top k that was found, ties counting as found.
        search_s: times in the index, one question at a time, on one thread.
        encode_s: times in the encoders, one question at a time.
    """

    num_queries: int
    num_judged: int
    k: int
    weights: tuple[float, float]
    beam: int
    ndcg_at_10: float | None
    recall_at_k: float | None
    recall_of_exact: float
    search_s: Latency
    encode_s: Latency

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def evaluate(
    index: TextIndex,
    queries: Sequence[Query],
    qrels: Mapping[str, Mapping[str, int]] | None = None,
    *,
    k: int = 10,
    weights: tuple[float, float] | None = None,
    beam: int | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Asks every question and compares the answers with the judgements and with exact search.

    Args:
        index: the index.
        queries: the questions, at least one.
        qrels: question id -> document key -> grade, above 0 for relevant; None measures recall and latency only.
        k: answers a question, at least 1; nDCG looks at the first 10 whatever k is.
        weights: `(w_dense, w_sparse)`; equal ones where None.
        beam: width of the search; the index's default where None.
        progress: called with ``("questions", done, total)``.

    Returns:
        The report.

    Raises:
        ArgumentError: no questions, none of them judged, or a bad `k`, `weights` or `beam`.
        MissingExtraError: judgements are given and ir-measures is not installed (extra ``eval``).
    """
    if not queries:
        raise ArgumentError("queries: expected at least one question, got none")
    contents = index.contents
    weights = default_weights(contents.encoders) if weights is None else weights
    depth = max(k, _NDCG_DEPTH) if qrels is not None else k
    judged = [query.key for query in queries if qrels is not None and qrels.get(query.key)]
    if qrels is not None and not judged:
        raise ArgumentError(
            f"qrels: expected judgements for some of the {len(queries)} questions, got none; question ids look like "
            f"{queries[0].key!r} in the questions and {next(iter(qrels), None)!r} in the judgements"
        )
    # Not timed: the first question loads the models.
    encode_queries(contents.encoders, [queries[0].text], weights)
    encode_s, search_s, found, vectors = [], [], [], []
    for done, query in enumerate(queries, 1):
        begin = time.perf_counter()
        dense, sparse = encode_queries(contents.encoders, [query.text], weights)
        middle = time.perf_counter()
        found.append(contents.index.search(dense, sparse, k=k, beam=beam, weights=weights))
        search_s.append(time.perf_counter() - middle)
        encode_s.append(middle - begin)
        vectors.append((dense, sparse))
        if progress is not None:
            progress("questions", done, len(queries))
    exact = [contents.index.search_exact(d, s, k=k, weights=weights, num_threads=0) for d, s in vectors]
    ndcg, recall = None, None
    if qrels is not None:
        deep = found
        if depth > k:
            deep = [contents.index.search(d, s, k=depth, beam=beam, weights=weights) for d, s in vectors]
        answers = [matching(f, dense, weights) for f, (dense, _) in zip(deep, vectors, strict=True)]
        ndcg, recall = _quality(index, queries, answers, {key: qrels[key] for key in judged}, k)
    return EvaluationReport(
        num_queries=len(queries),
        num_judged=len(judged),
        k=k,
        weights=weights,
        beam=contents.index.config.beam if beam is None else beam,
        ndcg_at_10=ndcg,
        recall_at_k=recall,
        recall_of_exact=float(np.mean([recall_of_exact(f, e).mean() for f, e in zip(found, exact, strict=True)])),
        search_s=Latency.of(search_s),
        encode_s=Latency.of(encode_s),
    )


def recall_of_exact(found: SearchResult, exact: SearchResult) -> NDArray[np.float64]:
    """The share of the exact top k that a search found.

    An answer whose score reaches the exact k-th score counts, because ids may differ between ties.

    Args:
        found: the answers of `search`, for one question or a batch.
        exact: the answers of `search_exact` to the same questions with the same k and weights.

    Returns:
        float64 of shape `(n,)`, 0 to 1; 1 where there is nothing to find.
    """
    ids, scores = np.atleast_2d(found.ids), np.atleast_2d(found.scores)
    exact_ids, exact_scores = np.atleast_2d(exact.ids), np.atleast_2d(exact.scores)
    wanted = (exact_ids >= 0).sum(axis=1)
    last = exact_scores.min(axis=1, keepdims=True, where=exact_ids >= 0, initial=np.finfo(np.float32).max)
    reached = ((ids >= 0) & (scores >= last - _TIE * np.abs(last))).sum(axis=1)
    return np.where(wanted > 0, np.minimum(reached, wanted) / np.maximum(wanted, 1), 1.0)


def _quality(
    index: TextIndex,
    queries: Sequence[Query],
    found: Sequence[NDArray[np.int64]],
    qrels: Mapping[str, Mapping[str, int]],
    k: int,
) -> tuple[float, float]:
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtraError("ir-measures", extra="eval", purpose="quality against judgements") from error
    run = {}
    for query, ids in zip(queries, found, strict=True):
        if query.key in qrels:
            documents = index.contents.documents.get(ids[ids >= 0])
            # Ranks instead of scores, so that ties stay in the order of the answers.
            run[query.key] = {document.key: float(-rank) for rank, document in enumerate(documents)}
    measures = ir_measures.nDCG @ _NDCG_DEPTH, ir_measures.R @ k
    values = ir_measures.calc_aggregate(measures, {key: dict(grades) for key, grades in qrels.items()}, run)
    return float(values[measures[0]]), float(values[measures[1]])
