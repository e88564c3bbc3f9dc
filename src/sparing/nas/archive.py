"""The folder of a search: what it searches, and one line for each architecture that was evaluated.

::

    DIR/search.json      schema, version, and the fingerprint: settings and data
    DIR/archive.jsonl    one JSON object an evaluation, each on the disk before the next
    DIR/supernet/        the newest checkpoint, see ``sparing.runs``

Lines come in one order whatever the workers, so that a search that went on after kill -9 has the same bytes as one that
never stopped. The last line may be torn by a kill or a power cut: it is dropped and evaluated again.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparing.errors import ArgumentError, BusyError, ConfigError, FormatError
from sparing.explore import pareto_front
from sparing.nas.genotype import Genotype
from sparing.runs.atomic import fsync_directory, replace_file, try_lock
from sparing.runs.documents import differences, parse_document

__all__ = ["Evaluated", "SearchFolder", "evaluated_front", "read_archive"]

_SCHEMA: Literal["sparing.nas.search"] = "sparing.nas.search"
_VERSION = 1  # 1: first
_HEADER, _ARCHIVE = "search.json", "archive.jsonl"

_Count = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


class Evaluated(BaseModel):
    """One architecture and how it did.

    Attributes:
        number: place in the archive, from 0.
        stage: ``"search"``: judged by the trained supernet, comparable with each other; ``"policy"``: a reward on the
            way, from one batch and weights that were still being trained.
        step: of the supernet's training at that time.
        vector: the architecture as options of the search space.
        genotype: the architecture.
        num_macs: multiply-accumulates of the final network for one image.
        num_parameters: of the final network.
        clean_accuracy: without faults, 0 to 1.
        faulty_accuracies: of each draw of faults.
        reward: (1 − α_r)·clean + α_r·mean under faults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    number: _Count
    stage: Literal["search", "policy"]
    step: _Count
    vector: tuple[_Count, ...]
    genotype: Genotype
    num_macs: _Count
    num_parameters: _Count
    clean_accuracy: _Share
    faulty_accuracies: tuple[_Share, ...]
    reward: _Share

    @property
    def faulty_accuracy(self) -> float:
        """Mean of the draws; without draws the clean accuracy."""
        return (
            sum(self.faulty_accuracies) / len(self.faulty_accuracies)
            if self.faulty_accuracies
            else 1.0 * (self.clean_accuracy)
        )


def evaluated_front(records: Sequence[Evaluated]) -> list[Evaluated]:
    """Those of the search stage that no other dominates in clean and faulty accuracy, MACs and parameters.

    Returns:
        By falling reward, then in the order of the archive; of equal ones the first.
    """
    found = [record for record in records if record.stage == "search"]
    if not found:
        return []
    costs = [[-one.clean_accuracy, -one.faulty_accuracy, one.num_macs, one.num_parameters] for one in found]
    front = [found[index] for index in pareto_front(np.array(costs, np.float64))]
    return sorted(front, key=lambda one: (-one.reward, one.number))


def read_archive(folder: str | os.PathLike[str]) -> list[Evaluated]:
    """Reads what a search has found so far; it may be at work.

    Raises:
        FormatError: not the folder of a search, or a line that was altered.
    """
    path = Path(folder)
    _read_header(path)
    try:
        data = (path / _ARCHIVE).read_bytes()
    except FileNotFoundError as error:
        raise FormatError(f"{path}: {_ARCHIVE} is missing") from error
    return _parse(data, path)[0]


class SearchFolder:
    """An open folder of one search; one process at a time has it.

    Args:
        path: the folder, created if it is not there.
        search: the fingerprint: JSON values that JSON gives back equal.

    Attributes:
        records: what was evaluated so far, in order.

    Raises:
        ConfigError: the folder holds another search; the message names each difference.
        BusyError: another process is at work in it.
        FormatError: a file of it is damaged, or it holds something else.
        OSError: the folder cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike[str], search: dict[str, Any]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise FormatError(f"{self.path}: expected a folder for a search, got a file")
        # Refused before anything is created in a folder that belongs to something else.
        if self.path.is_dir():
            known = self._matches(search)
            names = {entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")}
            if not known and names - {_ARCHIVE}:
                raise FormatError(f"{self.path}: expected an empty folder or a search's, found no {_HEADER} in it")
        self.path.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = (self.path / _ARCHIVE).open("a+b")
        try:
            if not try_lock(self._file.fileno()):
                raise BusyError(f"{self.path}: another search is at work in it; try again when it has finished")
            self._file.seek(0)
            data = self._file.read()
            self.records, kept = _parse(data, self.path)
            if not self._matches(search):
                if self.records:
                    raise FormatError(f"{self.path}: {_HEADER} is missing: whose evaluations these are is not known")
                self._write_header(search)
            if kept < len(data):
                self._cut(kept)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, record: Evaluated) -> None:
        """Writes one evaluation; it is on the disk when this returns.

        Raises:
            ArgumentError: not the next number.
            OSError: the disk is full.
        """
        if record.number != len(self.records):
            raise ArgumentError(f"record: expected number {len(self.records)}, got {record.number}")
        self._file.write(record.model_dump_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def keep_(self, count: int) -> None:
        """Drops what was evaluated after the checkpoint that a search goes on from; it will be again.

        Raises:
            FormatError: there are fewer: lines were lost.
        """
        if count > len(self.records):
            raise FormatError(
                f"{self.path}: {_ARCHIVE} has {len(self.records)} lines, but the checkpoint is from after {count}; "
                "restore it from a copy, or use another folder"
            )
        if count < len(self.records):
            self._file.seek(0)
            lines = self._file.read().splitlines(keepends=True)
            self._cut(sum(map(len, lines[:count])))
            del self.records[count:]

    def _cut(self, length: int) -> None:
        self._file.truncate(length)
        os.fsync(self._file.fileno())

    def _matches(self, search: dict[str, Any]) -> bool:
        """Whether the header says the same; False where there is none yet."""
        if not (self.path / _HEADER).exists():
            return False
        odd = differences(_read_header(self.path).search, json.loads(json.dumps(search, allow_nan=False)))
        if odd:
            raise ConfigError(
                f"config: {self.path} holds another search: {'; '.join(odd)}. "
                "Go on with the old settings, or use another folder for the new ones"
            )
        return True

    def _write_header(self, search: dict[str, Any]) -> None:
        document = {"schema_name": _SCHEMA, "version": _VERSION, "search": search}
        with replace_file(self.path / _HEADER) as file:
            file.write(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")
        fsync_directory(self.path)


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: Literal["sparing.nas.search"]
    version: int
    search: dict[str, Any]


def _read_header(path: Path) -> _Header:
    try:
        data = (path / _HEADER).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FormatError(f"{path}: not the folder of a search: it has no {_HEADER}") from error
    return parse_document(data, _Header, schema=_SCHEMA, version=_VERSION, name=f"{path}/{_HEADER}", what="a search")


def _parse(data: bytes, path: Path) -> tuple[list[Evaluated], int]:
    """The records, and how many bytes they take; a torn last line is left out."""
    lines = data.splitlines(keepends=True)
    records: list[Evaluated] = []
    kept = 0
    for number, line in enumerate(lines):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it ends early")
            record = Evaluated.model_validate_json(line)
            if record.number != number:
                raise ValueError(f"it has number {record.number}")
            records.append(record)
        except (ValidationError, ConfigError, ValueError) as error:
            if number == len(lines) - 1:
                break
            raise FormatError(
                f"{path}: {_ARCHIVE}, line {number + 1} was altered: {line[:80]!r}; restore it from a copy, or cut "
                "the file before that line"
            ) from error
        kept += len(line)
    return records, kept
