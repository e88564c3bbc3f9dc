"""Documents that are read, and each way in which a file can be another one."""

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from sparing.errors import FormatError, VersionError
from sparing.runs.documents import parse_document


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")

    side: int


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_name: Literal["tests.document"]
    version: int
    parts: tuple[Part, ...]
    notes: Any = None


GOOD: dict[str, Any] = {"schema_name": "tests.document", "version": 3, "parts": [{"side": 1}, {"side": 2}]}


def parsed(data):
    return parse_document(data, Document, schema="tests.document", version=3, name="a.json", what="a document")


def nested(depth):
    return json.dumps(GOOD)[:-1].encode() + b', "notes": ' + b"[" * depth + b"]" * depth + b"}"


def test_documents_come_back():
    expected = Document(**GOOD)
    assert parsed(json.dumps(GOOD)) == parsed(json.dumps(GOOD, indent=2).encode()) == expected
    assert parsed(nested(100)).notes != []


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"x", b"\xff\xfe", "{}".encode("utf-16"), json.dumps(GOOD)[:-1].encode(), b"[" * 100_000, nested(5000)],
    ids=["empty", "cut", "text", "bytes", "utf-16", "truncated", "deep", "deep inside"],
)
def test_what_is_not_json(data):
    with pytest.raises(FormatError, match=r"^a\.json: not a document: Invalid JSON: .*, got b'") as caught:
        parsed(data)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("data", ["[1]", "null", "3", '"tests.document"'])
def test_what_is_not_an_object(data):
    with pytest.raises(FormatError, match=r"^a\.json: not a document: Input should be an object, got "):
        parsed(data)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"schema_name": "tests.other"}, FormatError, "not a document: expected schema_name 'tests.document', got "),
        ({"schema_name": 3}, FormatError, "not a document: schema_name: .*, got 3$"),
        # The version before the fields: those of another release may be others.
        ({"version": 4, "parts": None, "more": 1}, VersionError, "a document in version 4, expected 3: read it with"),
        ({"version": "3"}, VersionError, "version '3'"),
        ({"version": None}, VersionError, "version None"),
        (
            {"parts": [{"side": 1}, {"side": "x"}], "more": 1},
            FormatError,
            r"parts\.1\.side: .* 'x'; more: .*got 1$",
        ),
        ({"parts": "x" * 500}, FormatError, "parts: .*, got 'x{79}…$"),
    ],
    ids=str,
)
def test_what_is_another_document(changes, error, words):
    with pytest.raises(FormatError, match=rf"^a\.json: .*{words}") as caught:
        parsed(json.dumps({**GOOD, **changes}))
    assert type(caught.value) is error


@pytest.mark.parametrize("missing", GOOD)
def test_what_lacks_a_field(missing):
    with pytest.raises(FormatError, match=f"not a document: {missing}: Field required"):
        parsed(json.dumps({name: value for name, value in GOOD.items() if name != missing}))
