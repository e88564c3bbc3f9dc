"""Measures against numbers computed by hand."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")
pytest.importorskip("bm25s", reason="needs sparing[text]")

from sparing.errors import ArgumentError, MissingExtraError
from sparing.hybrid.evaluate import Latency, evaluate, recall_of_exact
from sparing.hybrid.records import Document
from sparing.hybrid.results import SearchResult
from sparing.hybrid.text import TextIndex
from sparing.hybrid.text_files import Query

DOCUMENTS = [
    Document("a", "red fox red fox red"),
    Document("b", "red fox and a hen"),
    Document("c", "prime numbers and matrices and more numbers"),
    Document("d", "a river of stones"),
]
QUERIES = [Query("1", "fox"), Query("2", "numbers"), Query("3", "river")]


@pytest.fixture
def index(tmp_path):
    with TextIndex.build(DOCUMENTS, tmp_path / "index") as index:
        yield index


def result(ids, scores):
    return SearchResult(np.array(ids), np.array(scores, np.float32), None)


def test_by_hand(index):
    pytest.importorskip("ir_measures", reason="needs sparing[eval]")
    first = [hit.key for hit in index.search("fox", k=2)]
    assert sorted(first) == ["a", "b"]
    qrels = {"1": {first[1]: 1, "d": 1}, "2": {"c": 2}, "unasked": {"a": 1}}
    calls = []
    report = evaluate(index, QUERIES, qrels, k=2, progress=lambda *call: calls.append(call))
    # nDCG looks at ten answers, so that document d is found too, at rank 3 or 4.
    keys = [hit.key for hit in index.search("fox", k=10)]
    gains = sum(1 / np.log2(keys.index(key) + 2) for key in (first[1], "d") if key in keys)
    assert report.ndcg_at_10 == pytest.approx((gains / (1 + 1 / np.log2(3)) + 1) / 2)
    assert report.recall_at_k == pytest.approx((0.5 + 1) / 2)
    assert report.recall_of_exact == 1
    assert (report.num_queries, report.num_judged, report.k, report.weights) == (3, 2, 2, (0.0, 1.0))
    assert report.beam == index.hybrid.config.beam
    assert 0 < report.search_s.p50 <= report.search_s.p95 <= report.search_s.p99
    assert calls == [("questions", n, 3) for n in (1, 2, 3)]
    assert json.loads(json.dumps(report.to_dict()))["search_s"]["p50"] == report.search_s.p50


def test_without_judgements(index):
    report = evaluate(index, QUERIES)
    assert report.ndcg_at_10 is None
    assert report.recall_at_k is None
    assert report.num_judged == 0
    assert report.recall_of_exact == 1


def test_hybrid_weights(tmp_path, tiny_dense_model):
    with TextIndex.build(DOCUMENTS, tmp_path / "hybrid", dense=tiny_dense_model) as index:
        assert evaluate(index, QUERIES, weights=(1.0, 0.0), k=3, beam=4).weights == (1.0, 0.0)
        assert evaluate(index, QUERIES).weights == (0.5, 0.5)


@pytest.mark.parametrize(
    ("found", "exact", "expected"),
    [
        (([1, 2], [3, 2]), ([1, 2], [3, 2]), 1),
        (([1, 9], [3, 1]), ([1, 2], [3, 2]), 0.5),
        (([1, 9], [3, 2]), ([1, 2], [3, 2]), 1),
        (([9, 1], [2, 1]), ([1, 2], [3, 2.5]), 0),
        (([1, -1], [3, -np.inf]), ([1, -1], [3, -np.inf]), 1),
        (([-1, -1], [-np.inf, -np.inf]), ([-1, -1], [-np.inf, -np.inf]), 1),
        (([-1, -1], [-np.inf, -np.inf]), ([1, -1], [0, -np.inf]), 0),
        (([1, 2], [-1, -2]), ([1, 2], [-1, -2]), 1),
        (([1, 2], [-1, -3]), ([1, 3], [-1, -2]), 0.5),
    ],
)
def test_recall_of_exact(found, exact, expected):
    assert recall_of_exact(result(*found), result(*exact)).tolist() == [expected]


def test_latency():
    latency = Latency.of([1.0, 2.0, 3.0, 4.0])
    assert (latency.p50, latency.mean) == (2.5, 2.5)
    assert latency.p99 == pytest.approx(3.97)


def test_questions_and_judgements_that_do_not_meet(index):
    with pytest.raises(
        ArgumentError, match=r"qrels: expected judgements.*'1' in the questions and 'q1' in the judgements"
    ):
        evaluate(index, QUERIES, {"q1": {"a": 1}})
    with pytest.raises(ArgumentError, match="at least one question"):
        evaluate(index, [])
    with pytest.raises(ArgumentError, match="k: "):
        evaluate(index, QUERIES, k=0)


def test_missing_extra(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtraError, match=r"sparing\[eval\]"):
        evaluate(index, QUERIES, {"1": {"a": 1}})
