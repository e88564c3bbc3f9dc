"""A folder that records long work line by line: what the work is, and each result as soon as it is known.

::

    DIR/HEADER.json     schema, version, and the fingerprint: what the work is
    DIR/LINES.jsonl     one JSON object a record, each on the disk before the next

The last line may be torn by a kill or a power cut: it is dropped, and its work done again.
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sparing.errors import BusyError, ConfigError, FormatError
from sparing.runs.atomic import fsync_directory, replace_file, try_lock
from sparing.runs.documents import differences, parse_document

__all__ = ["Journal", "JournalKind", "read_journal"]

_Record = TypeVar("_Record", bound=BaseModel)


@dataclasses.dataclass(frozen=True)
class JournalKind(Generic[_Record]):
    """What a journal is of.

    Attributes:
        what: the work, for messages: ``"campaign"``.
        schema: of the header.
        version: of the header.
        header: name of the file that says what the work is.
        lines: name of the file of records.
        record: a line's fields.
        records: what lines are, for messages: ``"draws"``.
        argument: whose settings may differ, for messages: ``"config"``.
    """

    what: str
    schema: str
    version: int
    header: str
    lines: str
    record: type[_Record]
    records: str
    argument: str


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: str
    version: int
    identity: dict[str, Any]


class Journal(Generic[_Record]):
    """An open journal; one process at a time has it.

    Args:
        path: the folder, created if it is not there.
        identity: the fingerprint: JSON values that JSON gives back equal.
        kind: what the journal is of.

    Attributes:
        path: the folder.
        records: what was recorded so far, in order.

    Raises:
        BusyError: another process is at work in it.
        ConfigError: the folder holds other work; the message names each difference.
        FormatError: a file of it is damaged, or it holds something else; nothing was changed.
        OSError: the folder cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike[str], identity: dict[str, Any], kind: JournalKind[_Record]) -> None:
        self.path, self._kind = Path(path), kind
        if self.path.exists() and not self.path.is_dir():
            raise FormatError(f"{self.path}: expected a folder for a {kind.what}, got a file")
        self.path.mkdir(parents=True, exist_ok=True)
        # Refused before anything is created in a folder that belongs to something else.
        known = self._matches(identity)
        if known and not (self.path / kind.lines).exists():
            raise FormatError(
                f"{self.path}: {kind.lines} is missing; restore it from a copy, or remove {kind.header} to start anew"
            )
        odd = any(entry.name not in (kind.lines, kind.header) and entry.name[0] != "." for entry in self.path.iterdir())
        if odd and not known:
            raise FormatError(f"{self.path}: expected an empty folder or a {kind.what}'s, found no {kind.header} in it")
        # Without a buffer, which would write what failed once more when it is closed.
        self._file: BinaryIO = (self.path / kind.lines).open("a+b", buffering=0)
        try:
            if not try_lock(self._file.fileno()):
                raise BusyError(f"{self.path}: another {kind.what} is at work in it; try again when it has finished")
            data = self._read()
            self.records, kept = _parse(data, self.path, kind)
            if not self._matches(identity):
                if self.records:
                    raise FormatError(
                        f"{self.path}: {kind.header} is missing: whose {kind.records} these are is not known"
                    )
                self._write_header(identity)
            if kept < len(data):
                self._cut(kept)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others have it."""
        self._file.close()

    def append(self, record: _Record) -> None:
        """Writes one record; it is on the disk when this returns.

        Raises:
            OSError: the disk is full; the file is as it was.
        """
        line = memoryview(record.model_dump_json().encode() + b"\n")
        length = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                self._cut(length)
            raise
        self.records.append(record)

    def keep_(self, count: int) -> None:
        """Drops the records behind the first `count`: they are newer than the checkpoint that the work goes on from.

        Raises:
            FormatError: there are fewer: lines were lost.
        """
        if count > len(self.records):
            raise FormatError(
                f"{self.path}: {self._kind.lines} has {len(self.records)} lines, but the checkpoint is from after "
                f"{count}; restore it from a copy, or use another folder"
            )
        if count < len(self.records):
            self._cut(sum(map(len, self._read().splitlines(keepends=True)[:count])))
            del self.records[count:]

    def _read(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def _cut(self, length: int) -> None:
        self._file.truncate(length)
        os.fsync(self._file.fileno())

    def _matches(self, identity: dict[str, Any]) -> bool:
        """Whether the header says the same; False where there is none yet."""
        header = _read_header(self.path, self._kind)
        if header is None:
            return False
        odd = differences(header.identity, json.loads(json.dumps(identity, allow_nan=False)))
        if odd:
            raise ConfigError(
                f"{self._kind.argument}: {self.path} holds another {self._kind.what}: {'; '.join(odd)}. "
                "Go on with the old settings, or use another folder for the new ones"
            )
        return True

    def _write_header(self, identity: dict[str, Any]) -> None:
        document = {"schema_name": self._kind.schema, "version": self._kind.version, "identity": identity}
        with replace_file(self.path / self._kind.header) as file:
            file.write(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")
        fsync_directory(self.path)


def read_journal(folder: str | os.PathLike[str], kind: JournalKind[_Record]) -> list[_Record]:
    """Reads what was recorded so far; the work may be going on.

    Raises:
        FormatError: not the folder of such work, or a line that was altered.
    """
    path = Path(folder)
    if _read_header(path, kind) is None:
        raise FormatError(f"{path}: not the folder of a {kind.what}: it has no {kind.header}")
    try:
        data = (path / kind.lines).read_bytes()
    except FileNotFoundError as error:
        raise FormatError(f"{path}: {kind.lines} is missing") from error
    return _parse(data, path, kind)[0]


def _read_header(path: Path, kind: JournalKind[_Record]) -> _Header | None:
    try:
        data = (path / kind.header).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    name, what = f"{path}/{kind.header}", f"a {kind.what}"
    return parse_document(data, _Header, schema=kind.schema, version=kind.version, name=name, what=what)


def _parse(data: bytes, path: Path, kind: JournalKind[_Record]) -> tuple[list[_Record], int]:
    """The records, and how many bytes they take; a torn last line is left out."""
    lines = data.splitlines(keepends=True)
    records: list[_Record] = []
    kept = 0
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it ends early")
            records.append(kind.record.model_validate_json(line))
        except (ValidationError, ValueError) as error:
            if number == len(lines):
                break
            raise FormatError(
                f"{path}: {kind.lines}, line {number} was altered: {line[:80]!r}; restore it from a copy, or cut the "
                "file before that line"
            ) from error
        kept += len(line)
    return records, kept
