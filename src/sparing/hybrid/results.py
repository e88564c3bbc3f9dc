"""What a search and an index tell about themselves."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["IndexStats", "SearchResult", "SearchStats"]


@dataclass(frozen=True)
class SearchStats:
    """Work of a call, summed over its queries.

    Attributes:
        num_queries: queries answered.
        hops: items whose links were followed.
        items_met: items looked at in traversal; with two stages, many only by their signs and heaviest terms.
        dense_evaluations: items whose dense part was scored in traversal.
        sparse_evaluations: items whose sparse part was scored in traversal.
        exact_evaluations: items re-scored at full precision.
        seconds: wall-clock time of the core.
    """

    num_queries: int
    hops: int
    items_met: int
    dense_evaluations: int
    sparse_evaluations: int
    exact_evaluations: int
    seconds: float


@dataclass(frozen=True)
class SearchResult:
    """Answers, best first, ties by id.

    Attributes:
        ids: int64 `(k,)` for one query, `(n, k)` for a batch; -1 pads where there are fewer than k answers.
        scores: float32 of the same shape, exact hybrid scores, higher is better; -inf pads.
        stats: the work done.
    """

    ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    stats: SearchStats


@dataclass(frozen=True)
class IndexStats:
    """Size of an index.

    Attributes:
        num_items: items that can be found.
        num_deleted: deleted items whose place `compact` gives back.
        dim: dense dimension, 0 without a dense part.
        doc_terms: terms an item kept for traversal; None: all.
        num_nonzeros: stored sparse weights.
        num_links: links of the graph.
        code_bytes: traversal codes; link_bytes: links; entry_bytes: entry points and seeds.
        vector_bytes: full-precision vectors and ids.
        index_bytes_per_item: (codes + links + entries) / items, the price beside the vectors.
        simd_level: kernels in use.
    """

    num_items: int
    num_deleted: int
    dim: int
    doc_terms: int | None
    num_nonzeros: int
    num_links: int
    code_bytes: int
    link_bytes: int
    entry_bytes: int
    vector_bytes: int
    index_bytes_per_item: float
    simd_level: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)
