"""Parts of a chip: crossbars, converters, switches, memories, digital circuits; each names its numbers' source."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sparing.pim.crossbar import CrossbarSize

__all__ = [
    "Converter",
    "Count",
    "Crossbar",
    "Digital",
    "DigitalPart",
    "Memory",
    "MemoryClass",
    "NotNegative",
    "Part",
    "PoolingUnit",
    "Positive",
    "Source",
    "Switch",
    "SwitchLane",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Lines = Annotated[int, Field(ge=1, le=65_536)]
Source = Annotated[str, Field(min_length=1)]


def _check_rising(sizes: Sequence[float]) -> None:
    if any(more <= less for less, more in itertools.pairwise(sizes)):
        raise ValueError(f"expected them by rising size, got {', '.join(f'{size:g}' for size in sizes)}")


class Part(BaseModel):
    """A table of numbers."""

    # Strict: a number in quotes, "3 ns", is refused and not read.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Crossbar(Part):
    """One crossbar of one-bit cells.

    Attributes:
        rows, cols: word lines and bit lines, 1 to 65,536.
        read_s: from the drive of the word lines to steady currents.
        cell_power_w: of a cell that is read, averaged over its values and its input's.
        cell_area_m2: of a cell.
        row_area_m2: of the driver of a word line.
        source: where the numbers are from.
    """

    rows: Lines
    cols: Lines
    read_s: Positive
    cell_power_w: NotNegative
    cell_area_m2: Positive
    row_area_m2: NotNegative
    source: Source

    @property
    def size(self) -> CrossbarSize:
        """Rows and columns."""
        return CrossbarSize(self.rows, self.cols)

    @property
    def area_m2(self) -> float:
        """Cells and drivers of one crossbar; a pair is two."""
        return self.rows * self.cols * self.cell_area_m2 + self.rows * self.row_area_m2


class Converter(Part):
    """A DAC or an ADC.

    Attributes:
        bits: 1 to 16.
        conversion_s: of one conversion.
        energy_j: of one conversion.
        area_m2: of one converter.
        source: where the numbers are from.
    """

    bits: Annotated[int, Field(ge=1, le=16)]
    conversion_s: NotNegative
    energy_j: NotNegative
    area_m2: NotNegative
    source: Source


class SwitchLane(Part):
    """What a lane takes that chooses among some lines.

    Attributes:
        ratio: lines, at most.
        power_w: while it switches.
        area_m2: of the lane.
    """

    ratio: Count
    power_w: NotNegative
    area_m2: NotNegative


def _rising_lanes(lanes: tuple[SwitchLane, ...]) -> tuple[SwitchLane, ...]:
    _check_rising([lane.ratio for lane in lanes])
    return lanes


class Switch(Part):
    """A multiplexer or demultiplexer between lines and fewer converters, a lane for each converter.

    Attributes:
        fan_in: lines that one stage chooses among.
        stage_s: of one stage.
        lanes: by rising ratio; above the last, power and area grow in proportion.
        source: where the numbers are from.
    """

    fan_in: Annotated[int, Field(ge=2)]
    stage_s: NotNegative
    lanes: Annotated[tuple[SwitchLane, ...], Field(min_length=1), AfterValidator(_rising_lanes)]
    source: Source

    def switch_s(self, ratio: int) -> float:
        """Time to choose among lines: a stage more than the ratio has digits in base ``fan_in``."""
        stages = 1
        while ratio > 0:
            ratio //= self.fan_in
            stages += 1
        return stages * self.stage_s

    def lane(self, ratio: int) -> SwitchLane:
        """The lane for a ratio."""
        for lane in self.lanes:
            if ratio <= lane.ratio:
                return lane
        last = self.lanes[-1]
        more = ratio / last.ratio
        return SwitchLane(ratio=ratio, power_w=last.power_w * more, area_m2=last.area_m2 * more)


class MemoryClass(Part):
    """A buffer of one capacity.

    Attributes:
        capacity_bytes: at most.
        area_m2: of the buffer.
        leakage_w: while it is accessed; idle buffers are taken to be off.
        read_j, write_j: of one word.
    """

    capacity_bytes: Positive
    area_m2: NotNegative
    leakage_w: NotNegative
    read_j: NotNegative
    write_j: NotNegative


def _rising_classes(classes: tuple[MemoryClass, ...]) -> tuple[MemoryClass, ...]:
    _check_rising([one.capacity_bytes for one in classes])
    return classes


class Memory(Part):
    """Buffers with a port.

    Attributes:
        word_bits: of the port.
        word_s: to read or to write a word.
        classes: by rising capacity; above the last there are several of the last side by side.
        source: where the numbers are from.
    """

    word_bits: Count
    word_s: Positive
    classes: Annotated[tuple[MemoryClass, ...], Field(min_length=1), AfterValidator(_rising_classes)]
    source: Source

    def access_s(self, bits: float) -> float:
        """Time to read or to write some bits, whole words."""
        return math.ceil(bits / self.word_bits) * self.word_s

    def holding(self, capacity_bytes: float) -> MemoryClass:
        """The smallest buffer that holds so much; several of the largest all leak, and one is accessed."""
        for found in self.classes:
            if capacity_bytes <= found.capacity_bytes:
                return found
        last = self.classes[-1]
        banks = math.ceil(capacity_bytes / last.capacity_bytes)
        return MemoryClass(
            capacity_bytes=banks * last.capacity_bytes,
            area_m2=banks * last.area_m2,
            leakage_w=banks * last.leakage_w,
            read_j=last.read_j,
            write_j=last.write_j,
        )

    def read_w(self, found: MemoryClass) -> float:
        """Power while words are read one after the other."""
        return found.leakage_w + found.read_j / self.word_s

    def write_w(self, found: MemoryClass) -> float:
        """Power while words are written one after the other."""
        return found.leakage_w + found.write_j / self.word_s


class DigitalPart(Part):
    """A register, a shifter or an adder.

    Attributes:
        energy_j: of one clock in use.
        area_m2: of one.
    """

    energy_j: NotNegative
    area_m2: NotNegative


class Digital(Part):
    """Digital circuits of a PE and of the adders between PEs.

    Attributes:
        clock_s: the period.
        register_: a register, one for each DAC and each ADC.
        shift: a shifter with its adder, one for each ADC.
        adder: between two PEs of a tile, one for each ADC.
        source: where the numbers are from.
    """

    clock_s: Positive
    register_: Annotated[DigitalPart, Field(alias="register")]
    shift: DigitalPart
    adder: DigitalPart
    source: Source


class PoolingUnit(Part):
    """The pooling unit of a tile.

    Attributes:
        lanes: channels at once.
        window: elements of a window at once.
        operation_s, energy_j: of one operation.
        area_m2: of the unit.
        source: where the numbers are from.
    """

    lanes: Count
    window: Count
    operation_s: NotNegative
    energy_j: NotNegative
    area_m2: NotNegative
    source: Source
