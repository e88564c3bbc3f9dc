"""HybridConfig: bounds, immutability, and errors that name the field."""

import pytest

from sparing.errors import ConfigError

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.hybrid.config import make_config


def test_it_is_frozen_and_printable():
    config = HybridConfig(degree=16)
    with pytest.raises(ValueError, match="frozen"):
        config.degree = 8
    assert "degree=16" in repr(config)
    assert make_config(config.model_dump(mode="json")) == config


def test_naive_switches_every_lever_off():
    naive = HybridConfig.naive(degree=24)
    assert (naive.dense_code, naive.doc_terms, naive.query_terms, naive.two_stage) == ("float32", None, None, False)
    assert naive.degree == 24
    with pytest.raises(ConfigError, match="degre: Extra inputs"):
        HybridConfig.naive(degre=24)


BAD = {
    "metric": ["l2", None],
    "degree": [3, 257, 2**31, -1, "many", 8.5],
    "build_beam": [7, 4097],
    "beam": [0, 65537],
    "seed": [-1, 2**63],
    "alignment": ["median"],
    "scale": [0, -1, float("nan"), float("inf")],
    "num_pairs": [99, 10**8],
    "dense_code": ["int2", 4],
    "doc_terms": [0, 4097],
    "query_terms": [0, 65537],
    "weights": [(1,), (-1, 1), (float("nan"), 1), 0.5],
    "similarity": ["dot"],
    "num_entries": [0, 65537],
    "seeds_per_term": [-1, 65],
    "seed_terms": [-1, 1025],
    "unknown": [1],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_bad_values_name_the_field_and_what_came(field, value):
    with pytest.raises(ConfigError, match=rf"config: {field}"):
        make_config({field: value})
    with pytest.raises(ValueError, match=field):
        HybridConfig(**{field: value})


def test_every_field_reaches_the_index(small):
    fields = {
        "metric": "cosine",
        "degree": 12,
        "build_beam": 40,
        "beam": 33,
        "seed": 9,
        "alignment": "mean",
        "num_pairs": 500,
        "dense_code": "int8",
        "doc_terms": 7,
        "query_terms": 5,
        "two_stage": True,
        "weights": (0.3, 0.7),
        "similarity": "cosine",
        "num_entries": 3,
        "seeds_per_term": 2,
        "seed_terms": 4,
    }
    config = HybridConfig(**fields)
    index = HybridIndex.build(small.dense, small.sparse, config=config)
    assert index.config == config
    assert index.alignment.statistic == "mean"
    assert index.alignment.num_pairs == 500
    assert len(index.search(small.dense_queries, small.sparse_queries).ids) == 20
    assert index.stats.link_bytes == 300 * 12 * 4
