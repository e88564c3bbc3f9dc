"""TextIndex against scores computed by hand from the encoders."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")
pytest.importorskip("bm25s", reason="needs sparing[text]")

from sparing.errors import (
    ArgumentError,
    BusyError,
    ClosedError,
    DtypeError,
    DuplicateIdError,
    FormatError,
    ShapeError,
    UnknownIdError,
    VersionError,
)
from sparing.hybrid.config import HybridConfig
from sparing.hybrid.documents import DocumentStore
from sparing.hybrid.encoders import BM25Encoder, BM25Settings, DenseEncoder, DenseSettings, SpladeEncoder
from sparing.hybrid.index import HybridIndex
from sparing.hybrid.records import Document
from sparing.hybrid.text import TextIndex
from sparing.runs.generations import replace_folder

WORDS = ["red", "fox", "hen", "barn", "dog", "river", "stone", "graph", "search", "vector", "prime", "matrix"]


def make_documents(count, *, start=0, seed=0):
    rng = np.random.default_rng(seed + start)
    return [
        Document(
            f"doc{i}",
            " ".join(rng.choice(WORDS, size=6)),
            {"section": "math" if i % 3 == 0 else "animals", "tags": [f"t{i % 2}", "all"]},
        )
        for i in range(start, start + count)
    ]


@pytest.fixture
def documents():
    return make_documents(60)


@pytest.fixture
def index(tmp_path, documents):
    with TextIndex.build(documents, tmp_path / "index") as index:
        yield index


@pytest.fixture
def hybrid(tmp_path, documents, tiny_dense_model):
    dense = DenseSettings(model=str(tiny_dense_model), precision="float32")
    with TextIndex.build(documents, tmp_path / "hybrid", dense=dense) as index:
        yield index


def files_of(path: Path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_scores_are_the_weighted_sum(hybrid, documents, tiny_dense_model):
    texts = [document.text for document in documents]
    dense = DenseEncoder(DenseSettings(model=str(tiny_dense_model), precision="float32"))
    bm25 = BM25Encoder().fit(texts)
    d = dense.encode_documents(texts) @ dense.encode_queries(["red fox matrix"])[0]
    s = (bm25.encode_documents(texts) @ bm25.encode_queries(["red fox matrix"]).T).toarray()[:, 0]
    for w in [(0.5, 0.5), (0.25, 0.75), (1.0, 0.0), (0.0, 1.0)]:
        scores = w[0] * d + w[1] * hybrid.hybrid.alignment.scale * s
        hits = hybrid.search("red fox matrix", k=5, weights=w, parts=True)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:5], rtol=1e-4, atol=1e-4)
        for hit in hits:
            parts = w[0] * (hit.dense_score or 0) + w[1] * (hit.sparse_score or 0)
            assert hit.score == pytest.approx(parts, rel=1e-4, abs=1e-5)
            assert hit.text == texts[int(hit.key[3:])]
            assert (hit.dense_score is None) == (w[0] == 0)


def test_default_weights_are_equal(hybrid):
    assert hybrid.search("red fox") == hybrid.search("red fox", weights=(0.5, 0.5))


def test_a_list_of_questions(hybrid):
    questions = ["red fox", "prime matrix", "zebra"]
    lists = hybrid.search(questions, k=3)
    for question, hits in zip(questions, lists, strict=True):
        alone = hybrid.search(question, k=3)
        assert [hit.key for hit in hits] == [hit.key for hit in alone]
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    lists = hybrid.search(questions, k=3, weights=weights, num_threads=2)
    assert [hit.key for hit in lists[1]] == [hit.key for hit in hybrid.search(questions[1], k=3, weights=(0, 1))]


def test_parts_are_optional(hybrid):
    assert {(hit.dense_score, hit.sparse_score) for hit in hybrid.search("red fox")} == {(None, None)}


def test_where(index, documents):
    hits = index.search(" ".join(WORDS), k=60, where={"section": "math", "tags": "t0"})
    expected = {d.key for i, d in enumerate(documents) if i % 3 == 0 and i % 2 == 0}
    assert {hit.key for hit in hits} <= expected
    assert len(hits) == len(expected)
    assert index.search("red fox", where={"section": "none such"}) == []
    assert index.search(["a b", "c"], where={"section": "none such"}) == [[], []]


def test_fewer_answers_than_k(index):
    assert len(index.search(" ".join(WORDS), k=500)) == 60


def test_words_only_answer_with_documents_that_share_one(index, documents, hybrid):
    assert {hit.key for hit in index.search("fox", k=60)} == {d.key for d in documents if "fox" in d.text}
    assert index.search(["zebra giraffe", ""]) == [[], []]
    assert len(hybrid.search("zebra giraffe", k=3)) == 3
    weights = np.array([[0.0, 1.0], [1.0, 1.0]])
    assert [len(hits) for hits in hybrid.search(["zebra", "zebra"], weights=weights, k=3)] == [0, 3]


def test_reopened_answers_are_the_same(hybrid, tmp_path):
    expected = hybrid.search(["red fox", "stone river"], parts=True)
    for mmap in (False, True):
        with TextIndex.open(tmp_path / "hybrid", mmap=mmap) as again:
            assert again.search(["red fox", "stone river"], parts=True) == expected
            assert len(again) == 60
    TextIndex.verify(tmp_path / "hybrid")


@pytest.mark.parametrize("mmap", [False, True])
def test_add_update_delete_compact(tmp_path, documents, index, mmap):
    index = TextIndex.open(tmp_path / "index", mmap=mmap)
    index.add(make_documents(20, start=60))
    index.add([Document("zebra", "zebra giraffe", {"section": "new"})])
    assert index.search("zebra", k=1)[0].key == "zebra"
    index.update([Document("doc3", "giraffe okapi", {})])
    assert index.search("okapi", k=1)[0].key == "doc3"
    index.delete(["doc0", "zebra"])
    assert len(index) == 79
    assert "zebra" not in {hit.key for hit in index.search("zebra", k=79)}
    before = index.search(["red fox", "river stone"], k=20)
    index.compact()
    assert index.info.index.num_deleted == 0
    assert index.search(["red fox", "river stone"], k=20) == before
    TextIndex.verify(tmp_path / "index")
    with TextIndex.open(tmp_path / "index") as again:
        assert again.search(["red fox", "river stone"], k=20) == before


def test_an_unchanged_update_changes_no_score(index, documents):
    before = index.search("red fox", k=60)
    index.update(documents[:5])
    assert index.search("red fox", k=60) == before


def test_deleting_everything_and_starting_again(index, documents):
    index.delete([document.key for document in documents])
    assert index.search("red fox") == []
    index.add(documents[:3])
    assert len(index.search(" ".join(WORDS), k=10)) == 3


def test_same_documents_same_bytes(tmp_path, documents):
    folders = []
    for name, threads in (("a", 1), ("b", 2)):
        TextIndex.build(documents, tmp_path / name, num_threads=threads).close()
        folders.append(files_of(tmp_path / name))
    assert folders[0] == folders[1]


def test_info(hybrid, tiny_dense_model):
    info = hybrid.info
    assert info.num_documents == 60
    assert info.fields == ("section", "tags")
    assert info.dense is not None
    assert info.dense.model == str(tiny_dense_model)
    assert info.sparse == BM25Settings()
    assert info.index.dim == 32
    assert info.alignment.scale > 0
    assert info.file_bytes["index.sparing"] > 0
    assert info.generation == "gen-000001"


@pytest.mark.parametrize("parts", ["dense", "splade", "both"])
def test_kinds_of_index(tmp_path, documents, tiny_dense_model, tiny_splade_model, parts):
    dense = None if parts == "splade" else tiny_dense_model
    sparse = None if parts == "dense" else tiny_splade_model
    with TextIndex.build(documents, tmp_path / "i", dense=dense, sparse=sparse, config=HybridConfig(degree=8)) as index:
        expected = index.search("red fox", k=5)
        index.add([Document("new", "red fox red fox")])
    with TextIndex.open(tmp_path / "i") as index:
        assert len(expected) == 5
        assert len(index.search("red fox", k=100)) == 61
        assert index.hybrid.config.degree == 8


def test_encoders_of_ones_own(tmp_path, documents, tiny_splade_model):
    encoder = SpladeEncoder(str(tiny_splade_model))
    with TextIndex.build(documents, tmp_path / "i", sparse=encoder) as index:
        assert index.info.sparse == encoder.settings


def test_opening_loads_no_model(hybrid, tmp_path, tiny_dense_model, monkeypatch):
    monkeypatch.setattr("sparing.hybrid.encoders.DenseEncoder", None)
    with TextIndex.open(tmp_path / "hybrid") as again:
        assert again.info.dense is not None
        assert len(again.search("red fox", weights=(0.0, 1.0))) == 10
        with pytest.raises(TypeError):
            again.search("red fox")


def test_moved_model(tmp_path, documents, tiny_dense_model, other_dense_model):
    shutil.copytree(tiny_dense_model, tmp_path / "model")
    with TextIndex.build(documents, tmp_path / "i", dense=tmp_path / "model") as index:
        expected = index.search("red fox")
    (tmp_path / "model").rename(tmp_path / "moved")
    with TextIndex.open(tmp_path / "i") as index, pytest.raises(ArgumentError, match="expected a model directory"):
        index.search("red fox")
    with TextIndex.open(tmp_path / "i", dense_model=tmp_path / "moved") as index:
        assert index.search("red fox") == expected
        index.delete(["doc1"])
    with TextIndex.open(tmp_path / "i") as index:
        assert len(index.search("red fox")) == 10
    with TextIndex.open(tmp_path / "i", dense_model=other_dense_model) as index:
        with pytest.raises(FormatError, match="not the one that the index was built with"):
            index.search("red fox")
        with pytest.raises(FormatError, match="not the one"):
            index.add([Document("x", "y")])
    with pytest.raises(ArgumentError, match="no sparse model"):
        TextIndex.open(tmp_path / "i", sparse_model=other_dense_model)


def test_mappings_are_documents(tmp_path):
    with TextIndex.build([{"id": 1, "text": "red fox", "section": "x"}], tmp_path / "i") as index:
        assert index.search("fox")[0].metadata == {"section": "x"}


def test_texts_without_words(tmp_path):
    documents = [Document("a", ""), Document("b", "the of"), Document("c", "red fox")]
    with TextIndex.build(documents, tmp_path / "i") as index:
        assert index.search("fox", k=1)[0].key == "c"
        assert index.search("the of", k=1) is not None
    TextIndex.verify(tmp_path / "i")


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([], ArgumentError, "at least one document"),
        ([Document("x", "x"), Document("x", "y")], DuplicateIdError, "'x'"),
        ("a text", DtypeError, "iterable of documents, got one str"),
        ({"id": 1, "text": "x"}, DtypeError, "got one dict"),
        (["a text"], DtypeError, r"documents\[0\].*got str"),
        ([Document("a", 7)], DtypeError, "text of document 'a'"),
        ([{"id": "a"}], ArgumentError, "expected a field 'text'"),
    ],
)
def test_bad_documents_leave_the_old_index(tmp_path, index, bad, error, message):
    before = files_of(tmp_path / "index")
    with pytest.raises(error, match=message):
        TextIndex.build(bad, tmp_path / "index")
    if bad:
        with pytest.raises(error, match=message):
            index.add(bad)
    assert files_of(tmp_path / "index") == before


def test_no_encoder(tmp_path, documents):
    with pytest.raises(ArgumentError, match="at least one encoder"):
        TextIndex.build(documents, tmp_path / "i", sparse=None)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda index: index.add([Document("doc1", "again")]), DuplicateIdError),
        (lambda index: index.update([Document("nobody", "here")]), UnknownIdError),
        (lambda index: index.delete(["doc1", "nobody"]), UnknownIdError),
        (lambda index: index.delete(["doc1", "doc1"]), DuplicateIdError),
        (lambda index: index.delete("doc1"), DtypeError),
        (lambda index: index.delete([]), ArgumentError),
    ],
)
def test_refused_changes_change_nothing(tmp_path, index, change, error):
    before, answers = files_of(tmp_path / "index"), index.search("red fox", k=60)
    with pytest.raises(error):
        change(index)
    assert files_of(tmp_path / "index") == before
    assert index.search("red fox", k=60) == answers


def test_nothing_to_add(tmp_path, index):
    before = files_of(tmp_path / "index")
    index.add([])
    assert files_of(tmp_path / "index") == before


@pytest.mark.parametrize("failing", ["save", "add"])
def test_a_failing_disk_changes_nothing(tmp_path, index, monkeypatch, failing):
    before, answers = files_of(tmp_path / "index"), index.search("red fox", k=60)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HybridIndex, failing, full)
    with pytest.raises(OSError, match="No space left"):
        index.add([Document("new", "red fox")])
    monkeypatch.undo()
    assert files_of(tmp_path / "index") == before
    assert index.search("red fox", k=60) == answers
    index.add([Document("new", "red fox")])
    assert len(index) == 61


def test_two_writers(tmp_path, index):
    with replace_folder(tmp_path / "index") as folder:
        with pytest.raises(BusyError):
            index.delete(["doc1"])
        assert len(index.search("red fox")) == 10
        shutil.copytree(tmp_path / "index" / "gen-000001", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
    index.delete(["doc1"])
    assert len(index) == 59


def test_changes_of_another_opener_are_kept(tmp_path, index):
    with TextIndex.open(tmp_path / "index") as other:
        other.add([Document("theirs", "zebra")])
        index.add([Document("mine", "okapi")])
        assert index.search("zebra", k=1)[0].key == "theirs"
        assert len(other) == 61
        assert other.search("zebra", k=1)[0].key == "theirs"
    assert len(index) == 62


def test_searches_while_it_changes(tmp_path, index):
    stop, failures = threading.Event(), []

    def search():
        while not stop.is_set():
            hits = index.search("red fox", k=20)
            if len(hits) != 20:
                failures.append(len(hits))

    def reopen():
        while not stop.is_set():
            with TextIndex.open(tmp_path / "index") as other:
                failures.extend([-1] * (len(other.search("red fox", k=20)) != 20))

    threads = [threading.Thread(target=target) for target in (search, search, reopen)]
    for thread in threads:
        thread.start()
    for number in range(10):
        index.add([Document(f"new{number}", "red fox")])
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ArgumentError, "k: "),
        ({"weights": (0.0, 0.0)}, ArgumentError, "weights: expected weight on a part"),
        ({"weights": (1.0, 0.0)}, ArgumentError, r"weights: expected weight on a part of this index \(sparse\)"),
        ({"weights": (1.0,)}, ShapeError, "weights"),
        ({"where": {"sektion": "math"}}, ArgumentError, "sektion"),
        ({"beam": 0}, ArgumentError, "beam"),
    ],
)
def test_bad_searches(index, options, error, message):
    with pytest.raises(error, match=message):
        index.search("red fox", **options)


@pytest.mark.parametrize(("query", "error"), [(7, DtypeError), ([], ArgumentError), (["a", 7], DtypeError)])
def test_bad_questions(index, query, error):
    with pytest.raises(error, match="query"):
        index.search(query)


def test_folders_with_other_things_are_left_alone(tmp_path, documents):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ArgumentError, match=r"holds other things \(thesis.tex\)"):
        TextIndex.build(documents, tmp_path / "mine")
    with pytest.raises(ArgumentError, match="expected a folder"):
        TextIndex.build(documents, tmp_path / "mine" / "thesis.tex")
    assert files_of(tmp_path / "mine") == {"thesis.tex": b"precious"}


def test_opening_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        TextIndex.open(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="nothing was saved here"):
        TextIndex.open(tmp_path)


def test_every_flipped_byte_is_found(tmp_path, index):
    index.close()
    folder = tmp_path / "index"
    for name, data in files_of(folder).items():
        if name == "LOCK":
            continue
        for position in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
            damaged = bytearray(data)
            damaged[position] ^= 0x20
            (folder / name).write_bytes(bytes(damaged))
            with pytest.raises(FormatError):
                TextIndex.verify(folder)
        (folder / name).write_bytes(data)
    TextIndex.verify(folder)


def _rewritten(folder: Path, name: str, change):
    """Writes a new generation with one file changed, as a faulty writer would."""
    with replace_folder(folder) as new:
        for file in (folder / (folder / "CURRENT").read_text().split()[0]).iterdir():
            if file.name != "manifest.json":
                shutil.copyfile(file, new / file.name)
        change(new / name)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda data: {**data, "version": 2}, VersionError, "expected version 1, got 2"),
        (lambda data: {**data, "schema": "other"}, FormatError, "expected the schema"),
        (lambda data: {**data, "extra": 1}, FormatError, "extra"),
        (lambda data: {**data, "sparse": {"kind": "none"}}, FormatError, "sparse"),
        (lambda data: [], FormatError, "not the settings"),
    ],
)
def test_settings_of_another_kind(tmp_path, index, change, error, message):
    _rewritten(tmp_path / "index", "text.json", lambda p: p.write_text(json.dumps(change(json.loads(p.read_text())))))
    with pytest.raises(error, match=message):
        TextIndex.open(tmp_path / "index")


def test_documents_and_vectors_that_do_not_fit(tmp_path, index):
    def drop_one(path):
        with DocumentStore.open(path, writable=True) as store:
            store.remove(["doc1"])

    _rewritten(tmp_path / "index", "documents.sqlite", drop_one)
    with pytest.raises(FormatError, match="59 documents do not fit 60 vectors"):
        TextIndex.open(tmp_path / "index")
    with pytest.raises(FormatError, match="do not fit"):
        TextIndex.verify(tmp_path / "index")


def test_closed_index_says_so(index):
    assert index.search("red fox", k=3)
    index.close()
    index.close()
    for ask in (lambda: index.search("red fox", k=3), lambda: len(index), lambda: index.info):
        with pytest.raises(ClosedError, match="open the index again"):
            ask()
