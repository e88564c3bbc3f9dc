"""A folder that is replaced as a whole: a reader opens the old files or the new ones, never a mix.

::

    DIR/CURRENT              one line: the name of the generation in force and the SHA-256 of its manifest
    DIR/LOCK                 held by the one writer
    DIR/gen-000007/          the files
    DIR/gen-000007/manifest.json   each file's size and SHA-256
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparing.errors import ArgumentError, BusyError, FormatError
from sparing.runs.atomic import fsync_directory, replace_file, try_lock

__all__ = ["current_generation", "replace_folder", "verify_folder"]

_CURRENT, _LOCK, _MANIFEST = "CURRENT", "LOCK", "manifest.json"
_GENERATION = re.compile(r"gen-(\d{6,12})")
_CURRENT_LINE = re.compile(rb"(gen-\d{6,12}) ([0-9a-f]{64})\n")
_CHUNK = 1 << 20
_READ_ATTEMPTS = 20

_T = TypeVar("_T")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    files: dict[str, _File]


@contextlib.contextmanager
def replace_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    r"""Gives an empty folder to fill, which becomes the current generation of `path` when the block ends well.

    The files are hashed and flushed to the disk, and then one rename puts the new generation in force. If the block
    raises, or the process is killed at any moment, the previous generation is still the current one; what a killed
    writer left is removed by the next writer. Old generations are removed at the end: a reader that has files of one
    open or mapped keeps them, and one that was about to open them asks :func:`current_generation` again.

    Args:
        path: the folder, created if it is not there.

    Yields:
        The folder to write into; sub-folders are allowed, links and a file ``manifest.json`` are not. Close all files
        before the block ends.

    Raises:
        BusyError: another writer is at work in `path`.
        ArgumentError: the block left something other than files and folders, or took a reserved name.
        OSError: the disk is full, or the folder not writable. The previous generation stays in force.

    Example:
        >>> with replace_folder("catalogue") as folder:  # doctest: +SKIP
        ...     (folder / "documents.txt").write_text("one\n")
        >>> (current_generation("catalogue") / "documents.txt").read_text()  # doctest: +SKIP
        'one\n'
    """
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    with _writer_lock(root):
        current = _name_in_force(root)
        # A damaged CURRENT must not keep a writer from replacing all, nor cost the files before the new ones are safe.
        if current is not None or not (root / _CURRENT).exists():
            _remove_generations(root, keep=current)
        new = root / f"gen-{_last_number(root) + 1:06d}"
        new.mkdir()
        try:
            yield new
            digest = _seal(new)
            fsync_directory(root)
            with replace_file(root / _CURRENT) as file:
                file.write(f"{new.name} {digest}\n".encode("ascii"))
        except BaseException:
            # The error may have come after the switch: then the new generation is the one in force.
            if _name_in_force(root) != new.name:
                shutil.rmtree(new, ignore_errors=True)
            raise
        _remove_generations(root, keep=new.name)


def current_generation(path: str | os.PathLike[str]) -> Path:
    """Finds the generation in force, and checks its manifest and the sizes of its files.

    Args:
        path: a folder that :func:`replace_folder` wrote.

    Returns:
        The folder with the files.

    Raises:
        FileNotFoundError: `path` is not there.
        FormatError: `path` is not such a folder, or was damaged: a file is missing or has another size, or the manifest
            was altered. Altered content of unaltered size is found by :func:`verify_folder`.
    """
    return _while_it_is_in_force(Path(path), _checked_sizes)


def _checked_sizes(path: Path) -> Path:
    generation, manifest = _open_current(path)
    for name, expected in manifest.files.items():
        actual = _size(generation / name)
        if actual != expected.bytes:
            got = "no such file" if actual is None else f"{actual} bytes"
            raise FormatError(f"{path}: {generation.name}/{name}: expected {expected.bytes} bytes, got {got}")
    return generation


def _size(file: Path) -> int | None:
    """Bytes of a regular file; None for anything else, and for one that is gone, if only since a moment ago."""
    try:
        found = file.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def verify_folder(path: str | os.PathLike[str]) -> None:
    """Checks every byte of the current generation against its manifest.

    Args:
        path: a folder that :func:`replace_folder` wrote.

    Raises:
        FileNotFoundError: `path` is not there.
        FormatError: a file is missing, altered, or not in the manifest; the message names it.
    """
    _while_it_is_in_force(Path(path), _checked_bytes)


def _while_it_is_in_force(root: Path, check: Callable[[Path], _T]) -> _T:
    """Checks again where a writer has put the next generation in force meanwhile, and removed this one."""
    for _ in range(_READ_ATTEMPTS - 1):
        before = _current_line(root)
        try:
            return check(root)
        except (FormatError, FileNotFoundError):
            if before == _current_line(root):
                raise
    return check(root)


def _checked_bytes(path: Path) -> None:
    generation, manifest = _open_current(path)
    extra = {_relative(file, generation) for file in _files(generation)} - {*manifest.files, _MANIFEST}
    if extra:
        raise FormatError(f"{path}: {generation.name} has files that are not in its manifest: {sorted(extra)[:5]}")
    _checked_sizes(path)
    for name, expected in manifest.files.items():
        if _sha256(generation / name) != expected.sha256:
            raise FormatError(f"{path}: {generation.name}/{name} was altered: its SHA-256 does not match the manifest")


@contextlib.contextmanager
def _writer_lock(root: Path) -> Iterator[None]:
    with (root / _LOCK).open("ab") as lock:
        if not try_lock(lock.fileno()):
            raise BusyError(f"{root}: another writer is at work; try again when it has finished")
        yield


def _open_current(root: Path) -> tuple[Path, _Manifest]:
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such folder")
    try:
        line = (root / _CURRENT).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FormatError(f"{root}: nothing was saved here: there is no file {_CURRENT}") from error
    match = _CURRENT_LINE.fullmatch(line)
    if match is None:
        raise FormatError(f"{root}: {_CURRENT} was altered: {line[:100]!r}")
    generation = root / match[1].decode("ascii")
    try:
        raw = (generation / _MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FormatError(f"{root}: {generation.name}/{_MANIFEST} is missing") from error
    if hashlib.sha256(raw).hexdigest() != match[2].decode("ascii"):
        raise FormatError(f"{root}: {generation.name}/{_MANIFEST} or {_CURRENT} was altered: SHA-256 does not match")
    try:
        manifest = _Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise FormatError(f"{root}: {generation.name}/{_MANIFEST} is not a manifest: {error}") from error
    for name in manifest.files:
        # Nothing outside the folder is opened, whatever a manifest from elsewhere says.
        if not name or "\\" in name or ":" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise FormatError(f"{root}: {generation.name}/{_MANIFEST} names a file outside the folder: {name!r}")
    return generation, manifest


def _current_line(root: Path) -> bytes:
    try:
        return (root / _CURRENT).read_bytes()
    except OSError:
        return b""


def _name_in_force(root: Path) -> str | None:
    match = _CURRENT_LINE.fullmatch(_current_line(root))
    return None if match is None else match[1].decode("ascii")


def _last_number(root: Path) -> int:
    return max((int(match[1]) for entry in root.iterdir() if (match := _GENERATION.fullmatch(entry.name))), default=0)


def _remove_generations(root: Path, *, keep: str | None) -> None:
    for entry in root.iterdir():
        if _GENERATION.fullmatch(entry.name) and entry.name != keep:
            # Where open files cannot be removed, the next writer tries again.
            shutil.rmtree(entry, ignore_errors=True)


def _seal(generation: Path) -> str:
    files = {}
    folders = {generation}
    for file in _files(generation):
        name = _relative(file, generation)
        if file.is_symlink() or not file.is_file():
            raise ArgumentError(f"{generation}: expected files and folders only, got a link or special file: {name!r}")
        if name == _MANIFEST or "\\" in name or ":" in name:
            raise ArgumentError(f"{generation}: the file name {name!r} is reserved or not portable; use another")
        files[name] = _File(bytes=file.stat().st_size, sha256=_sha256(file, flush=True))
        folders.update(parent for parent in file.parents if parent.is_relative_to(generation))
    manifest = _Manifest(files=dict(sorted(files.items())))
    raw = (json.dumps(manifest.model_dump(), indent=1) + "\n").encode("ascii")
    with replace_file(generation / _MANIFEST) as out:
        out.write(raw)
    for folder in folders:
        fsync_directory(folder)
    return hashlib.sha256(raw).hexdigest()


def _files(generation: Path) -> Iterator[Path]:
    # Links to folders count as files here: they are to be refused, not followed.
    return (entry for entry in sorted(generation.rglob("*")) if entry.is_symlink() or not entry.is_dir())


def _relative(file: Path, generation: Path) -> str:
    return file.relative_to(generation).as_posix()


def _sha256(file: Path, *, flush: bool = False) -> str:
    digest = hashlib.sha256()
    # Windows flushes only what is open for writing.
    with file.open("r+b" if flush else "rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
