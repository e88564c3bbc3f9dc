"""Synthetic items and queries with the traits of real ones: topics, Zipf-distributed terms, heavy-tailed weights."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = ["HybridData", "make_clustered"]


@dataclass(frozen=True)
class HybridData:
    """Items and queries.

    Attributes:
        dense: float32 `(count, dim)`, unit length.
        sparse: CSR float32 `(count, vocabulary)`, sorted, positive weights.
        dense_queries: float32 `(queries, dim)`, unit length.
        sparse_queries: CSR float32 `(queries, vocabulary)`.
    """

    dense: npt.NDArray[np.float32]
    sparse: Any
    dense_queries: npt.NDArray[np.float32]
    sparse_queries: Any


def make_clustered(
    count: int = 3000,
    *,
    dim: int = 64,
    vocabulary: int = 8000,
    terms: int = 60,
    query_terms: int = 12,
    topics: int = 60,
    queries: int = 100,
    seed: int = 0,
) -> HybridData:
    """Draws items in topics, and queries that resemble single items; the same arguments give the same data.

    Args:
        count: number of items.
        dim: dense dimension.
        vocabulary: number of terms.
        terms: mean number of terms an item draws (fewer are left where it draws one twice).
        query_terms: the same for a query.
        topics: number of topics; each has a dense centre and terms of its own.
        queries: number of queries.
        seed: seed of everything.
    """
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((topics, dim))
    favourites = np.stack([generator.permutation(vocabulary) for _ in range(topics)])
    topic = generator.integers(0, topics, count)
    dense = _unit(centres[topic] + 0.9 * generator.standard_normal((count, dim)))
    rows = [_draw(generator, favourites[t], max(1, int(generator.poisson(terms)))) for t in topic]
    source = generator.integers(0, count, queries)
    dense_queries = _unit(dense[source] + 0.6 * generator.standard_normal((queries, dim)) / np.sqrt(dim))
    asked = []
    for item in source:
        held, weights = rows[item]
        own = generator.choice(len(held), min(len(held), max(1, query_terms // 2)), replace=False)
        extra, more = _draw(generator, favourites[topic[item]], query_terms - query_terms // 2)
        merged = dict(zip(extra.tolist(), more.tolist(), strict=True))
        merged.update(zip(held[own].tolist(), weights[own].tolist(), strict=True))
        names = np.array(sorted(merged))
        asked.append((names, np.array([merged[int(name)] for name in names])))
    return HybridData(dense, _csr(rows, vocabulary), dense_queries, _csr(asked, vocabulary))


def _draw(
    generator: np.random.Generator, favourites: npt.NDArray[Any], wanted: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    ranks = np.floor(len(favourites) ** generator.random(wanted)).astype(int) - 1  # Zipf: P(rank) ~ 1 / rank
    names = np.unique(np.where(generator.random(wanted) < 0.6, favourites[ranks], ranks))
    rarity = np.log2(2.0 + names)  # frequent terms have low numbers and low weights
    return names, rarity * generator.lognormal(0.0, 0.5, len(names)) / 4


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _csr(rows: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]], vocabulary: int) -> Any:
    begin = np.cumsum([0, *(len(names) for names, _ in rows)])
    names = np.concatenate([names for names, _ in rows])
    weights = np.concatenate([weights for _, weights in rows]).astype(np.float32)
    return sp.csr_array((weights, names, begin), shape=(len(rows), vocabulary))
