"""Writes the index file that every later release must open, and the answers it must give.

Run it once a format version, before the release that brings the version; never change a file of a released version::

    python tests/compat/make_index_v1.py
"""

from pathlib import Path

import numpy as np

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.testing import make_clustered

FOLDER = Path(__file__).parent
WEIGHTS = [(0.5, 0.5), (1.0, 0.0), (0.2, 0.8)]


def main():
    data = make_clustered(150, dim=20, vocabulary=300, terms=10, query_terms=5, topics=8, queries=8, seed=2024)
    config = HybridConfig(degree=8, build_beam=32, doc_terms=12, num_entries=8, seeds_per_term=1, seed=3)
    index = HybridIndex.build(data.dense[:120], data.sparse[:120], ids=np.arange(120) * 11 + 5, config=config)
    index.add(data.dense[120:], data.sparse[120:], ids=np.arange(5000, 5030))
    index.delete([5, 16, 5003])
    index.save(FOLDER / "index-v1.sparing")
    queries = data.sparse_queries
    answers = {
        "dense_queries": data.dense_queries,
        "query_begin": queries.indptr,
        "query_terms": queries.indices,
        "query_weights": queries.data,
        "scale": np.float64(index.alignment.scale),
    }
    for number, weights in enumerate(WEIGHTS):
        found = index.search_exact(data.dense_queries, queries, k=10, weights=weights)
        answers[f"ids_{number}"], answers[f"scores_{number}"] = found.ids, found.scores
    np.savez_compressed(FOLDER / "index-v1.npz", **answers)


if __name__ == "__main__":
    main()
