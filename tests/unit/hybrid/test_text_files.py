"""Files of documents, questions and judgements: what is read, and errors that name the line."""

import gzip
import io

import pytest

from sparing.errors import DuplicateIdError, FormatError
from sparing.hybrid.records import Document
from sparing.hybrid.text_files import Query, read_documents, read_qrels, read_queries

LINES = '{"id": "a", "text": "red fox", "section": "x"}\n\n{"id": 2, "text": "Füchse"}\r\n'


def test_jsonl(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    expected = [Document("a", "red fox", {"section": "x"}), Document("2", "Füchse")]
    assert list(read_documents(str(path))) == expected
    zipped = tmp_path / "docs.jsonl.gz"
    zipped.write_bytes(gzip.compress(LINES.encode()))
    assert list(read_documents(str(zipped))) == expected


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LINES.encode())))
    assert [document.key for document in read_documents("-")] == ["a", "2"]


def test_fields(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text('{"doc": "a", "body": "red fox", "id": 7}\n')
    assert list(read_documents(str(path), id_field="doc", text_field="body")) == [Document("a", "red fox", {"id": 7})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", r"docs\.jsonl:3: not JSON \(.*\): '\{not json'"),
        (b"[1, 2]", r"docs\.jsonl:3: expected a JSON object, got list"),
        (b'{"text": "x"}', r"docs\.jsonl:3: .*expected a field 'id', got the fields \['text'\]"),
        (b'{"id": "x", "text": null}', r"docs\.jsonl:3: text of document 'x': expected a string, got NoneType"),
        (b'{"id": "", "text": "x"}', r"docs\.jsonl:3: document key"),
        (b'{"id": "x", "text": "y", "n": NaN}', r"docs\.jsonl:3: metadata of document 'x'"),
        (b'{"id": "x", "text": "\\ud800"}', r"docs\.jsonl:3: .*Unicode"),
        (b'{"id": "\xff"}', r"docs\.jsonl:3: expected UTF-8, got .* at byte 8"),
        (b"[" * 100_000, r"docs\.jsonl:3: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'{"id": "a", "text": "b"}\n\n' + line + b"\n")
    with pytest.raises(FormatError, match=message):
        list(read_documents(str(path)))


def test_damaged_gzip(tmp_path):
    data = gzip.compress(LINES.encode() * 1000)
    path = tmp_path / "docs.jsonl.gz"
    for damaged in (data[:-20], data[:30] + b"\xff" * 20 + data[50:], b"plain text"):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"docs\.jsonl\.gz:\d+: "):
            list(read_documents(str(path)))


def test_missing_file(tmp_path):
    for read in (lambda p: list(read_documents(p)), read_queries, read_qrels):
        for name in ("none.jsonl", "none.jsonl.gz"):
            with pytest.raises(FileNotFoundError):
                read(str(tmp_path / name))


def test_queries(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": 1, "text": "red fox?", "more": [1]}\n')
    (tmp_path / "q.tsv").write_text("1\tred fox?\n2\tlast\ttab\n")
    (tmp_path / "q.tsv.gz").write_bytes(gzip.compress(b"1\tred fox?\n"))
    assert read_queries(str(tmp_path / "q.jsonl")) == [Query("1", "red fox?")]
    assert read_queries(str(tmp_path / "q.tsv")) == [Query("1", "red fox?"), Query("2", "last\ttab")]
    assert read_queries(str(tmp_path / "q.tsv.gz")) == [Query("1", "red fox?")]


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("1 red fox\n", FormatError, r"q\.tsv:1: expected an id, a tab"),
        ("1\ta\n\tb\n", FormatError, r"q\.tsv:2: expected an id"),
        ("1\ta\n1\tb\n", DuplicateIdError, r"q\.tsv:2: the id '1' is given twice"),
        ("\n", FormatError, "expected questions, got an empty file"),
    ],
)
def test_bad_queries(tmp_path, content, error, message):
    (tmp_path / "q.tsv").write_text(content)
    with pytest.raises(error, match=message):
        read_queries(str(tmp_path / "q.tsv"))


def test_qrels(tmp_path):
    (tmp_path / "qrels").write_text("1 0 docA 1\n1\tQ0\tdocB\t-1\n\n2 0 docA 3\n")
    assert read_qrels(str(tmp_path / "qrels")) == {"1": {"docA": 1, "docB": -1}, "2": {"docA": 3}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 docA 1\n", r"qrels:1: expected 4 columns .*got 3: '1 docA 1'"),
        ("1 0 docA yes\n", r"qrels:1: expected a whole number as the grade, got 'yes'"),
        ("", "empty file"),
    ],
)
def test_bad_qrels(tmp_path, content, message):
    (tmp_path / "qrels").write_text(content)
    with pytest.raises(FormatError, match=message):
        read_qrels(str(tmp_path / "qrels"))
