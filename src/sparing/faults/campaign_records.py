"""The folder of a campaign: what it is, and one line for each draw, written as soon as it is known.

::

    DIR/campaign.json    schema, version, and the fingerprint: faults, settings, model, data
    DIR/clean.sparing    predictions without faults
    DIR/draws.jsonl      one JSON object a draw, in the campaign's own order; each on the disk before the next
    DIR/result.json      the result, once it is complete

Lines come in one order whatever the workers, so a resumed campaign has the same bytes as one that never stopped. The
last line may be torn by a kill or a power cut: it is dropped and drawn again.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparing.errors import BusyError, ConfigError, FormatError
from sparing.runs.artifact import read_artifact, write_artifact
from sparing.runs.atomic import fsync_directory, replace_file, try_lock
from sparing.runs.documents import differences, parse_document

__all__ = ["CampaignFolder", "DrawRecord"]

_SCHEMA: Literal["sparing.faults.campaign-folder"] = "sparing.faults.campaign-folder"
_VERSION = 1  # 1: first
_HEADER, _CLEAN, _DRAWS = "campaign.json", "clean.sparing", "draws.jsonl"
_CLEAN_SCHEMA = "sparing.faults.predictions"

_Count = Annotated[int, Field(ge=0)]


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: Literal["sparing.faults.campaign-folder"]
    version: int
    campaign: dict[str, Any]


class DrawRecord(BaseModel):
    """One draw at one point.

    Attributes:
        point: which rate, site or bit, as its label.
        draw: counted from 0.
        correct: images classified rightly.
        changed: images whose prediction is not that of the network without faults.
        hits: positions that were hit, over all batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    point: str
    draw: _Count
    correct: _Count
    changed: _Count
    hits: _Count


class CampaignFolder:
    """An open folder of one campaign; one process at a time has it.

    Args:
        path: the folder, created if it is not there.
        campaign: the fingerprint: JSON values that JSON gives back equal.

    Attributes:
        records: what was drawn before, in order.

    Raises:
        ConfigError: the folder holds another campaign; the message names each difference.
        BusyError: another process is at work in it.
        FormatError: a file of it is damaged, or it holds something else.
        OSError: the folder cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike[str], campaign: dict[str, Any]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise FormatError(f"{self.path}: expected a folder for a campaign, got a file")
        self.path.mkdir(parents=True, exist_ok=True)
        # Refused before anything is created in a folder that belongs to something else.
        known = self._matches(campaign)
        if not known and any(entry.name != _DRAWS and entry.name[0] != "." for entry in self.path.iterdir()):
            raise FormatError(f"{self.path}: expected an empty folder or a campaign's, found no {_HEADER} in it")
        self._file: BinaryIO = (self.path / _DRAWS).open("a+b")
        try:
            if not try_lock(self._file.fileno()):
                raise BusyError(f"{self.path}: another campaign is at work in it; try again when it has finished")
            self.records = self._read_records()
            if not self._matches(campaign):
                if self.records:
                    raise FormatError(f"{self.path}: {_HEADER} is missing: whose draws these are is not known")
                self._write_header(campaign)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, record: DrawRecord) -> None:
        """Writes one draw; it is on the disk when this returns."""
        self._file.write(record.model_dump_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def clean_predictions(self) -> npt.NDArray[np.int64] | None:
        """Gives what :meth:`keep_clean_predictions` kept, if it did."""
        file = self.path / _CLEAN
        if not file.exists():
            return None
        found: npt.NDArray[np.int64] = read_artifact(file, schema=_CLEAN_SCHEMA, versions={1}).arrays["predictions"]
        return found

    def keep_clean_predictions(self, predictions: npt.NDArray[np.int64]) -> None:
        """Keeps the predictions without faults, so that all draws are held against the same ones."""
        write_artifact(
            self.path / _CLEAN, schema=_CLEAN_SCHEMA, version=1, arrays={"predictions": predictions}, meta={}
        )

    def _matches(self, campaign: dict[str, Any]) -> bool:
        """Whether the header says the same; False where there is none yet."""
        try:
            data = (self.path / _HEADER).read_bytes()
        except FileNotFoundError:
            return False
        header = parse_document(
            data, _Header, schema=_SCHEMA, version=_VERSION, name=f"{self.path}/{_HEADER}", what="a campaign"
        )
        odd = differences(header.campaign, json.loads(json.dumps(campaign, allow_nan=False)))
        if odd:
            raise ConfigError(
                f"folder: {self.path} holds another campaign: {'; '.join(odd)}. "
                "Go on with the old settings, or use another folder for the new ones"
            )
        return True

    def _write_header(self, campaign: dict[str, Any]) -> None:
        document = {"schema_name": _SCHEMA, "version": _VERSION, "campaign": campaign}
        with replace_file(self.path / _HEADER) as file:
            file.write(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")
        fsync_directory(self.path)

    def _read_records(self) -> list[DrawRecord]:
        self._file.seek(0)
        data = self._file.read()
        lines = data.splitlines(keepends=True)
        records: list[DrawRecord] = []
        kept = 0
        for number, line in enumerate(lines, 1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it ends early")
                records.append(DrawRecord.model_validate_json(line))
            except (ValidationError, ValueError) as error:
                if number == len(lines):
                    break
                raise FormatError(
                    f"{self.path}: {_DRAWS}, line {number} was altered: {line[:80]!r}; restore it from a copy, or cut "
                    "the file before that line"
                ) from error
            kept += len(line)
        if kept < len(data):
            self._file.truncate(kept)
            os.fsync(self._file.fileno())
        return records
