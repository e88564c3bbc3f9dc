"""The alignment study through the index: nDCG@10 of its own answers at its default settings, equal weights.

`python -m benchmarks.hybrid.index_quality --data DIR --work DIR`; the fusions it is compared with use exact lists.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hybrid.data import Collection, data_folder
from benchmarks.hybrid.metrics import difference, ndcg_of_ids, summary
from benchmarks.hybrid.quality import FUSIONS, SEED, collections, per_query
from benchmarks.hybrid.record import save
from sparing.hybrid import HybridConfig, HybridIndex

VARIANTS = ["std", "none", "range", "mean"]


def through_index(data: Collection, alignment: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Per-query nDCG@10 of the approximate and of the exact search, and the scale, under one alignment."""
    index = HybridIndex.build(data.dense, data.sparse, config=HybridConfig.model_validate({"alignment": alignment}))
    found = index.search(data.query_dense, data.query_sparse, k=10, num_threads=0).ids
    exact = index.search_exact(data.query_dense, data.query_sparse, k=10, num_threads=0).ids
    values = [
        np.array([ndcg_of_ids(ids, answers) for ids, answers in zip(answer, data.relevant, strict=True)])
        for answer in (found, exact)
    ]
    return values[0], values[1], index.alignment.scale


def study(data: Collection) -> dict[str, Any]:
    """Default alignment against none and against list fusion, with intervals over queries."""
    methods: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    for alignment in VARIANTS:
        found, exact, scale = through_index(data, alignment)
        values[f"index, {alignment}"], values[f"exact, {alignment}"] = found, exact
        methods[f"index, {alignment}"] = methods[f"exact, {alignment}"] = {"scale": scale}
    fused = per_query(data, {}, fuse=True)
    values |= {name: fused[name] for name in FUSIONS}
    ours = values["index, std"]
    result: dict[str, Any] = {}
    for name, each in values.items():
        result[name] = {**methods.get(name, {}), "ndcg_at_10": summary(each, seed=SEED)}
        if each is not ours:
            result[name]["index_minus_this"] = difference(ours, each, seed=SEED)
        print(f"{data.name:16s} {name:20s} {each.mean():.4f}", flush=True)
    return result


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--work", type=Path, default=Path("out/hybrid-bench"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/hybrid/results/index_quality.json"))
    options = parser.parse_args(arguments)
    folder = data_folder(options.data)
    if folder is None:
        return 0
    everything = collections(folder, options.work)
    results = {collection.name: study(collection) for collection in everything}
    marks = {collection.name: collection.fingerprint for collection in everything}
    save(options.out, "benchmarks.hybrid.index_quality", results, seed=SEED, threads=0, data=marks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
