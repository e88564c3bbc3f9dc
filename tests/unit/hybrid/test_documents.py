"""The document store against plain dictionaries."""

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparing.errors import (
    ArgumentError,
    DtypeError,
    DuplicateIdError,
    FormatError,
    ReadOnlyError,
    UnknownIdError,
    VersionError,
)
from sparing.hybrid.documents import DocumentStore
from sparing.hybrid.records import Document

DOCS = [
    Document("a", "a red fox", {"section": "animals", "tags": ["red", "fast"], "year": 2001}),
    Document("b", "prime numbers", {"section": "math", "tags": [], "year": 2002.0, "draft": True}),
    Document("c", "a matrix", {"section": "math", "tags": ["red"], "year": "2001", "nested": {"x": [1]}}),
    Document("d", "", {"section": None, "ratio": 0.5}),
]


@pytest.fixture
def store(tmp_path):
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        store.add(DOCS)
        yield store


def test_round_trip(tmp_path: Path):
    path = tmp_path / "with space #and?.sqlite"
    with DocumentStore.create(path) as store:
        np.testing.assert_array_equal(store.add(DOCS), [0, 1, 2, 3])
    with DocumentStore.open(path) as store:
        assert len(store) == 4
        assert store.get([2, 0, 2]) == [DOCS[2], DOCS[0], DOCS[2]]
        assert store.ids().dtype == np.int64
        store.verify()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ({}, "abcd"),
        ({"section": "math"}, "bc"),
        ({"tags": "red"}, "ac"),
        ({"tags": ["fast", "slow"]}, "a"),
        ({"section": ["math", "animals"], "tags": "red"}, "ac"),
        ({"section": "math", "year": 2002}, "b"),
        ({"year": 2001}, "a"),
        ({"year": "2001"}, "c"),
        ({"year": 2001.0}, "a"),
        ({"draft": True}, "b"),
        ({"draft": 1}, ""),
        ({"section": None}, "d"),
        ({"ratio": 0.5}, "d"),
        ({"section": "Math"}, ""),
        ({"section": "' OR 1=1 --"}, ""),
    ],
)
def test_where(store, where, keys):
    allowed = store.allowed(where)
    assert allowed.dtype == np.int64
    assert "".join(document.key for document in store.get(allowed)) == keys


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"sektion": "math"}, r"no document has a field 'sektion'.*section, tags"),
        ({"nested": "x"}, "no document has a field 'nested'"),
        ({"section": []}, "empty list"),
        ({"section": {"not": "math"}}, r"where\['section'\]: expected strings"),
        ({"year": float("nan")}, r"where\['year'\]"),
    ],
)
def test_bad_where(store, where, message):
    with pytest.raises(ArgumentError, match=message):
        store.allowed(where)


def test_where_that_is_no_mapping(store):
    with pytest.raises(DtypeError, match="where: expected a mapping"):
        store.allowed("section=math")


def test_remove_and_replace(store):
    np.testing.assert_array_equal(store.remove(["c", "a"]), [2, 0])
    np.testing.assert_array_equal(store.replace([Document("b", "even numbers", {"section": "art"})]), [1])
    assert store.get([1])[0].text == "even numbers"
    assert store.allowed({"section": "art"}).tolist() == [1]
    assert store.allowed({"section": None}).tolist() == [3]
    with pytest.raises(ArgumentError, match="'tags'"):
        store.allowed({"tags": "red"})
    np.testing.assert_array_equal(store.add([Document("a", "again")]), [4])


def test_ids_are_never_used_again(store):
    store.remove(["d"])
    assert store.add([Document("e", "new")]).tolist() == [4]


def test_shrink(tmp_path: Path):
    path = tmp_path / "documents.sqlite"
    with DocumentStore.create(path) as store:
        store.add([Document(str(i), "x" * 1000) for i in range(500)])
        store.remove([str(i) for i in range(499)])
    before = path.stat().st_size
    with DocumentStore.open(path, writable=True) as store:
        store.shrink()
        assert len(store) == 1
    assert path.stat().st_size < before / 10


@pytest.mark.parametrize("documents", [[DOCS[0]], [Document("x", "1"), Document("x", "2")]])
def test_duplicates_change_nothing(store, documents):
    with pytest.raises(DuplicateIdError, match=r"'[ax]'.*use update"):
        store.add([Document("new", "text"), *documents])
    assert len(store) == 4
    assert store.ids_of(["a"]).tolist() == [0]


def test_unknown_keys_change_nothing(store):
    for call in (store.remove, store.ids_of):
        with pytest.raises(UnknownIdError, match="'zebra'"):
            call(["a", "zebra"])
        with pytest.raises(DuplicateIdError, match="twice"):
            call(["a", "a"])
        with pytest.raises(DtypeError, match=r"write \[key\]"):
            call("a")
    with pytest.raises(UnknownIdError, match="'zebra'"):
        store.replace([Document("zebra", "striped")])
    with pytest.raises(UnknownIdError, match="99"):
        store.get([0, 99])
    assert len(store) == 4


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (Document("", "text"), ArgumentError, "document key"),
        (Document("a\0b", "text"), ArgumentError, "NUL"),
        (Document(7, "text"), DtypeError, "document key.*int"),
        (Document("x", None), DtypeError, "text of document 'x'.*NoneType"),
        (Document("x", b"text"), DtypeError, "text of document 'x'.*bytes"),
        (Document("x", "\ud800"), ArgumentError, "not valid Unicode"),
        (Document("\ud800", "x"), ArgumentError, "not valid Unicode"),
        (Document("x", "t", {"a": float("nan")}), ArgumentError, "metadata of document 'x'"),
        (Document("x", "t", {"a": object()}), ArgumentError, "metadata of document 'x'.*JSON"),
        (Document("x", "t", {1: 2}), DtypeError, "field names"),
        (Document("x", "t", ["a"]), DtypeError, "mapping"),
    ],
)
def test_bad_documents(store, document, error, message):
    with pytest.raises(error, match=message):
        store.add([Document("fine", "text"), document])
    assert len(store) == 4


def test_from_mapping():
    record = {"doc": 7, "body": "text", "id": "kept", "section": "x"}
    assert Document.from_mapping(record, key_field="doc", text_field="body") == Document(
        "7", "text", {"id": "kept", "section": "x"}
    )
    with pytest.raises(
        ArgumentError, match=r"expected a field 'text', got the fields \['body', 'doc', 'id', 'section'\]"
    ):
        Document.from_mapping(record)
    with pytest.raises(DtypeError, match="document key"):
        Document.from_mapping({"id": True, "text": "x"})


def test_read_only(tmp_path: Path):
    path = tmp_path / "documents.sqlite"
    with DocumentStore.create(path) as store:
        store.add(DOCS)
    with DocumentStore.open(path) as store:
        for call, argument in ((store.add, [Document("x", "y")]), (store.remove, ["a"]), (store.replace, [DOCS[0]])):
            with pytest.raises(ReadOnlyError):
                call(argument)


def test_create_does_not_overwrite(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArgumentError, match="is there already"):
        DocumentStore.create(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_foreign_and_damaged_files(tmp_path: Path):
    with pytest.raises(FormatError, match="missing"):
        DocumentStore.open(tmp_path / "nowhere")
    (tmp_path / "text").write_text("not a database, but long enough to look at" * 20)
    with pytest.raises(FormatError, match="cannot be read"):
        DocumentStore.open(tmp_path / "text")
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE t (x)").connection.close()
    with pytest.raises(FormatError, match="not a file of documents"):
        DocumentStore.open(tmp_path / "other")
    path = tmp_path / "documents.sqlite"
    with DocumentStore.create(path) as store:
        store.add(DOCS * 0 + [Document(str(i), "text " * 50) for i in range(200)])
    data = bytearray(path.read_bytes())
    data[8192:12288] = b"\xff" * 4096
    path.write_bytes(bytes(data))
    with DocumentStore.open(path) as store, pytest.raises(FormatError, match=r"damaged|cannot be read"):
        store.verify()


def test_newer_version(tmp_path: Path):
    path = tmp_path / "documents.sqlite"
    DocumentStore.create(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(VersionError, match="expected version 1, got 2"):
        DocumentStore.open(path)


def test_many_ids_and_threads(tmp_path: Path):
    path = tmp_path / "documents.sqlite"
    with DocumentStore.create(path) as store:
        store.add([Document(str(i), f"text {i}", {"even": i % 2 == 0}) for i in range(40_000)])
    failures = []
    with DocumentStore.open(path) as store:
        assert len(store.get(range(40_000))) == 40_000
        assert len(store.ids_of([str(i) for i in range(40_000)])) == 40_000

        def read():
            for _ in range(20):
                allowed = store.allowed({"even": True})
                failures.extend([1] * (len(allowed) != 20_000))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


JSON_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.text()
)


@settings(max_examples=60, deadline=None)
@given(
    metadata=st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b"]), st.sampled_from([0, 1, 1.0, "1", True, None, "x", ["x", 1], [], ["1", None]])
        ),
        min_size=1,
        max_size=8,
    ),
    wanted=st.sampled_from([0, 1, 1.0, "1", True, False, None, "x", ["x", None]]),
)
def test_where_agrees_with_a_loop(tmp_path_factory, metadata, wanted):
    def same(x, y):
        return type(x) is type(y) and x == y if isinstance(x, str | bool) or isinstance(y, str | bool) else x == y

    def holds(value):
        values = value if isinstance(value, list) else [value]
        return any(same(v, w) for v in values for w in (wanted if isinstance(wanted, list) else [wanted]))

    with DocumentStore.create(tmp_path_factory.mktemp("where") / "d.sqlite") as store:
        store.add([Document(str(i), "", fields) for i, fields in enumerate(metadata)])
        expected = [i for i, fields in enumerate(metadata) if "a" in fields and holds(fields["a"])]
        if "a" in store.fields():
            assert store.allowed({"a": wanted}).tolist() == expected
        else:
            assert expected == []


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(),
    key=st.text(min_size=1).filter(lambda k: "\0" not in k),
    metadata=st.dictionaries(st.text(), JSON_SCALARS),
)
def test_any_text_comes_back(tmp_path_factory, text, key, metadata):
    with DocumentStore.create(tmp_path_factory.mktemp("text") / "d.sqlite") as store:
        store.add([Document(key, text, metadata)])
        assert store.get(store.ids_of([key])) == [Document(key, text, metadata)]
        for name, value in metadata.items():
            assert store.allowed({name: value}).tolist() == [0]
