"""The usual ways to fuse two routes' result lists, on full score vectors: min-max and reciprocal rank fusion."""

from __future__ import annotations

import numpy as np

from benchmarks.hybrid.metrics import NOT_RETRIEVED


def _top(scores: np.ndarray, depth: int) -> np.ndarray:
    if depth >= len(scores):
        return np.lexsort((np.arange(len(scores)), -scores))
    best = np.argpartition(-scores, depth)[:depth]
    return best[np.lexsort((best, -scores[best]))]


def min_max(dense: np.ndarray, sparse: np.ndarray, depth: int) -> np.ndarray:
    """Equal-weight sum of both lists' top `depth` scores, each brought to 0–1; a missing partner counts 0."""
    fused = np.full(len(dense), NOT_RETRIEVED, np.float32)
    for scores in (dense, sparse):
        rows = _top(scores, depth)
        low, high = scores[rows[-1]], scores[rows[0]]
        part = (scores[rows] - low) / (high - low) if high > low else np.ones(len(rows), np.float32)
        fused[rows] = np.where(np.isneginf(fused[rows]), 0, fused[rows]) + np.float32(0.5) * part
    return fused


def reciprocal_rank(dense: np.ndarray, sparse: np.ndarray, depth: int, constant: int = 60) -> np.ndarray:
    """Sum of 1 / (constant + rank) over both lists' top `depth` (Cormack et al. 2009)."""
    fused = np.full(len(dense), NOT_RETRIEVED, np.float64)
    for scores in (dense, sparse):
        rows = _top(scores, depth)
        part = 1.0 / (constant + 1 + np.arange(len(rows)))
        fused[rows] = np.where(np.isneginf(fused[rows]), 0, fused[rows]) + part
    return fused
