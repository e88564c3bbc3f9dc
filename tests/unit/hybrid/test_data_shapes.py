"""Recall on data of shapes that real collections have: shared directions, duplicates, long documents."""

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridConfig, HybridIndex
from sparing.hybrid.pruning import shared_error


def unit(rng, count, dim=64):
    x = rng.standard_normal((count, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def found_share(index, dense, sparse=None, **options):
    """Share of answers that are as good as the exact ones, whichever of equal items they name."""
    found, exact = index.search(dense, sparse, **options), index.search_exact(dense, sparse)
    last = exact.scores[:, -1:]
    return float((found.scores >= last - 1e-5 * np.abs(last)).mean())


@pytest.mark.parametrize("code", ["int4", "int8"])
@pytest.mark.parametrize("cosine", [0.6, 0.9])
def test_embeddings_that_share_a_direction(code, cosine):
    rng = np.random.default_rng(0)
    shared = unit(rng, 1)
    make = lambda count: np.float32(cosine**0.5) * shared + np.float32((1 - cosine) ** 0.5) * unit(rng, count)  # noqa: E731
    index = HybridIndex.build(make(3000), None, config=HybridConfig(dense_code=code))
    assert found_share(index, make(200)) >= 0.95


@pytest.mark.parametrize("scale", [1e4, 1e15])
def test_a_few_long_vectors_do_not_spoil_the_others(scale):
    rng = np.random.default_rng(1)
    dense = unit(rng, 3000)
    dense[::1500] *= np.float32(-scale)
    index = HybridIndex.build(dense, None)
    queries = unit(rng, 300)
    queries = queries[(queries @ dense[::1500].T).max(axis=1) < 0]  # those that ask for the others
    assert len(queries) > 30
    assert found_share(index, queries) >= 0.95


@pytest.mark.parametrize("similarity", ["ip", "l2"])
@pytest.mark.parametrize(("groups", "copies"), [(200, 15), (75, 40), (15, 200)])
def test_collections_of_duplicates(similarity, groups, copies):
    rng = np.random.default_rng(2)
    base = unit(rng, groups)
    index = HybridIndex.build(np.repeat(base, copies, axis=0), None, config=HybridConfig(similarity=similarity))
    assert found_share(index, base + np.float32(0.05) * unit(rng, groups)) >= 0.99


def long_texts(count, vocabulary, length):
    """Rows of many terms with weights as BM25 gives them, and queries of six of a row's terms, all of one weight."""
    rng = np.random.default_rng(3)
    often = 1 / np.arange(1, vocabulary + 1)
    rows = []
    for _ in range(count):
        terms, counts = np.unique(rng.choice(vocabulary, length, p=often / often.sum()), return_counts=True)
        weights = np.log1p(terms / 100) * counts / (counts + 1.2) + 0.01
        rows.append(dict(zip(terms.tolist(), weights.tolist(), strict=True)))
    queries = [dict.fromkeys(rng.choice(list(rows[i]), 6, replace=False).tolist(), 1.0) for i in range(100)]
    return rows, queries


def test_long_texts_keep_more_terms():
    rows, queries = long_texts(2000, 20_000, 400)
    shares = {}
    for options in ({"doc_terms": 56}, {}, {"term_share": 0.99}, {"doc_terms": None}):
        index = HybridIndex.build(None, rows, config=HybridConfig(**options))
        shares[index.stats.doc_terms] = found_share(index, None, queries, beam=500)
    short, default, most, whole = shares.values()
    assert list(shares)[:1] == [56] < list(shares)[1:2] < list(shares)[2:3]
    assert short < default - 0.1
    assert most >= 0.9
    assert whole - 0.05 <= most


def test_short_texts_keep_as_many_terms_as_before():
    assert HybridIndex.build(None, [{1: 1.0, 2: 2.0}]).stats.doc_terms == 56
    assert HybridIndex.build(np.eye(3, dtype=np.float32), None).stats.doc_terms == 56


def test_kept_terms_are_those_of_the_share():
    rows = [dict.fromkeys(range(200), 1.0)] * 10
    for share, terms in ((0.1, 56), (0.5, 104), (0.52, 104), (0.525, 112), (1.0, 200)):
        assert HybridIndex.build(None, rows, config=HybridConfig(term_share=share)).stats.doc_terms == terms
    assert HybridIndex.build(None, [dict.fromkeys(range(3000), 1.0)]).stats.doc_terms == 1024


def test_the_error_of_shared_bytes_is_the_least():
    rng = np.random.default_rng(4)
    for size in (3, 11, 16):
        row = np.sort(rng.gamma(1, 1, size))[::-1]
        # 16 places: two groups of at most 8.
        parts = [(row[:at], row[at:]) for at in range(size + 1) if at <= 8 and size - at <= 8]
        least = min(sum(float(((part - part.mean()) ** 2).sum()) for part in two if len(part)) for two in parts)
        padded = np.pad(row, (0, 16 - size))[None]
        assert shared_error(padded, np.array([size]), 16) == pytest.approx(least)
