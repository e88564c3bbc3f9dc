"""What each choice of the index is worth: one setting changed at a time, recall and time a query, one thread.

``python -m benchmarks.hybrid.settings --data DIR --out benchmarks/hybrid/results`` writes ``settings.json``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hybrid.data import Collection, K, data_folder, load_debian
from benchmarks.hybrid.front import time_at
from benchmarks.hybrid.metrics import recall
from benchmarks.hybrid.record import save
from sparing.hybrid import HybridConfig, HybridIndex

BEAMS = (16, 24, 32, 48, 64, 96, 128)
WEIGHTS = ((0.5, 0.5), (0.25, 0.75), (0.75, 0.25), (0.1, 0.9))

# One change each; the ladder from the naive setting is measured by `benchmarks.hybrid.run ladder`.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "one stage": {"two_stage": False},
    "dense_code int8": {"dense_code": "int8"},
    "dense_code float32": {"dense_code": "float32"},
    "doc_terms 24": {"doc_terms": 24},
    "doc_terms 40": {"doc_terms": 40},
    "doc_terms 64": {"doc_terms": 64},
    "query_terms 8": {"query_terms": 8},
    "construction by L2": {"similarity": "l2"},
    "construction by cosine": {"similarity": "cosine"},
    "no seeds": {"seeds_per_term": 0},
    "seeds_per_term 3": {"seeds_per_term": 3},
    "256 entry points": {"num_entries": 256},
    "build_beam 64": {"build_beam": 64},
    "degree 24": {"degree": 24},
    "degree 48": {"degree": 48},
}


def points_at(
    beam: int,
    indexes: dict[str, HybridIndex],
    data: Collection,
    weights: tuple[float, float],
    exact: np.ndarray,
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Of each variant recall and milliseconds of CPU time a query; variants take turns, after an untimed round."""
    times: dict[str, list[float]] = {name: [] for name in indexes}
    points = {}
    for turn in range(rounds + 1):
        for name, index in indexes.items():
            start = time.thread_time()
            found = index.search(data.query_dense, data.query_sparse, k=K, beam=beam, weights=weights, num_threads=1)
            if turn > 0:
                times[name].append((time.thread_time() - start) / len(exact) * 1e3)
            points[name] = {
                "beam": beam,
                "recall": recall(found.ids, exact),
                "met": found.stats.items_met / len(exact),
                "scored": max(found.stats.dense_evaluations, found.stats.sparse_evaluations) / len(exact),
            }
    return {
        name: point | {"ms": min(times[name]), "ms_median": float(np.median(times[name]))}
        for name, point in points.items()
    }


def measure(
    variants: dict[str, dict[str, Any]],
    data: Collection,
    oracle: dict[tuple[float, float], np.ndarray],
    rounds: int,
) -> dict[str, Any]:
    """Builds all variants and measures them."""
    indexes, results = {}, {}
    for name, changes in variants.items():
        start = time.perf_counter()
        indexes[name] = HybridIndex.build(data.dense, data.sparse, config=HybridConfig(**changes), num_threads=0)
        seconds = time.perf_counter() - start
        size = indexes[name].stats.index_bytes_per_item
        results[name] = {"changes": changes, "build_s": seconds, "index_bytes_per_item": size}
        print(f"{name}: build {seconds:.1f} s, {size:.0f} B", flush=True)
    tables = {w: [points_at(beam, indexes, data, w, oracle[w], rounds) for beam in BEAMS] for w in WEIGHTS}
    for name, index in indexes.items():
        curves = {f"{w[0]:g}/{w[1]:g}": [points[name] for points in table] for w, table in tables.items()}
        at_default = {
            w: next(p["recall"] for p in points if p["beam"] == index.config.beam) for w, points in curves.items()
        }
        at_95 = time_at(curves["0.5/0.5"], 0.95)
        results[name] |= {"ms_at_recall_95": at_95, "recall_at_default_beam": at_default, "curves": curves}
        print(f"{name}: {at_95} ms at .95, recall {at_default}")
    return results


def churn(data: Collection, oracle: np.ndarray) -> dict[str, Any]:
    """Recall before and after 30 % of the items were deleted and added again in three rounds, and compacted."""
    index = HybridIndex.build(data.dense, data.sparse)
    n = len(data.dense)
    order = np.random.default_rng(0).permutation(n)[: 3 * (n // 10)].reshape(3, -1)

    def now() -> float:
        return recall(index.search(data.query_dense, data.query_sparse, k=K).ids, oracle)

    rows = {"fresh": now()}
    for part in order:
        index.delete(part)
        index.add(data.dense[part], data.sparse[part], ids=part)
    rows["after 30 % churn"] = now()
    index.compact()
    rows["after compact"] = now()
    return rows


def main() -> None:
    """Runs all variants and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/hybrid/results"))
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--passages", type=int, default=0, help="0: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of variants")
    options = parser.parse_args()
    folder = data_folder(options.data)
    if folder is None:
        return
    data = load_debian(folder)
    data = data.subset(options.passages or len(data.dense), options.queries)
    base = HybridIndex.build(data.dense, data.sparse, config=HybridConfig(build_beam=8))
    oracle = {
        w: base.search_exact(data.query_dense, data.query_sparse, k=K, weights=w, num_threads=0).ids for w in WEIGHTS
    }
    chosen = {name: v for name, v in VARIANTS.items() if not options.only or name in options.only}
    results: dict[str, Any] = {"variants": measure(chosen, data, oracle, options.rounds)}
    results["churn"] = churn(data, oracle[(0.5, 0.5)])
    print(results["churn"])
    save(
        options.out / "settings.json",
        "benchmarks.hybrid.settings",
        results,
        seed=0,
        threads=1,
        data={"name": data.name, "sha256": data.fingerprint, "queries": len(data.query_dense)},
        scale=base.alignment.scale,
        build_threads=0,
        timing="variants in turn, best of rounds, CPU time of the searching thread, batch of all queries",
    )


if __name__ == "__main__":
    main()
