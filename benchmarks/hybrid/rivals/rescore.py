"""Exact re-scoring of candidate lists by a compiled loop (Numba, one thread), shared by all two-route contestants."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, fastmath=True, cache=False)
def rescore(
    dense: np.ndarray,
    row_begin: np.ndarray,
    terms: np.ndarray,
    values: np.ndarray,
    query_dense: np.ndarray,
    query_begin: np.ndarray,
    query_terms: np.ndarray,
    query_values: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    dense_weight: float,
    sparse_weight: float,
    k: int,
    vocabulary: int,
) -> np.ndarray:
    """Exact weighted top k of the union of both lists, query by query: (m, k) ids, −1 pads.

    A query's terms are laid out in a table, so a passage's sparse product is one pass over its terms; a passage in both
    lists is scored once.
    """
    num_queries, dim = query_dense.shape
    answer = np.full((num_queries, k), -1, np.int64)
    table = np.zeros(vocabulary, np.float32)
    seen = np.full(dense.shape[0], -1, np.int32)
    best = np.empty(k, np.float32)
    for query in range(num_queries):
        for at in range(query_begin[query], query_begin[query + 1]):
            table[query_terms[at]] = query_values[at] * np.float32(sparse_weight)
        found = 0
        for part in range(2):
            candidates = first if part == 0 else second
            for column in range(candidates.shape[1]):
                item = candidates[query, column]
                if item < 0 or seen[item] == query:
                    continue
                seen[item] = query
                score = np.float32(0)
                for axis in range(dim):
                    score += query_dense[query, axis] * dense[item, axis]
                score *= np.float32(dense_weight)
                for at in range(row_begin[item], row_begin[item + 1]):
                    score += table[terms[at]] * values[at]
                if found == k and score <= best[k - 1]:
                    continue
                place = found if found < k else k - 1
                while place > 0 and best[place - 1] < score:
                    best[place] = best[place - 1]
                    answer[query, place] = answer[query, place - 1]
                    place -= 1
                best[place] = score
                answer[query, place] = item
                found = min(found + 1, k)
        for at in range(query_begin[query], query_begin[query + 1]):
            table[query_terms[at]] = np.float32(0)
    return answer
