"""Mappings on disk: one file of packed cells, steps and tables, with schema, version and checksums."""

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparing.errors import FormatError, SparingError
from sparing.pim.crossbar import CrossbarSize, num_planes
from sparing.pim.design import LayerDesign
from sparing.pim.layers import LayerShape
from sparing.pim.mapping import LayerMapping, NetworkMapping
from sparing.pim.tables import RoundTables, round_tables
from sparing.runs.artifact import read_artifact, write_artifact

__all__ = ["load_mapping", "save_mapping"]

_SCHEMA = "sparing.pim.mapping"
_VERSION = 1
_PARTS = ("cells", "steps", "ifat", "ifrt", "ofat")

_Count = Annotated[int, Field(ge=1, lt=1 << 24)]
_Pair = tuple[_Count, _Count]
_Start = Annotated[int, Field(ge=0, lt=1 << 24)]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["conv", "linear"]
    in_channels: _Count
    out_channels: _Count
    kernel: _Pair
    stride: _Pair
    padding: tuple[_Start, _Start]
    groups: _Count
    in_size: _Pair
    out_size: _Pair
    num_calls: _Count
    inputs: tuple[str, ...]
    dilation: _Pair


class _Layer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: _Shape
    design: LayerDesign
    crossbar: _Pair
    activation_bits: int
    input_step: float


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: list[_Layer]


def save_mapping(mapping: NetworkMapping, path: str | os.PathLike[str]) -> None:
    """Writes a mapping, replacing the file as a whole; the same mapping gives the same bytes.

    Args:
        mapping: of a network; cells take a bit each.
        path: the file; its folder must exist.

    Raises:
        OSError: the file cannot be written; an older one is unchanged.
    """
    arrays: dict[str, NDArray[Any]] = {}
    layers = []
    for number, one in enumerate(mapping.layers.values()):
        tables = one.tables
        parts: tuple[NDArray[Any], ...] = (np.packbits(one.cells), one.steps, tables.ifat, tables.ifrt, tables.ofat)
        arrays |= {f"{number}.{part}": array for part, array in zip(_PARTS, parts, strict=True)}
        described = _Layer(
            layer=_Shape(**asdict(one.layer)),
            design=one.design,
            crossbar=(one.crossbar.rows, one.crossbar.cols),
            activation_bits=one.activation_bits,
            input_step=one.input_step,
        )
        layers.append(described.model_dump(mode="json"))
    write_artifact(path, schema=_SCHEMA, version=_VERSION, arrays=arrays, meta={"layers": layers})


def load_mapping(path: str | os.PathLike[str]) -> NetworkMapping:
    """Reads a mapping of :func:`save_mapping`; every byte is checked.

    Raises:
        FormatError: truncated, altered, of another kind, or parts that do not fit each other; names what.
        VersionError: a version that this release does not read.
        OSError: the file cannot be read.
    """
    artifact, name = read_artifact(path, schema=_SCHEMA, versions={_VERSION}), Path(path).name
    try:
        layers = _Meta.model_validate(artifact.meta).layers
    except ValidationError as error:
        raise FormatError.from_validation(f"{name}: not a mapping", error) from None
    expected = {f"{number}.{part}" for number in range(len(layers)) for part in _PARTS}
    if set(artifact.arrays) != expected:
        odd = ", ".join(sorted(expected ^ set(artifact.arrays))[:5])
        raise FormatError(f"{name}: expected the arrays of {len(layers)} layers, differs in {odd}")
    found: dict[str, LayerMapping] = {}
    for number, one in enumerate(layers):
        parts = [artifact.arrays[f"{number}.{part}"] for part in _PARTS]
        try:
            found[one.layer.name] = _read_layer(one, *parts)
        except SparingError as error:
            raise FormatError(f"{name}: layer {one.layer.name!r}: {error}") from error
    if len(found) != len(layers):
        raise FormatError(f"{name}: two layers have one name")
    return NetworkMapping(found)


def _read_layer(
    one: _Layer,
    packed: NDArray[Any],
    steps: NDArray[Any],
    ifat: NDArray[Any],
    ifrt: NDArray[Any],
    ofat: NDArray[Any],
) -> LayerMapping:
    layer = LayerShape(**one.layer.model_dump())
    if layer.in_channels % layer.groups or layer.out_channels % layer.groups:
        raise FormatError(f"{layer.groups} groups do not divide {layer.in_channels} and {layer.out_channels} channels")
    if layer.out_size not in _sizes(layer):
        raise FormatError(f"out_size: expected {_sizes(layer)[0]}, as its other sizes say, got {layer.out_size}")
    if layer.groups > 1 and one.design.epitome is not None:
        raise FormatError("an epitome of a grouped convolution")
    if one.design.epitome is None:
        rows, cols = layer.in_channels // layer.groups * layer.kernel[0] * layer.kernel[1], layer.out_channels
    else:
        cols, in_, p, q = one.design.epitome.size_of(layer.weight_shape)
        rows = in_ * p * q
    shape = (num_planes(one.design.bits), 2, rows, cols)
    size = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (-(-size // 8),):
        raise FormatError(f"cells: expected {-(-size // 8)} bytes, got {packed.dtype} {packed.shape}")
    cells = np.unpackbits(packed, count=size).reshape(shape)
    expected = round_tables(layer, one.design)
    tables = RoundTables(ifat, ifrt, ofat, expected.repeats, expected.row_bits)
    return LayerMapping(
        layer, one.design, CrossbarSize(*one.crossbar), one.activation_bits, one.input_step, cells, steps, tables
    )


def _sizes(layer: LayerShape) -> list[tuple[int, int]]:
    """What a layer's maps may be: by its padding on both sides, or "same", which of even kernels is one more on one."""
    plain, same = [], []
    sizes = zip(layer.in_size, layer.kernel, layer.stride, layer.padding, layer.dilation, strict=True)
    for size, kernel, stride, padding, dilation in sizes:
        reach = dilation * (kernel - 1)
        plain.append((size + 2 * padding - reach - 1) // stride + 1)
        same.append(size if stride == 1 and padding == reach // 2 else plain[-1])
    return [(plain[0], plain[1]), (same[0], same[1])]
