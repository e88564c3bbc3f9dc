"""Ranks of judged passages, nDCG@10 and paired bootstrap intervals over queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NOT_RETRIEVED = -np.inf


def ranks_of(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """1-based ranks of `rows` in one query's full score vector; ties by row; −inf is not retrieved (rank n + 1)."""
    ranks = np.empty(len(rows), np.int64)
    for at, row in enumerate(rows):
        score = scores[row]
        if score == NOT_RETRIEVED:
            ranks[at] = len(scores) + 1
        else:
            ranks[at] = 1 + np.count_nonzero(scores > score) + np.count_nonzero(scores[:row] == score)
    return ranks


def ndcg_from_ranks(ranks: np.ndarray, gains: np.ndarray, depth: int = 10) -> float:
    """nDCG with linear gains (as trec_eval) from the ranks of every judged passage."""
    ideal = np.sort(gains)[::-1][:depth]
    best = float((ideal / np.log2(np.arange(len(ideal)) + 2)).sum())
    if best == 0:
        return 0.0
    found = ranks <= depth
    return float((gains[found] / np.log2(ranks[found] + 1)).sum()) / best


def ndcg(scores: np.ndarray, answers: dict[int, float], depth: int = 10) -> float:
    """nDCG@depth of one query's full score vector."""
    rows = np.fromiter(answers.keys(), np.int64, len(answers))
    gains = np.fromiter(answers.values(), np.float64, len(answers))
    return ndcg_from_ranks(ranks_of(scores, rows), gains, depth)


def ndcg_of_ids(ids: np.ndarray, answers: dict[int, float], depth: int = 10) -> float:
    """nDCG@depth of one query's ranked list of ids (−1 pads)."""
    place = {int(item): rank for rank, item in enumerate(ids[:depth], start=1) if item >= 0}
    rows = np.fromiter(answers.keys(), np.int64, len(answers))
    gains = np.fromiter(answers.values(), np.float64, len(answers))
    ranks = np.array([place.get(int(row), depth + 1) for row in rows], np.int64)
    return ndcg_from_ranks(ranks, gains, depth)


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean share of each query's exact top k that was found, rows (m, k) of ids."""
    hits = [len(np.intersect1d(mine, right)) for mine, right in zip(found, exact, strict=True)]
    return float(np.sum(hits)) / exact.size


def bootstrap_interval(values: np.ndarray, *, seed: int, rounds: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean over queries."""
    rng = np.random.default_rng(seed)
    size = len(values)
    means = np.concatenate([values[rng.integers(0, size, (100, size))].mean(1) for _ in range(rounds // 100)])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summary(values: Sequence[float] | np.ndarray, *, seed: int) -> dict[str, float]:
    """Mean and 95 % interval, as written into results."""
    array = np.asarray(values, np.float64)
    low, high = bootstrap_interval(array, seed=seed)
    return {"mean": round(float(array.mean()), 5), "low": round(low, 5), "high": round(high, 5)}


def difference(first: np.ndarray, second: np.ndarray, *, seed: int) -> dict[str, float]:
    """Paired difference first − second with its 95 % interval, and the relative change of the means."""
    result = summary(first - second, seed=seed)
    result["relative"] = round(float(first.mean() / second.mean() - 1), 5)
    return result
