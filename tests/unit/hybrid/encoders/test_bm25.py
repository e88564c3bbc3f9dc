"""BM25 against hand-computed weights and against bm25s' own scores."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("bm25s", reason="needs sparing[text]")
pytest.importorskip("Stemmer", reason="needs sparing[text]")

from sparing.errors import ArgumentError, ConfigError, DtypeError, FormatError
from sparing.hybrid.encoders import BM25Encoder, BM25Settings

DOCS = [
    "The red fox runs, the fox runs fast",
    "Two red hens",
    "A barn; a dog",
    "Foxes and hens in the barn near a red dog",
]


def test_weights_by_hand():
    encoder = BM25Encoder(BM25Settings(language=None, k1=1.2, b=0.5)).fit(["aa bb aa", "bb cc"])
    weights = encoder.encode_documents(["aa bb aa"]).toarray()[0]
    idf = {"aa": math.log(1 + 1.5 / 1.5), "bb": math.log(1 + 0.5 / 2.5)}
    length = 1.2 * (1 - 0.5 + 0.5 * 3 / 2.5)
    assert encoder.terms == ("aa", "bb", "cc")
    np.testing.assert_allclose(weights, [idf["aa"] * 2 / (2 + length), idf["bb"] * 1 / (1 + length), 0], rtol=1e-6)


def test_scores_are_those_of_bm25s():
    import bm25s
    import Stemmer

    tokens = bm25s.tokenize(DOCS, stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)
    reference = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    reference.index(tokens, show_progress=False)
    encoder = BM25Encoder().fit(DOCS)
    documents = encoder.encode_documents(DOCS)
    for query in ["red foxes", "dog hens barn", "fast fast fox"]:
        words = bm25s.tokenize([query], stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)[0]
        expected = reference.get_scores(words)
        got = (documents @ encoder.encode_queries([query]).T).toarray()[:, 0]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_stems_and_stop_words():
    encoder = BM25Encoder().fit(DOCS)
    assert "the" not in encoder.terms
    assert "fox" in encoder.terms
    assert "foxes" not in encoder.terms


def test_query_counts_terms_and_ignores_unseen_ones():
    encoder = BM25Encoder().fit(DOCS)
    row = encoder.encode_queries(["fox zebra foxes"])
    assert row.nnz == 1
    assert row.data.tolist() == [2.0]
    assert encoder.encode_queries(["zebra"]).nnz == 0


def test_rows_are_sorted_float32():
    rows = BM25Encoder().fit(DOCS).encode_documents(DOCS)
    assert rows.dtype == np.float32
    assert all((np.diff(rows.indices[a:b]) > 0).all() for a, b in zip(rows.indptr, rows.indptr[1:], strict=False))
    assert (rows.data > 0).all()


def test_later_documents_weigh_the_same_in_any_split():
    encoder = BM25Encoder().fit(DOCS)
    one = encoder.extended(["a zebra", "a fox and a giraffe"])
    two = encoder.extended(["a zebra"]).extended(["a fox and a giraffe"])
    a, b = one.encode_documents(["zebra fox giraffe"]), two.encode_documents(["zebra fox giraffe"])
    by_name = [dict(zip(np.array(e.terms)[r.indices], r.data, strict=True)) for e, r in ((one, a), (two, b))]
    assert by_name[0] == by_name[1]
    assert set(by_name[0]) == {"zebra", "fox", "giraff"}
    np.testing.assert_array_equal(
        one.encode_documents(DOCS)[:, : len(encoder.terms)].toarray(), encoder.encode_documents(DOCS).toarray()
    )


def test_nothing_new_returns_the_same_encoder():
    encoder = BM25Encoder().fit(DOCS)
    assert encoder.extended(["red fox"]) is encoder


def test_fit_leaves_the_encoder_alone():
    encoder = BM25Encoder()
    encoder.fit(DOCS)
    assert encoder.num_documents == 0


@pytest.mark.parametrize("texts", [["", "..."], ["", "red fox"], ["the a of"]])
def test_texts_without_terms_give_empty_rows(texts):
    rows = BM25Encoder().fit(texts).encode_documents(texts)
    assert rows.shape[0] == len(texts)
    assert rows[[0]].nnz == 0
    assert np.isfinite(rows.data).all()


@pytest.mark.parametrize(("k1", "b"), [(0.0, 1.0), (0.0, 0.0), (1e6, 1.0)])
def test_extreme_settings_stay_finite(k1, b):
    rows = BM25Encoder(BM25Settings(k1=k1, b=b)).fit(["", *DOCS]).encode_documents(["", *DOCS])
    assert np.isfinite(rows.data).all()
    assert (rows.data > 0).all()


@pytest.mark.parametrize("language", ["german", "finnish", "arabic", None])
def test_other_languages(language):
    assert BM25Encoder(BM25Settings(language=language)).fit(["Zwei rote Hennen"]).encode_documents(["rote"]).nnz == 1


def test_state_round_trip(tmp_path: Path):
    encoder = BM25Encoder(BM25Settings(k1=0.9)).fit([*DOCS, "Füchse über Brücken"]).extended(["zebra"])
    encoder.save_state(tmp_path)
    again = BM25Encoder.load(encoder.settings, tmp_path)
    assert again.terms == encoder.terms
    np.testing.assert_array_equal(again.encode_documents(DOCS).toarray(), encoder.encode_documents(DOCS).toarray())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"num_documents": 2, "average_length": 1.0, "terms": ["a", "a"], "document_frequencies": [1, 1]}',
        '{"num_documents": 2, "average_length": 1.0, "terms": ["a"], "document_frequencies": [1, 1]}',
        '{"num_documents": 0, "average_length": 1.0, "terms": [], "document_frequencies": []}',
        '{"num_documents": 2, "average_length": null, "terms": [], "document_frequencies": []}',
        '{"num_documents": 2, "average_length": NaN, "terms": ["a"], "document_frequencies": [1]}',
        '{"num_documents": 2, "average_length": 1.0, "terms": [1], "document_frequencies": [1]}',
        '{"num_documents": 2, "average_length": 1.0, "terms": ["a"], "document_frequencies": [3]}',
    ],
)
def test_damaged_state(tmp_path: Path, content):
    (tmp_path / "bm25.json").write_text(content)
    with pytest.raises(FormatError, match=r"bm25\.json.*build the index again"):
        BM25Encoder.load(BM25Settings(), tmp_path)


def test_missing_state(tmp_path: Path):
    with pytest.raises(FormatError, match=r"bm25\.json"):
        BM25Encoder.load(BM25Settings(), tmp_path)


def test_not_fitted(tmp_path: Path):
    encoder = BM25Encoder()
    for call in (encoder.encode_documents, encoder.encode_queries, encoder.extended):
        with pytest.raises(ArgumentError, match=r"call fit\(texts\)"):
            call(["a"])
    with pytest.raises(ArgumentError, match="fit"):
        encoder.save_state(tmp_path)


def test_unknown_language():
    with pytest.raises(ConfigError, match=r"english.*got 'klingon'"):
        BM25Encoder(BM25Settings(language="klingon"))


@pytest.mark.parametrize("texts", ["a bare string", [1], ["a", None], 7])
def test_not_strings(texts):
    with pytest.raises(DtypeError, match="expected a"):
        BM25Encoder().fit(texts)


def test_no_texts():
    with pytest.raises(ArgumentError, match="empty list"):
        BM25Encoder().fit([])


def test_progress_ends_at_the_total():
    calls = []
    encoder = BM25Encoder().fit(DOCS, progress=lambda *call: calls.append(call))
    encoder.encode_documents(DOCS, progress=lambda *call: calls.append(call))
    assert calls == [("bm25 statistics", 4, 4), ("bm25 weights", 4, 4)]
