"""The bytes of an artifact file: prefix, JSON header, aligned sections.

All numbers are little-endian::

    0      prefix, 64 bytes: magic, container version, CRC-32 of the header, header bytes, file bytes, zeros, and the
           prefix's own CRC-32
    64     header, JSON: schema, version, metadata, and each section's name, dtype, shape, offset, bytes and CRC-32
    start  the first multiple of 4096 behind the header: the sections, each at a multiple of 64, in order, gaps zero,
           and nothing behind the last

History of the container version: 1, the first.
"""

import json
import math
import os
import struct
import zlib
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparing.errors import ArgumentError, FormatError, VersionError

__all__ = ["DTYPES", "Layout", "Section", "encode", "load_layout"]

DTYPES = {
    **{f"{kind}{bits}": f"<{kind[0]}{bits // 8}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}

_MAGIC = b"\x93SPARING"
_CONTAINER_VERSION = 1
_PREFIX = struct.Struct("<8sIIQQ28x")
_CRC = struct.Struct("<I")
_PREFIX_BYTES = _PREFIX.size + _CRC.size
_PAGE = 4096
_ALIGN = 64
_MAX_AXES = 32

_Count = Annotated[int, Field(ge=0, lt=1 << 62)]


class Section(BaseModel):
    """One array in the file; `offset` counts bytes from the start of the first section."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    dtype: str
    shape: tuple[_Count, ...]
    offset: _Count
    nbytes: _Count
    crc32: _Count


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_name: str
    version: int
    meta: dict[str, Any]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Layout:
    """A checked header, and where things are: every section lies inside the file, apart from the others."""

    schema: str
    version: int
    meta: dict[str, Any]
    sections: tuple[Section, ...]
    head_bytes: int
    start: int
    file_bytes: int


def encode(
    schema: str, version: int, meta: dict[str, Any], arrays: list[tuple[str, str, tuple[int, ...], int, int]]
) -> tuple[bytes, Layout]:
    """Lays out arrays given as (name, dtype, shape, bytes, CRC-32), and encodes prefix and header.

    Raises:
        ArgumentError: JSON does not give `meta` back equal, or an array has too many axes.
    """
    sections: list[Section] = []
    for name, dtype, shape, nbytes, crc in arrays:
        if len(shape) > _MAX_AXES:
            raise ArgumentError(f"arrays: {name}: expected at most {_MAX_AXES} axes, got {len(shape)}")
        offset = _up(sections[-1].offset + sections[-1].nbytes, _ALIGN) if sections else 0
        sections.append(Section(name=name, dtype=dtype, shape=shape, offset=offset, nbytes=nbytes, crc32=crc))
    document = {
        "schema_name": schema,
        "version": version,
        "meta": meta,
        "sections": [section.model_dump() for section in sections],
    }
    try:
        header = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
        same = _Header.model_validate_json(header).meta == meta
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"meta: expected values that JSON can hold: {error}") from error
    if not same:
        raise ArgumentError("meta: JSON does not give it back equal; use string keys, and lists rather than tuples")
    layout = _layout(_Header(schema_name=schema, version=version, meta=meta, sections=tuple(sections)), len(header))
    prefix = _PREFIX.pack(_MAGIC, _CONTAINER_VERSION, zlib.crc32(header), len(header), layout.file_bytes)
    return prefix + _CRC.pack(zlib.crc32(prefix)) + header, layout


def load_layout(file: BinaryIO, path: object) -> Layout:
    """Reads and checks prefix and header of an open file.

    Raises:
        FormatError: they are not what :func:`encode` writes, or do not fit the size of the file.
        VersionError: the container is of a newer sparing.
    """
    size = os.fstat(file.fileno()).st_size
    header_bytes, header_crc = _load_prefix(file, size, path)
    raw = file.read(header_bytes)
    if zlib.crc32(raw) != header_crc:
        raise FormatError(f"{path}: the header was altered: its checksum does not match")
    try:
        header = _Header.model_validate_json(raw)
    except ValidationError as error:
        raise FormatError(f"{path}: the header does not describe an artifact: {error}") from error
    names = [section.name for section in header.sections]
    if len(set(names)) != len(names):
        raise FormatError(f"{path}: two sections have one name among {names}")
    end = 0
    for section in header.sections:
        _check_section(section, _up(end, _ALIGN), path)
        end = section.offset + section.nbytes
    layout = _layout(header, header_bytes)
    if layout.file_bytes != size:
        raise FormatError(f"{path}: the sections need a file of {layout.file_bytes} bytes, got {size}")
    return layout


def _load_prefix(file: BinaryIO, size: int, path: object) -> tuple[int, int]:
    prefix = file.read(_PREFIX_BYTES)
    if not prefix.startswith(_MAGIC):
        raise FormatError(f"{path}: not an artifact of sparing: it starts with {prefix[:8]!r}, expected {_MAGIC!r}")
    if len(prefix) < _PREFIX_BYTES:
        raise FormatError(f"{path}: truncated: {size} bytes, expected at least {_PREFIX_BYTES}")
    _, version, header_crc, header_bytes, file_bytes = _PREFIX.unpack_from(prefix)
    if zlib.crc32(prefix[: _PREFIX.size]) != _CRC.unpack_from(prefix, _PREFIX.size)[0]:
        raise FormatError(f"{path}: the first {_PREFIX_BYTES} bytes were altered: their checksum does not match")
    if version != _CONTAINER_VERSION:
        raise VersionError(f"{path}: container version {version}, expected {_CONTAINER_VERSION}: use a newer sparing")
    if size != file_bytes:
        raise FormatError(f"{path}: truncated or extended: {size} bytes, expected {file_bytes}")
    if header_bytes > size - _PREFIX_BYTES:
        raise FormatError(f"{path}: a header of {header_bytes} bytes does not fit a file of {size}")
    return header_bytes, header_crc


def _check_section(section: Section, expected_offset: int, path: object) -> None:
    problem = None
    if section.dtype not in DTYPES:
        problem = f"unknown dtype {section.dtype!r}"
    elif len(section.shape) > _MAX_AXES:
        problem = f"{len(section.shape)} axes, expected at most {_MAX_AXES}"
    elif math.prod(length or 1 for length in section.shape) >= 1 << 62:
        # An empty array needs no bytes, yet NumPy refuses axes whose product overflows.
        problem = f"shape {section.shape} is too large"
    elif section.nbytes != math.prod(section.shape) * int(DTYPES[section.dtype][2:]):
        problem = f"{section.nbytes} bytes do not fit shape {section.shape} of {section.dtype}"
    elif section.offset != expected_offset:
        problem = f"it starts at {section.offset}, expected {expected_offset}"
    if problem:
        raise FormatError(f"{path}: section {section.name!r}: {problem}")


def _layout(header: _Header, header_bytes: int) -> Layout:
    head_bytes = _PREFIX_BYTES + header_bytes
    start = _up(head_bytes, _PAGE)
    last = header.sections[-1] if header.sections else None
    return Layout(
        schema=header.schema_name,
        version=header.version,
        meta=header.meta,
        sections=header.sections,
        head_bytes=head_bytes,
        start=start,
        file_bytes=start + last.offset + last.nbytes if last else head_bytes,
    )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
