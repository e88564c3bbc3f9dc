"""Training that goes on after kill -9: tensors and JSON state of one run in a folder that is replaced as a whole.

::

    DIR/gen-000007/checkpoint.json       schema, version, kind, config, step and state
    DIR/gen-000007/tensors.safetensors   the tensors

The rest of the folder, its checksums and its lock are those of ``generations.py``. What an optimizer holds becomes
tensors and JSON in ``optimizers.py``.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparing.errors import ArgumentError, ConfigError, DtypeError, FormatError, MissingExtraError, VersionError
from sparing.runs.documents import differences, json_values
from sparing.runs.generations import current_generation, replace_folder, verify_folder

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "CheckpointFolder"]

_SCHEMA: Literal["sparing.runs.checkpoint"] = "sparing.runs.checkpoint"
_VERSION = 1  # 1: first
_HEADER, _TENSORS, _CURRENT = "checkpoint.json", "tensors.safetensors", "CURRENT"
_READ_ATTEMPTS = 5


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_name: Literal["sparing.runs.checkpoint"]
    version: int
    kind: str
    step: Annotated[int, Field(ge=0)]
    config: dict[str, Any]
    state: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run saved.

    Attributes:
        step: how many steps of the run were done, 0 or more.
        tensors: name to tensor on the CPU, contiguous, dtype and bits as saved. They belong to the caller.
        state: the JSON state.
    """

    step: int
    tensors: "dict[str, Tensor]"
    state: dict[str, Any]


class CheckpointFolder:
    """The folder in which one training run keeps its newest checkpoint.

    A folder belongs to the run that `kind` and `config` describe: another run is refused, so that neither a changed
    setting slips into a continued training nor one run overwrites another's work. An object may be used by one thread
    at a time; one process writes, others may read meanwhile.

    Args:
        path: the folder; the first :meth:`save` creates it.
        kind: what is trained, for example ``"sparing.vision.classifier-training"``.
        config: the settings that decide what the training computes: JSON values that JSON gives back equal (string
            keys, lists rather than tuples, no NaN). Leave out what does not matter, such as progress or folders.

    Raises:
        ArgumentError: an empty `kind`, or a `config` that JSON does not give back equal.

    Example:
        >>> folder = CheckpointFolder("run", kind="demo", config={"seed": 0})  # doctest: +SKIP
        >>> folder.save(10, {"weight": torch.zeros(3)}, {"best": 0.5})  # doctest: +SKIP
        >>> folder.latest().step  # doctest: +SKIP
        10
    """

    def __init__(self, path: str | os.PathLike[str], *, kind: str, config: Mapping[str, Any]) -> None:
        if not kind:
            raise ArgumentError("kind: expected what is trained, got an empty string")
        self._path = Path(path)
        self._kind = kind
        self._config = json_values("config", config)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    def save(self, step: int, tensors: "Mapping[str, Tensor]", state: Mapping[str, Any]) -> None:
        """Replaces the checkpoint as a whole: until the new one is on the disk and in force, the old one stays valid.

        Costs one write and one read of the tensors, and needs room on the disk for both checkpoints.

        Args:
            step: how many steps are done, 0 or more.
            tensors: name to tensor of any shape and device, of a type that safetensors stores. States of generators
                are tensors too.
            state: JSON values that JSON gives back equal; floats come back bit for bit.

        Raises:
            ArgumentError: a negative step, a bad name, or a `state` that JSON does not give back equal.
            DtypeError: a value that is not a tensor, or of a type that safetensors does not store.
            ConfigError: the folder belongs to a run with another config.
            FormatError: the folder belongs to a run of another kind, or is damaged; nothing is overwritten.
            BusyError: another process is writing in the folder.
            MissingExtraError: torch or safetensors is not installed.
            OSError: the disk is full, or the folder not writable. The old checkpoint is unchanged.
        """
        torch, safetensors = _packages()
        if type(step) is not int or step < 0:
            raise ArgumentError(f"step: expected an integer of 0 or more, got {step!r}")
        header = _Header(
            schema_name=_SCHEMA,
            version=_VERSION,
            kind=self._kind,
            step=step,
            config=self._config,
            state=json_values("state", state),
        )
        payload = _storable(torch, tensors)
        self._read_header()  # before anything is made in a folder of something else
        with replace_folder(self._path) as folder:
            self._read_header()  # now that nobody else writes
            text = json.dumps(header.model_dump(), indent=1, allow_nan=False) + "\n"
            (folder / _HEADER).write_text(text, encoding="utf-8")
            _write_tensors(safetensors, payload, folder / _TENSORS)

    def latest(self) -> Checkpoint | None:
        """Reads the newest checkpoint, and checks every byte of it.

        Returns:
            The checkpoint, or None if nothing has been saved in the folder (or there is none yet).

        Raises:
            ConfigError: it was saved by a run with another config; the message lists each differing field.
            FormatError: it is damaged, or of another kind.
            VersionError: it was written in a version that this release does not read.
            MissingExtraError: torch or safetensors is not installed.
        """
        _, safetensors = _packages()
        for attempt in range(1, _READ_ATTEMPTS + 1):
            before = self._in_force()
            try:
                found = self._read_header()
                if found is None:
                    return None
                folder, header = found
                verify_folder(self._path)
                tensors = _read_tensors(safetensors, folder / _TENSORS, self._path)
            except (FormatError, FileNotFoundError) as error:
                # A writer may have put the next checkpoint in force, and removed this one, while it was read.
                if attempt < _READ_ATTEMPTS and before != self._in_force():
                    continue
                if isinstance(error, FileNotFoundError):
                    raise FormatError(f"{self._path}: a file of the checkpoint is missing: {error}") from error
                raise
            return Checkpoint(step=header.step, tensors=tensors, state=header.state)
        raise AssertionError("unreachable")

    def _in_force(self) -> bytes | None:
        try:
            return (self._path / _CURRENT).read_bytes()
        except OSError:
            return None

    def _read_header(self) -> tuple[Path, _Header] | None:
        if self._path.exists() and not self._path.is_dir():
            raise FormatError(f"{self._path}: expected a folder for checkpoints, got a file")
        # Without CURRENT nothing was ever in force: the first writer was killed before it had finished.
        if not (self._path / _CURRENT).exists():
            return None
        folder = current_generation(self._path)
        header = _parse(folder / _HEADER, self._path)
        if header.kind != self._kind:
            raise FormatError(
                f"{self._path}: holds a checkpoint of kind {header.kind!r}, expected {self._kind!r}: use another folder"
            )
        differing = differences(header.config, self._config)
        if differing:
            raise ConfigError(
                f"config: {self._path} holds a checkpoint of a run with other settings: {'; '.join(differing)}. "
                "Go on with the old settings, or use another folder for the new ones"
            )
        return folder, header


def _parse(file: Path, root: Path) -> _Header:
    try:
        document = json.loads(file.read_bytes())
        name, version = document["schema_name"], document["version"]
    except FileNotFoundError as error:
        raise FormatError(f"{root}: not a folder of checkpoints: it has no {file.name}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"{root}: {file.name} does not describe a checkpoint: {error!r}") from error
    if name == _SCHEMA and version != _VERSION:
        raise VersionError(
            f"{root}: the checkpoint is in version {version!r}, expected {_VERSION}: "
            "go on with the release of sparing that wrote it, or start anew in another folder"
        )
    try:
        return _Header.model_validate(document)
    except ValidationError as error:
        raise FormatError(f"{root}: {file.name} does not describe a checkpoint: {error}") from error


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", extra="torch", purpose="a training checkpoint") from error
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError("safetensors", extra="torch", purpose="a training checkpoint") from error
    return torch, safetensors


def _storable(torch: ModuleType, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    payload: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if type(name) is not str or not name or name == "__metadata__":
            raise ArgumentError(f"tensors: expected names that are not empty nor '__metadata__', got {name!r}")
        if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise DtypeError(f"tensors[{name!r}]: expected a dense torch.Tensor, got {type(tensor).__name__}")
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # safetensors refuses tensors that share memory: what is tied in a model is saved under each of its names.
        start = plain.untyped_storage().data_ptr()
        if start in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(start)
        payload[name] = plain
    return payload


def _write_tensors(safetensors: ModuleType, tensors: "dict[str, Tensor]", file: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, file)
    except safetensors.SafetensorError as error:
        raise OSError(f"{file}: the tensors could not be written: {error}") from error
    except (KeyError, ValueError) as error:
        kinds = sorted({str(tensor.dtype) for tensor in tensors.values()})
        raise DtypeError(f"tensors: safetensors does not store one of the types {kinds}: {error!r}") from error


def _read_tensors(safetensors: ModuleType, file: Path, root: Path) -> "dict[str, Tensor]":
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        # RuntimeError: PyTorch's word for a file that went away while it was opened.
        raise FormatError(f"{root}: {file.name} is not a file of tensors: {error}") from error
    return tensors
