"""StepCost: what one step of a network takes on a chip, apart from what the whole network decides."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparing.pim.hardware import Hardware
from sparing.pim.parts import Memory, MemoryClass

__all__ = ["BufferUse", "FloatArray", "StepCost", "access_times", "buffer_energy", "pixel_counts"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class BufferUse:
    """How long buffers draw power for one image, in buffer-seconds; times the power of their size it is energy.

    Attributes:
        input_read_s, input_write_s: of PEs' input buffers.
        output_read_s, output_write_s: of tiles' output buffers.
    """

    input_read_s: float = 0.0
    input_write_s: float = 0.0
    output_read_s: float = 0.0
    output_write_s: float = 0.0


@dataclass(frozen=True)
class StepCost:
    """Cost of one step for one image, without hops.

    Attributes:
        name, kind: of the step.
        num_crossbars: pairs, all planes.
        num_tiles: whole tiles.
        utilization: share of the crossbars' cells that hold weights, 0 to 1; 0 without crossbars.
        num_rounds: of one pixel.
        adc_conversions: of one image, of bit lines that are in use.
        table_bits: of an epitome's tables.
        num_pixels: of one image.
        pixel_s: time of a pixel in the corner, the top row, the left column and inside.
        latency_s: time of one image by component, all pixels one after the other.
        merge_s: time of a pixel for each hop between the layer's own tiles.
        send_s: time of a pixel for each hop to the next layer.
        sent_bits: of a pixel.
        merged_bits: of a pixel, within the layer, from each tile.
        energy_j: of one image by component, without buffers and links.
        buffer_use: what buffers add to that.
        input_buffer_bytes, output_buffer_bytes: that the step needs of each PE and of each tile.
    """

    name: str
    kind: Literal["conv", "linear", "pool", "sum"]
    num_crossbars: int = 0
    num_tiles: int = 0
    utilization: float = 0.0
    num_rounds: int = 0
    adc_conversions: int = 0
    table_bits: int = 0
    num_pixels: int = 0
    pixel_s: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    latency_s: dict[str, float] = field(default_factory=dict)
    merge_s: float = 0.0
    send_s: float = 0.0
    sent_bits: int = 0
    merged_bits: int = 0
    energy_j: dict[str, float] = field(default_factory=dict)
    buffer_use: BufferUse = BufferUse()
    input_buffer_bytes: float = 0.0
    output_buffer_bytes: float = 0.0


def buffer_energy(use: BufferUse, hardware: Hardware, input_class: MemoryClass, output_class: MemoryClass) -> float:
    """Energy of a step's buffers in joules, given the sizes that the whole design needs."""
    inputs, outputs = hardware.tile.pe.input_buffer, hardware.tile.output_buffer
    return (
        use.input_read_s * inputs.read_w(input_class)
        + use.input_write_s * inputs.write_w(input_class)
        + use.output_read_s * outputs.read_w(output_class)
        + use.output_write_s * outputs.write_w(output_class)
    )


def pixel_counts(size: tuple[int, int], calls: int) -> FloatArray:
    """Pixels in the corner, in the rest of the top row, in the rest of the left column, and inside."""
    height, width = size
    return calls * np.array([1, width - 1, height - 1, (height - 1) * (width - 1)], np.float64)


def access_times(memory: Memory, bits: list[int]) -> FloatArray:
    """Times of accesses to some numbers of bits."""
    return np.array([memory.access_s(n) for n in bits])
