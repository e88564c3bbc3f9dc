"""Hardware: what a chip of crossbars is made of, part by part, in SI units; every table of numbers names its source.

::

    Hardware ── Tile ── PE ── Crossbar   a positive and a negative one: a pair, which holds one plane of one block
        │         │      ├─── Converter  DACs on the word lines, ADCs on the bit lines
        │         │      ├─── Switch     which word lines and bit lines the converters stand at
        │         │      └─── Memory     input buffer
        │         └─── Memory            output buffer; pooling unit, adders between PEs
        └─── Links                       inside a tile, and from tile to tile

A file is TOML with a table for each part. Change a preset by copying it.
"""

import json
import math
import os
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Literal, Self

from sparing.errors import ArgumentError, ConfigError, FormatError
from sparing.pim.crossbar import CrossbarSize
from sparing.pim.parts import (
    Converter,
    Count,
    Crossbar,
    Digital,
    Memory,
    NotNegative,
    Part,
    PoolingUnit,
    Positive,
    Source,
    Switch,
)
from sparing.runs.documents import parse_document

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "Hardware",
    "Links",
    "PE",
    "PRESETS",
    "Tile",
    "load_hardware",
]

PRESETS = ("isaac", "mnsim")
"""Names of the chips that come with the package."""

_SCHEMA: Literal["sparing.pim.hardware"] = "sparing.pim.hardware"
_VERSION: Literal[1] = 1


class PE(Part):
    """A pair of crossbars with its converters.

    Attributes:
        num_dacs, num_adcs: of the pair; lines take turns where there are fewer than lines.
        overlapped: bit lines are sampled and held, so that conversions run while the next word lines are driven, and
            shifts while the next conversions run. Otherwise one follows the other, and a crossbar is read anew for each
            turn of its bit lines.
        crossbar, dac, adc, demux, mux, input_buffer: its parts.
        source: where the numbers are from.
    """

    num_dacs: Count
    num_adcs: Count
    overlapped: bool
    crossbar: Crossbar
    dac: Converter
    adc: Converter
    demux: Switch
    mux: Switch
    input_buffer: Memory
    source: Source

    @property
    def row_turns(self) -> int:
        """Word lines that share a DAC."""
        return math.ceil(self.crossbar.rows / self.num_dacs)

    @property
    def col_turns(self) -> int:
        """Bit lines that share an ADC."""
        return math.ceil(self.crossbar.cols / self.num_adcs)


class Tile(Part):
    """PEs that share an output buffer. A tile holds (parts of) one layer, or does one pooling.

    Attributes:
        num_pes: of the tile.
        buffers_together: all buffers of a tile draw power while one of them is accessed; otherwise only that one.
        router_area_m2: its share of the network between tiles.
        pe, pooling, output_buffer: its parts.
        source: where the numbers are from.
    """

    num_pes: Count
    buffers_together: bool
    router_area_m2: NotNegative
    pe: PE
    pooling: PoolingUnit
    output_buffer: Memory
    source: Source


class Links(Part):
    """How numbers travel.

    Attributes:
        bus_bits_per_s: inside a tile.
        link_bits_per_s: from a tile to the next.
        energy_j_per_bit: from a tile to the next.
        grid_side: tiles along a side of the chip; a design that needs more has a larger chip.
        sum_s: to add two maps' values in the accumulator in the middle of the left side.
        source: where the numbers are from.
    """

    bus_bits_per_s: Positive
    link_bits_per_s: Positive
    energy_j_per_bit: NotNegative
    grid_side: Count
    sum_s: NotNegative
    source: Source


class Hardware(Part):
    """A chip; frozen, printable.

    Attributes:
        name: of the chip.
        notes: what it stands for, and what was assumed.
        tile, digital, links: its parts.
    """

    schema_name: Literal["sparing.pim.hardware"] = _SCHEMA
    version: Literal[1] = _VERSION
    name: Source
    notes: str = ""
    tile: Tile
    digital: Digital
    links: Links

    @property
    def crossbar(self) -> CrossbarSize:
        """Size of a crossbar."""
        return self.tile.pe.crossbar.size

    def with_crossbar(self, size: CrossbarSize, *, num_dacs: int | None = None, num_adcs: int | None = None) -> Self:
        """The same chip with crossbars of another size.

        What scales: the cells with rows · columns; drivers, DACs and their registers with the rows; ADCs, shifters,
        registers and adders with the columns, since the number of lines that share a converter stays as near as whole
        numbers allow. What does not: the time of a read, the bits of the ADC, the PEs of a tile, the port of a buffer.

        Args:
            size: of a crossbar.
            num_dacs: of a pair, at most its rows; None scales.
            num_adcs: of a pair, at most its columns; None scales.

        Raises:
            ArgumentError: numbers of converters out of range.
        """
        pe = self.tile.pe
        dacs = max(1, size.rows * pe.num_dacs // pe.crossbar.rows) if num_dacs is None else num_dacs
        adcs = max(1, size.cols * pe.num_adcs // pe.crossbar.cols) if num_adcs is None else num_adcs
        for name, value, most in (("num_dacs", dacs, size.rows), ("num_adcs", adcs, size.cols)):
            if not 1 <= value <= most:
                raise ArgumentError(f"{name}: expected 1 to {most} for a crossbar of {size}, got {value}")
        crossbar = pe.crossbar.model_copy(update={"rows": size.rows, "cols": size.cols})
        changed = pe.model_copy(update={"crossbar": crossbar, "num_dacs": dacs, "num_adcs": adcs})
        return self.model_copy(update={"tile": self.tile.model_copy(update={"pe": changed})})


def load_hardware(name: str | os.PathLike[str] = "mnsim") -> Hardware:
    """Reads a chip.

    Args:
        name: a preset (:data:`PRESETS`), or the path of a TOML file.

    Returns:
        The chip.

    Raises:
        ConfigError: neither a preset nor a file that is there; lists the presets.
        FormatError: not TOML, or numbers that are missing, unknown, of the wrong type or out of range; names each.
        VersionError: a version that this release does not read.
        OSError: the file cannot be read.
    """
    if name in PRESETS:
        path = Path(str(files("sparing.pim"))) / "presets" / f"{name}.toml"
    else:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"hardware: expected {', '.join(PRESETS)} or a TOML file, got {os.fspath(name)!r}")
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path.name}: not TOML: {error}") from None
    # Through JSON, as other documents: in it an array may stand for a tuple, and yet a number must be a number.
    text = json.dumps(found, default=str)
    return parse_document(text, Hardware, schema=_SCHEMA, version=_VERSION, name=path.name, what="a chip")
