"""The documents behind a text index: ids, keys, texts and metadata in one SQLite file, filtered by metadata."""

import contextlib
import errno
import json
import sqlite3
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparing.errors import (
    ArgumentError,
    ClosedError,
    DtypeError,
    DuplicateIdError,
    FormatError,
    ReadOnlyError,
    UnknownIdError,
    VersionError,
)
from sparing.hybrid.records import Document, Where, canonical_value, checked_metadata

__all__ = ["DocumentStore"]

_APPLICATION_ID = 0x53505247
_VERSION = 1
_SCHEMA = """
CREATE TABLE documents (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, text TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE tags (field TEXT NOT NULL, value TEXT NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (field, value, id))
WITHOUT ROWID;
CREATE INDEX tags_by_id ON tags (id);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO counters VALUES ('next_id', 0);
"""


class DocumentStore:
    """Documents in one SQLite file. Integer ids count up from 0 and are never used again.

    Make one with :meth:`create` or :meth:`open`. Changes are written by :meth:`close`; a writer that dies may leave a
    broken file, so write to a folder that is put in force as a whole (:func:`sparing.runs.replace_folder`).

    Thread safety: a lock lets one thread at a time read.

    Example:
        >>> with DocumentStore.create(Path("documents.sqlite")) as store:  # doctest: +SKIP
        ...     ids = store.add([Document("a", "a red fox", {"section": "animals"})])
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, *, writable: bool) -> None:
        self._connection = connection
        self._path = path
        self._writable = writable
        self._lock = threading.RLock()
        # A store that is swapped for a newer one closes when its last reader lets go of it.
        self._close = weakref.finalize(self, connection.close)

    @classmethod
    def create(cls, path: Path) -> Self:
        """Makes an empty store in a new file, open for writing.

        Raises:
            ArgumentError: the file is there already.
        """
        if path.exists():
            raise ArgumentError(f"path: expected a new file, but {str(path)!r} is there already")
        connection = _connect(path, "rwc")
        store = cls(connection, path, writable=True)
        with _sqlite_errors(path):
            store._prepare_for_writing()
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("BEGIN")
        return store

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Self:
        """Opens a store.

        Args:
            path: the file.
            writable: False promises that nobody changes the file while it is open.

        Raises:
            FormatError: the file is missing, damaged, or of another kind.
            VersionError: it was written by a newer release.
        """
        if not path.is_file():
            raise FormatError(f"{path}: the documents are missing; build the index again")
        store = cls(_connect(path, "rw" if writable else "ro&immutable=1"), path, writable=writable)
        try:
            store._check_kind()
            if writable:
                with _sqlite_errors(path):
                    store._prepare_for_writing()
                    store._connection.execute("BEGIN")
        except BaseException:
            store._close()
            raise
        return store

    def close(self) -> None:
        """Writes pending changes and closes the file; closing twice is fine."""
        with self._lock, _sqlite_errors(self._path):
            if self._close.alive and self._connection.in_transaction:
                self._connection.execute("COMMIT")
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM documents")[0][0])

    def add(self, documents: Sequence[Document]) -> NDArray[np.int64]:
        """Adds documents.

        Args:
            documents: with keys that are not there yet.

        Returns:
            Their ids, int64 of shape `(n,)`, counting up.

        Raises:
            DuplicateIdError: a key is given twice or there already. Nothing is added.
            DtypeError: a key or a text that is not a string, or metadata that is not a mapping.
            ArgumentError: an empty key, metadata that is not JSON, or text that is not valid Unicode.
            ReadOnlyError: the store is open for reading only.
        """
        rows = [(document.key, document.text, checked_metadata(document)) for document in documents]
        times = Counter(key for key, _, _ in rows)
        times.update(self._ids_by_key(list(times)).keys())
        duplicates = [key for key, count in times.items() if count > 1]
        if duplicates:
            raise DuplicateIdError(
                f"documents: expected keys given once and not yet in the index, got {_some(duplicates)}; "
                "use update for documents that are there"
            )
        with self._changing() as connection:
            first = int(self._rows("SELECT value FROM counters WHERE name = 'next_id'")[0][0])
            ids = range(first, first + len(rows))
            connection.executemany(
                "INSERT INTO documents VALUES (?, ?, ?, ?)", ((i, *row) for i, row in zip(ids, rows, strict=True))
            )
            self._insert_tags(zip(ids, documents, strict=True))
            connection.execute("UPDATE counters SET value = ? WHERE name = 'next_id'", (ids.stop,))
        return np.arange(ids.start, ids.stop, dtype=np.int64)

    def replace(self, documents: Sequence[Document]) -> NDArray[np.int64]:
        """Gives documents that are there a new text and new metadata; they keep their ids.

        Returns:
            Their ids, int64 of shape `(n,)`, in the order given.

        Raises:
            UnknownIdError: a key is not there. Nothing is changed.
            DuplicateIdError: a key is given twice.
            DtypeError, ArgumentError, ReadOnlyError: as for :meth:`add`.
        """
        rows = [(document.text, checked_metadata(document)) for document in documents]
        ids = self.ids_of([document.key for document in documents])
        with self._changing() as connection:
            connection.executemany("DELETE FROM tags WHERE id = ?", ((i,) for i in ids.tolist()))
            connection.executemany(
                "UPDATE documents SET text = ?, metadata = ? WHERE id = ?",
                ((*row, i) for row, i in zip(rows, ids.tolist(), strict=True)),
            )
            self._insert_tags(zip(ids.tolist(), documents, strict=True))
        return ids

    def remove(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Removes documents.

        Returns:
            The ids that they had, int64 of shape `(n,)`, in the order of the keys.

        Raises:
            UnknownIdError: a key is not there. Nothing is removed.
            DuplicateIdError: a key is given twice.
            ReadOnlyError: the store is open for reading only.
        """
        ids = self.ids_of(keys)
        with self._changing() as connection:
            connection.executemany("DELETE FROM tags WHERE id = ?", ((i,) for i in ids.tolist()))
            connection.executemany("DELETE FROM documents WHERE id = ?", ((i,) for i in ids.tolist()))
        return ids

    def shrink(self) -> None:
        """Gives the space of removed documents back to the disk.

        Raises:
            ReadOnlyError: the store is open for reading only.
        """
        with self._changing() as connection:
            connection.execute("COMMIT")
            connection.execute("VACUUM")
            connection.execute("BEGIN")

    def ids_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Finds documents by their keys.

        Returns:
            int64 of shape `(n,)`, in the order of the keys.

        Raises:
            UnknownIdError: a key is not there.
            DuplicateIdError: a key is given twice.
            DtypeError: not a list of strings.
        """
        if isinstance(keys, str) or not all(isinstance(key, str) for key in keys):
            raise DtypeError("keys: expected a list of strings; write [key] for a single one")
        found = self._ids_by_key(keys)
        unknown = [key for key in keys if key not in found]
        if unknown:
            raise UnknownIdError(f"keys: expected keys of documents in the index, got {_some(unknown)}")
        if len(set(keys)) != len(keys):
            raise DuplicateIdError("keys: expected each key once, got some of them twice")
        return np.array([found[key] for key in keys], np.int64)

    def get(self, ids: Sequence[int] | NDArray[np.int64]) -> list[Document]:
        """Reads documents by their ids.

        Args:
            ids: in any order, repeats allowed.

        Returns:
            One document for each id, in that order.

        Raises:
            UnknownIdError: an id is not there.
        """
        wanted = [int(i) for i in ids]
        rows = self._rows(
            "SELECT id, key, text, metadata FROM documents WHERE id IN (SELECT value FROM json_each(?))",
            json.dumps(wanted),
        )
        with _sqlite_errors(self._path):
            found = {row[0]: Document(row[1], row[2], json.loads(row[3])) for row in rows}
        unknown = [i for i in wanted if i not in found]
        if unknown:
            raise UnknownIdError(f"ids: expected ids of documents in the store, got {_some(unknown)}")
        return [found[i] for i in wanted]

    def ids(self) -> NDArray[np.int64]:
        """Returns all ids, int64 of shape `(n,)`, ascending."""
        return np.array([row[0] for row in self._rows("SELECT id FROM documents ORDER BY id")], np.int64)

    def fields(self) -> list[str]:
        """Returns the names of the metadata fields that can be filtered by, sorted."""
        return [row[0] for row in self._rows("SELECT DISTINCT field FROM tags ORDER BY field")]

    def allowed(self, where: Where) -> NDArray[np.int64]:
        """Finds the documents that a filter allows.

        Args:
            where: field to value, or to a list of alternatives; all fields named must hold. Numbers compare by value
                (1 is 1.0), strings exactly. An empty filter allows all.

        Returns:
            int64 of shape `(n,)`, ascending.

        Raises:
            ArgumentError: a field that no document has, no alternatives, or a value that is not a scalar.
            DtypeError: not a mapping.

        Example:
            >>> store.allowed({"section": ["math", "science"]})  # doctest: +SKIP
            array([3, 17])
        """
        if not isinstance(where, Mapping):
            raise DtypeError(f"where: expected a mapping of field to value, got {type(where).__name__}")
        allowed: NDArray[np.int64] | None = None
        for name, wanted in where.items():
            alternatives = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            if not alternatives:
                raise ArgumentError(f"where[{name!r}]: expected a value or a list of alternatives, got an empty list")
            values = [canonical_value(value) for value in alternatives]
            if None in values:
                raise ArgumentError(
                    f"where[{name!r}]: expected strings, finite numbers, booleans or None, got {wanted!r}"
                )
            rows = self._rows(
                "SELECT DISTINCT id FROM tags WHERE field = ? AND value IN (SELECT value FROM json_each(?)) "
                "ORDER BY id",
                name,
                json.dumps(values),
            )
            if not rows and name not in (known := self.fields()):
                raise ArgumentError(
                    f"where: no document has a field {name!r} to filter by; the fields are {', '.join(known) or 'none'}"
                )
            ids = np.array([row[0] for row in rows], np.int64)
            allowed = ids if allowed is None else np.intersect1d(allowed, ids, assume_unique=True)
        return self.ids() if allowed is None else allowed

    def verify(self) -> None:
        """Checks the file's own consistency.

        Raises:
            FormatError: it is damaged.
        """
        problems = [row[0] for row in self._rows("PRAGMA integrity_check(5)")]
        if problems != ["ok"]:
            raise FormatError(f"{self._path}: the documents are damaged: {'; '.join(map(str, problems))}")

    def _ids_by_key(self, keys: Sequence[str]) -> dict[str, int]:
        rows = self._rows(
            "SELECT key, id FROM documents WHERE key IN (SELECT value FROM json_each(?))", json.dumps(list(keys))
        )
        return {row[0]: row[1] for row in rows}

    def _insert_tags(self, pairs: Iterable[tuple[int, Document]]) -> None:
        tags = (
            (name, value, i)
            for i, document in pairs
            for name, values in document.metadata.items()
            for value in {canonical_value(v) for v in (values if isinstance(values, list | tuple) else [values])}
            - {None}
        )
        self._connection.executemany("INSERT INTO tags VALUES (?, ?, ?)", tags)

    def _rows(self, sql: str, *parameters: str) -> list[tuple[Any, ...]]:
        with self._connected() as connection:
            return connection.execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _sqlite_errors(self._path):
            if not self._close.alive:
                raise ClosedError(f"{self._path}: closed before; open the index again")
            yield self._connection

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        if not self._writable:
            raise ReadOnlyError(f"{self._path}: open for reading only")
        with self._connected() as connection:
            yield connection

    def _prepare_for_writing(self) -> None:
        # The whole folder is put in force or thrown away, so that a journal and flushes here would only cost time.
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")

    def _check_kind(self) -> None:
        kind, version = self._rows("PRAGMA application_id")[0][0], self._rows("PRAGMA user_version")[0][0]
        if kind != _APPLICATION_ID:
            raise FormatError(f"{self._path}: not a file of documents that sparing wrote")
        if version != _VERSION:
            raise VersionError(
                f"{self._path}: expected version {_VERSION}, got {version}; use a newer release of sparing"
            )


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    with _sqlite_errors(path):
        uri = f"{path.resolve().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


@contextlib.contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, json.JSONDecodeError) as error:
        if "disk is full" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        raise FormatError(f"{path}: the documents cannot be read or written: {error}") from error


def _some(values: Sequence[object]) -> str:
    shown = ", ".join(repr(value) for value in values[:5])
    return shown if len(values) <= 5 else f"{shown} and {len(values) - 5} more"
