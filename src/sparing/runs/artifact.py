"""One file of named NumPy arrays and JSON metadata, with schema, version and checksums.

No pickle; nothing is allocated before the numbers that ask for it were checked against the size of the file. The layout
of the bytes is in ``layout.py``.
"""

import mmap as mmap_module
import os
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError, DtypeError, FormatError, VersionError
from sparing.runs.atomic import replace_file
from sparing.runs.layout import DTYPES, Layout, Section, encode, load_layout

__all__ = ["Artifact", "read_artifact", "verify_artifact", "write_artifact"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """What a file holds.

    Attributes:
        arrays: name to array, in the order written; little-endian; read-only views of the file if it was mapped.
        meta: the JSON metadata.
        version: the version of the schema that the file was written in.
    """

    arrays: dict[str, npt.NDArray[Any]]
    meta: dict[str, Any]
    version: int


def write_artifact(
    path: str | os.PathLike[str],
    *,
    schema: str,
    version: int,
    arrays: Mapping[str, npt.NDArray[Any]],
    meta: Mapping[str, Any],
) -> None:
    """Writes arrays and metadata to one file, replacing it as a whole. The same input gives the same bytes.

    Args:
        path: the file; its folder must exist.
        schema: what the file holds, for example ``"sparing.hybrid.index"``; a reader must name the same.
        version: version of the schema, 0 or more.
        arrays: name to array of any shape, of an integer type of 8 to 64 bits or a float type of 16 to 64. Arrays in
            another byte order or not contiguous are copied once.
        meta: JSON metadata: string keys, and values that JSON gives back equal (lists rather than tuples, no NaN).

    Raises:
        DtypeError: an array of another type.
        ArgumentError: metadata that JSON does not give back equal, or a negative version.
        OSError: the disk is full, or the folder missing. An older file is unchanged and nothing is left behind.

    Example:
        >>> write_artifact("a.sparing", schema="demo", version=1, arrays={"x": np.arange(3)}, meta={})  # doctest: +SKIP
    """
    if version < 0:
        raise ArgumentError(f"version: expected 0 or more, got {version}")
    payload = {name: _storable(name, array) for name, array in arrays.items()}
    described = [(name, a.dtype.name, a.shape, a.nbytes, zlib.crc32(_bytes_of(a))) for name, a in payload.items()]
    head, layout = encode(schema, version, dict(meta), described)
    with replace_file(path) as file:
        file.write(head)
        position = len(head)
        for section, array in zip(layout.sections, payload.values(), strict=True):
            start = layout.start + section.offset
            file.write(bytes(start - position))
            file.write(_bytes_of(array))
            position = start + section.nbytes


def read_artifact(
    path: str | os.PathLike[str],
    *,
    schema: str,
    versions: Container[int],
    mmap: bool = False,
    verify: bool | None = None,
) -> Artifact:
    """Reads a file of :func:`write_artifact`.

    Args:
        path: the file.
        schema: what the file must hold.
        versions: the versions of the schema that the caller reads, a range or a set.
        mmap: map the file instead of reading it: opening costs little, and pages come in when they are touched. The
            file must not be changed in place while it is mapped; replacing it by a rename, as :func:`write_artifact`
            does, is safe.
        verify: check the arrays' checksums and the zero padding, which reads the whole file. By default only if it is
            not mapped. The header's checksum is always checked.

    Returns:
        The arrays (writable copies, or read-only views if mapped), the metadata and the version.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file is truncated, altered, or holds another schema.
        VersionError: the file is in a version that is not among `versions`, or of a newer sparing.
    """
    verify = not mmap if verify is None else verify
    with Path(path).open("rb") as file:
        layout = load_layout(file, path)
        if layout.schema != schema:
            raise FormatError(f"{path}: expected a file of schema {schema!r}, got {layout.schema!r}")
        if layout.version not in versions:
            raise VersionError(
                f"{path}: schema {schema!r} is in version {layout.version}, expected one of {versions}: "
                "read it with the release of sparing that wrote it, or build it anew"
            )
        if verify and mmap:
            _check_payload(file, layout, path)
        if mmap:
            arrays = _map_arrays(file, layout)
        else:
            arrays = {section.name: _read_array(file, layout, section, path) for section in layout.sections}
            if verify:
                _check_padding(file, layout, path)
                for section in layout.sections:
                    _check_crc(zlib.crc32(_bytes_of(arrays[section.name])), section, path)
    return Artifact(arrays=arrays, meta=layout.meta, version=layout.version)


def verify_artifact(path: str | os.PathLike[str]) -> None:
    """Checks every byte of a file against its checksums, in little memory whatever the file's size.

    Args:
        path: a file of :func:`write_artifact`, of any schema and version.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file is truncated or altered; the message names the section.
    """
    with Path(path).open("rb") as file:
        _check_payload(file, load_layout(file, path), path)


def _storable(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array = np.asarray(array)
    if array.dtype.name not in DTYPES:
        raise DtypeError(f"arrays[{name!r}]: expected one of {', '.join(DTYPES)}, got {array.dtype}")
    return np.asarray(array, dtype=DTYPES[array.dtype.name], order="C")


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _map_arrays(file: BinaryIO, layout: Layout) -> dict[str, npt.NDArray[Any]]:
    mapped = mmap_module.mmap(file.fileno(), 0, access=mmap_module.ACCESS_READ)
    if len(mapped) < layout.file_bytes:
        raise FormatError(f"the file shrank to {len(mapped)} bytes while it was opened, expected {layout.file_bytes}")
    arrays = {}
    for section in layout.sections:
        dtype = np.dtype(DTYPES[section.dtype])
        count = section.nbytes // dtype.itemsize
        offset = layout.start + section.offset
        flat = np.frombuffer(mapped, dtype, count, offset) if count else _sealed(np.empty(0, dtype))
        arrays[section.name] = flat.reshape(section.shape)
    return arrays


def _sealed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


def _read_array(file: BinaryIO, layout: Layout, section: Section, path: object) -> npt.NDArray[Any]:
    array = np.empty(section.shape, DTYPES[section.dtype])
    file.seek(layout.start + section.offset)
    view = _bytes_of(array)
    if file.readinto(view) != section.nbytes:  # type: ignore[attr-defined]
        raise _shrunk(section, path)
    return array


def _shrunk(section: Section, path: object) -> FormatError:
    return FormatError(f"{path}: section {section.name!r} ends early; the file was changed while it was read")


def _check_payload(file: BinaryIO, layout: Layout, path: object) -> None:
    _check_padding(file, layout, path)
    for section in layout.sections:
        file.seek(layout.start + section.offset)
        crc, left = 0, section.nbytes
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise FormatError(
                    f"{path}: section {section.name!r} ends early; the file was changed while it was read"
                )
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        _check_crc(crc, section, path)


def _check_crc(crc: int, section: Section, path: object) -> None:
    if crc != section.crc32:
        raise FormatError(
            f"{path}: section {section.name!r} was altered: checksum {crc:08x}, expected {section.crc32:08x}; "
            "restore the file from a copy or build it anew"
        )


def _check_padding(file: BinaryIO, layout: Layout, path: object) -> None:
    position = layout.head_bytes
    for section in layout.sections:
        file.seek(position)
        gap = layout.start + section.offset - position
        if file.read(gap) != bytes(gap):
            raise FormatError(f"{path}: the padding before section {section.name!r} was altered")
        position += gap + section.nbytes
