"""Writes the index file that every later release must open, and the answers it must give.

Run it once a format version, before the release that brings the version; a file that is there is never changed::

    python tests/compat/make_index.py 2
"""

import sys
from pathlib import Path

import numpy as np

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.runs import read_artifact
from sparing.testing import make_clustered

FOLDER = Path(__file__).parent
WEIGHTS = [(0.5, 0.5), (1.0, 0.0), (0.2, 0.8)]


def main(version):
    path = FOLDER / f"index-v{version}.sparing"
    if path.exists():
        sys.exit(f"{path.name} is there already")
    data = make_clustered(150, dim=20, vocabulary=300, terms=10, query_terms=5, topics=8, queries=8, seed=2024)
    config = HybridConfig(degree=8, build_beam=32, doc_terms=12, num_entries=8, seeds_per_term=1, seed=3)
    index = HybridIndex.build(data.dense[:120], data.sparse[:120], ids=np.arange(120) * 11 + 5, config=config)
    index.add(data.dense[120:], data.sparse[120:], ids=np.arange(5000, 5030))
    index.delete([5, 16, 5003])
    index.save(path)
    read_artifact(path, schema="sparing.hybrid.index", versions={version})  # what this code writes is of that version
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
    np.savez_compressed(path.with_suffix(".npz"), **answers)


if __name__ == "__main__":
    main(int(sys.argv[1]))
