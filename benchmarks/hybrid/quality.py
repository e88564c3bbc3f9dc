"""The alignment study: how good are rankings by the aligned weighted sum, against no alignment and against list fusion?

`python -m benchmarks.hybrid.quality --data DIR --work DIR --out FILE.json` (exact search; needs no index).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.hybrid import alignment_statistics as statistics
from benchmarks.hybrid import fusion
from benchmarks.hybrid.data import (
    Collection,
    cranfield_texts,
    data_folder,
    debian_texts,
    load_cranfield,
    load_debian,
    with_bm25,
)
from benchmarks.hybrid.metrics import difference, ndcg, summary
from benchmarks.hybrid.oracle import score_blocks
from benchmarks.hybrid.record import save

SEED = 0
NUM_PAIRS = 10_000
PAIR_COUNTS = [30, 100, 300, 1_000, 3_000, 10_000, 30_000]
PAIR_SEEDS = range(10)
GRID_STEPS = np.geomspace(1 / 8, 8, 25)  # multiples of the scale by std over passage pairs
GRID_STEPS_WIDE = np.geomspace(1 / 128, 8, 41)
CANDIDATES = ["std", "range", "mean"]  # compared with everything else, over passage pairs
FUSIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "min-max, top 100": lambda dense, sparse: fusion.min_max(dense, sparse, 100),
    "min-max, top 1000": lambda dense, sparse: fusion.min_max(dense, sparse, 1000),
    "min-max, all": lambda dense, sparse: fusion.min_max(dense, sparse, len(dense)),
    "RRF 60, top 100": lambda dense, sparse: fusion.reciprocal_rank(dense, sparse, 100),
    "RRF 60, top 1000": lambda dense, sparse: fusion.reciprocal_rank(dense, sparse, 1000),
    "RRF 10, top 100": lambda dense, sparse: fusion.reciprocal_rank(dense, sparse, 100, 10),
}


def scales_of(collection: Collection) -> dict[str, float]:
    """Every candidate statistic's scale."""
    pairs = statistics.passage_pairs(collection, NUM_PAIRS, SEED)
    scales = {f"{name}, passage pairs": statistics.scale_of(pairs, name) for name in statistics.STATISTICS}
    pairs = statistics.query_pairs(collection, NUM_PAIRS, SEED)
    scales |= {f"{name}, query–passage pairs": statistics.scale_of(pairs, name) for name in statistics.STATISTICS}
    pairs = statistics.near_pairs(collection, 100, SEED)
    scales |= {f"{name}, near pairs": statistics.scale_of(pairs, name) for name in statistics.STATISTICS}
    return scales


def per_query(collection: Collection, scales: dict[str, float], fuse: bool = True) -> dict[str, np.ndarray]:
    """nDCG@10 of every query by every named scale (equal weights), each route alone, and each fusion."""
    values: dict[str, list[float]] = {}
    for start, dense_block, sparse_block in score_blocks(collection):
        for offset, (dense, sparse) in enumerate(zip(dense_block, sparse_block, strict=True)):
            answers = collection.relevant[start + offset]
            for name, scale in scales.items():
                values.setdefault(name, []).append(ndcg(dense + np.float32(scale) * sparse, answers))
            if fuse:
                values.setdefault("dense alone", []).append(ndcg(dense, answers))
                values.setdefault("sparse alone", []).append(ndcg(sparse, answers))
                for name, method in FUSIONS.items():
                    values.setdefault(name, []).append(ndcg(method(dense, sparse), answers))
    return {name: np.array(each) for name, each in values.items()}


def held_out_best(grid: dict[str, np.ndarray]) -> np.ndarray:
    """Per-query nDCG of the best grid scale, chosen on the other half of the queries."""
    table = np.stack(list(grid.values()))
    half = np.random.default_rng(SEED).permutation(table.shape[1]) % 2 == 0
    chosen_by_rest = table[table[:, ~half].mean(1).argmax()]
    chosen_by_half = table[table[:, half].mean(1).argmax()]
    return np.asarray(np.where(half, chosen_by_rest, chosen_by_half))


def pair_count_study(collection: Collection) -> list[dict[str, Any]]:
    """The spread of the scale, and of nDCG, over seeds as the number of sampled pairs grows."""
    scales = {
        f"{count}/{seed}": statistics.scale_of(statistics.passage_pairs(collection, count, 1000 + seed), "std")
        for count in PAIR_COUNTS
        for seed in PAIR_SEEDS
    }
    quality = {name: each.mean() for name, each in per_query(collection, scales, fuse=False).items()}
    rows = []
    for count in PAIR_COUNTS:
        drawn = np.array([scales[f"{count}/{seed}"] for seed in PAIR_SEEDS])
        reached = np.array([quality[f"{count}/{seed}"] for seed in PAIR_SEEDS])
        row = {"pairs": count, "seeds": len(drawn), "scale_mean": drawn.mean(), "scale_cv": drawn.std() / drawn.mean()}
        row |= {"ndcg_min": reached.min(), "ndcg_mean": reached.mean(), "ndcg_max": reached.max()}
        rows.append({key: round(float(value), 6) for key, value in row.items()})
    return rows


def stability(collection: Collection) -> dict[str, Any]:
    """Mean and spread over seeds of each statistic's scale, and the share of pairs that score 0."""
    draws = [statistics.passage_pairs(collection, NUM_PAIRS, 2000 + seed) for seed in PAIR_SEEDS]
    result: dict[str, Any] = {"zero_share": round(float(np.mean([(sparse == 0).mean() for _, sparse in draws])), 4)}
    for name in statistics.STATISTICS:
        scales = np.array([statistics.scale_of(pairs, name) for pairs in draws])
        result[name] = {"scale_mean": float(scales.mean()), "scale_cv": round(float(scales.std() / scales.mean()), 4)}
    return result


def normalised_sparse(collection: Collection) -> dict[str, Any]:
    """The same with L2-normalised sparse vectors: aligned by std, and the best of the grid."""
    norms = np.sqrt(np.asarray(collection.sparse.multiply(collection.sparse).sum(1)).ravel())
    rows = sp.diags_array(1 / np.maximum(norms, 1e-12)) @ collection.sparse
    changed = Collection(
        collection.name,
        collection.dense,
        sp.csr_matrix(rows, dtype=np.float32),
        collection.query_dense,
        collection.query_sparse,
        collection.relevant,
        collection.fingerprint,
    )
    scale = statistics.scale_of(statistics.passage_pairs(changed, NUM_PAIRS, SEED), "std")
    grid = per_query(changed, {f"{step:.3g}": scale * step for step in GRID_STEPS_WIDE}, fuse=False)
    best = max(grid, key=lambda name: grid[name].mean())
    reached = {"aligned by std": grid["1"], "grid best": grid[best]}
    return {name: summary(each, seed=SEED) for name, each in reached.items()} | {"best_step": float(best)}


def study(collection: Collection) -> dict[str, Any]:
    """All of it for one collection."""
    scales = scales_of(collection)
    base = scales["std, passage pairs"]
    grid_scales = {f"grid {step:.3g}": base * step for step in GRID_STEPS}
    values = per_query(collection, {"unaligned": 1.0, **scales, **grid_scales})
    grid = {name: values.pop(name) for name in grid_scales}
    best = max(grid, key=lambda name: grid[name].mean())
    values["grid best (chosen on the same queries)"] = grid[best]
    values["grid best (chosen on the other half)"] = held_out_best(grid)
    scales |= {"unaligned": 1.0, "grid best (chosen on the same queries)": grid_scales[best]}
    chosen = {name: values[f"{name}, passage pairs"] for name in CANDIDATES}
    methods = {}
    for name, each in values.items():
        methods[name] = {"ndcg_at_10": summary(each, seed=SEED), "scale": scales.get(name)}
        for candidate, reached in chosen.items():
            if each is not reached:
                methods[name][f"{candidate}_minus_this"] = difference(reached, each, seed=SEED)
    return {
        "queries": len(collection.relevant),
        "passages": len(collection.dense),
        "terms_per_passage": round(collection.sparse.nnz / len(collection.dense), 1),
        "fingerprint": collection.fingerprint,
        "methods": methods,
        "grid": [
            {"scale": float(grid_scales[name]), "ndcg_at_10": round(float(each.mean()), 5)}
            for name, each in grid.items()
        ],
        "pair_counts": pair_count_study(collection),
        "stability": stability(collection),
        "sparse_l2_normalised": normalised_sparse(collection),
    }


def collections(folder: Path, work: Path) -> list[Collection]:
    """Debian and Cranfield, each with SPLADE and with BM25 as the sparse side."""
    debian, cranfield = load_debian(folder), load_cranfield(folder, work)
    passages, questions, _ = cranfield_texts(folder)
    texts = debian_texts(folder)
    return [
        debian,
        cranfield,
        with_bm25(debian, texts.passages, texts.queries),
        with_bm25(cranfield, passages, questions),
    ]


def short_texts(folder: Path) -> dict[str, Any]:
    """The statistics on very short texts (one-line synopses, BM25), where most pairs share no term."""
    texts = debian_texts(folder)
    return stability(with_bm25(load_debian(folder), texts.synopses, texts.queries))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--work", type=Path, default=Path("out/hybrid-bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/hybrid/results/alignment.json"))
    options = parser.parse_args(arguments)
    folder = data_folder(options.data)
    if folder is None:
        return 0
    results = {}
    for collection in collections(folder, options.work):
        results[collection.name] = study(collection)
        for name, method in results[collection.name]["methods"].items():
            print(f"{collection.name:18s} {name:42s} {method['ndcg_at_10']['mean']:.4f}", flush=True)
    results["short_texts"] = {"fingerprint": results["debian"]["fingerprint"], "stability": short_texts(folder)}
    marks = {name: result["fingerprint"] for name, result in results.items()}
    save(options.out, "benchmarks.hybrid.quality", results, seed=SEED, threads=0, data=marks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
