"""Documents, questions and judgements from files: JSONL, TSV and TREC, also gzipped or from standard input."""

import contextlib
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparing.errors import ArgumentError, DuplicateIdError, FormatError, SparingError
from sparing.hybrid.records import Document

__all__ = ["Query", "read_documents", "read_qrels", "read_queries"]

_QREL_COLUMNS = 4
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Query:
    """One question of a test collection.

    Attributes:
        key: its name in the judgements.
        text: the question.
    """

    key: str
    text: str


def read_documents(path: str, *, id_field: str = "id", text_field: str = "text") -> Iterator[Document]:
    """Reads documents from JSONL, one object a line.

    Args:
        path: a file, gzipped if its name ends in ``.gz``; ``"-"`` reads standard input.
        id_field: the field with the key, a string or an integer.
        text_field: the field with the text; all other fields become metadata.

    Yields:
        The documents, in the order of the file; empty lines are skipped.

    Raises:
        FormatError: a line that is not a document; the message names file and line.
        OSError: the file cannot be read.
    """
    for where, line in _lines(path):
        with _at(where):
            yield Document.from_mapping(_json_object(line), key_field=id_field, text_field=text_field)


def read_queries(path: str, *, id_field: str = "id", text_field: str = "text") -> list[Query]:
    """Reads questions from JSONL or TSV.

    Args:
        path: ``*.tsv`` or ``*.tsv.gz`` with id and text in two columns, else JSONL; ``"-"`` reads JSONL from standard
            input.
        id_field: the field with the id.
        text_field: the field with the question.

    Returns:
        The questions, at least one, with distinct ids.

    Raises:
        FormatError: a line that is not a question, or no line; the message names file and line.
        DuplicateIdError: an id is given twice.
        OSError: the file cannot be read.
    """
    tsv = path.removesuffix(".gz").endswith(".tsv")
    queries: dict[str, Query] = {}
    for where, line in _lines(path):
        with _at(where):
            query = _tsv_query(line) if tsv else _json_query(line, id_field, text_field)
        if query.key in queries:
            raise DuplicateIdError(f"{where}: the id {query.key!r} is given twice")
        queries[query.key] = query
    if not queries:
        raise FormatError(f"{path}: expected questions, got an empty file")
    return list(queries.values())


def read_qrels(path: str) -> dict[str, dict[str, int]]:
    """Reads relevance judgements in TREC's format: question, ignored, document, grade, separated by white space.

    Args:
        path: a file, gzipped if its name ends in ``.gz``; ``"-"`` reads standard input.

    Returns:
        question id -> document key -> grade; a grade above 0 is relevant.

    Raises:
        FormatError: a line of another form, or no line; the message names file and line.
        OSError: the file cannot be read.
    """
    qrels: dict[str, dict[str, int]] = {}
    for where, line in _lines(path):
        columns = line.split()
        with _at(where):
            if len(columns) != _QREL_COLUMNS:
                raise FormatError(
                    f"expected 4 columns (question, 0, document, grade), got {len(columns)}: {_short(line)}"
                )
            query, _, document, grade = columns
            try:
                qrels.setdefault(query, {})[document] = int(grade)
            except ValueError:
                raise FormatError(f"expected a whole number as the grade, got {grade!r}") from None
    if not qrels:
        raise FormatError(f"{path}: expected relevance judgements, got an empty file")
    return qrels


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """Yields ``file:line`` and the line for each line that is not blank."""
    name = "standard input" if path == "-" else path
    with contextlib.ExitStack() as stack:
        if path == "-":
            raw: Any = sys.stdin.buffer
        elif path.endswith(".gz"):
            raw = stack.enter_context(gzip.open(path, "rb"))
        else:
            raw = stack.enter_context(Path(path).open("rb"))
        number = 0
        try:
            for number, line in enumerate(raw, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield f"{name}:{number}", text.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise FormatError(f"{name}:{number}: expected UTF-8, got {error.reason} at byte {error.start}") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FormatError(f"{name}:{number + 1}: the gzip data are damaged or cut off ({error})") from error


@contextlib.contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except SparingError as error:
        raise FormatError(f"{where}: {error}") from error


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise FormatError(f"not JSON ({reason}): {_short(line)}") from error
    if not isinstance(record, dict):
        raise FormatError(f"expected a JSON object, got {type(record).__name__}: {_short(line)}")
    return record


def _json_query(line: str, id_field: str, text_field: str) -> Query:
    document = Document.from_mapping(_json_object(line), key_field=id_field, text_field=text_field)
    return Query(document.key, document.text)


def _tsv_query(line: str) -> Query:
    key, tab, text = line.partition("\t")
    if not tab or not key.strip():
        raise ArgumentError(f"expected an id, a tab and a question, got {_short(line)}")
    return Query(key.strip(), text)


def _short(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")
