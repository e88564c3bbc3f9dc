"""Cost of one step of a network on a chip, whatever stands around it: crossbars, time of a pixel, energy, tables.

The formulas are those of MNSIM 2.0 (Z. Zhu et al., 2023) with rounds added: see docs/decisions/0008. Within a pixel
one thing follows the other. What a round does not drive does not work, but its blocks keep step: each takes the time
and the power of the fullest one, and each tile that of as many PEs as the first.

====================  ================================================================================================
in a round            what it costs
====================  ================================================================================================
input buffer          a read of the word lines' inputs; a pixel's new inputs are written once for all rounds
DAC, crossbar, ADC    (activation bits / DAC bits) · turns of word lines · turns of bit lines
output buffer         a write of the sums; behind the first round of an output group a read of what they are added to;
                      behind the last a read of the results, which are then merged over the layer's tiles and sent
tables                a read of their row, from a memory of their own, one for each epitome
====================  ================================================================================================

A wrapped layer saves the rounds, the conversions, the buffers' and the merging time of all output groups but one. It
does not save the sending: what is repeated is repeated before it is sent.

Additive over layers: crossbars, tiles, rounds, conversions, table bits, and energy and layer-by-layer latency apart
from two things that hang on the whole design: buffers are all of one size, the largest that any layer needs (its power
times :class:`BufferUse`), and hops hang on where the tiles of all layers lie. Pipelined latency is not additive.
"""

import math
from collections import Counter

import numpy as np

from sparing.errors import ArgumentError
from sparing.pim.design import LayerDesign, epitome_refusal
from sparing.pim.hardware import Hardware
from sparing.pim.layers import LayerShape
from sparing.pim.round_cost import RoundCost, round_cost
from sparing.pim.rounds import LayerRounds, Round, layer_rounds
from sparing.pim.step_cost import BufferUse, StepCost, access_times, pixel_counts
from sparing.pim.steps import Step

__all__ = ["layer_cost", "pooling_cost", "sum_cost"]


def layer_cost(layer: LayerShape, design: LayerDesign, hardware: Hardware, *, activation_bits: int = 9) -> StepCost:
    """Cost of a convolution or a linear layer.

    Args:
        layer: the layer.
        design: dense or an epitome, and the bits.
        hardware: the chip.
        activation_bits: of inputs and outputs, 1 to 16.

    Returns:
        The cost.

    Raises:
        ArgumentError: activation_bits out of range, or an epitome of a layer that cannot be one.
        ShapeError: an epitome that does not fit the layer.
    """
    if not 1 <= activation_bits <= 16:
        raise ArgumentError(f"activation_bits: expected 1 to 16, got {activation_bits}")
    refusal = epitome_refusal(layer)
    if refusal and design.epitome is not None:
        raise ArgumentError(f"design: {layer.name} cannot be an epitome: {refusal}")
    mapping = layer_rounds(layer, design, hardware.crossbar)
    num_tiles = math.ceil(mapping.num_crossbars / hardware.tile.num_pes)
    sums = _Sums(layer, mapping, hardware, activation_bits, num_tiles)
    known = {r: round_cost(r, mapping.num_planes, hardware, activation_bits) for group in mapping.groups for r in group}
    merge_s, merged_bits, link = 0.0, 0, hardware.links.link_bits_per_s
    for group, count in Counter(mapping.groups).items():
        for place, one in enumerate(group):
            sums.add(one, known[one], count, first=place == 0, last=place == len(group) - 1)
        bits = max(known[one].width for one in group) * activation_bits
        merge_s += count * (hardware.digital.clock_s + bits / link)
        merged_bits += count * bits
    sent_bits = layer.out_channels * activation_bits
    return StepCost(
        name=layer.name,
        kind=layer.kind,
        num_crossbars=mapping.num_crossbars,
        num_tiles=num_tiles,
        utilization=mapping.num_cells / (mapping.num_blocks * hardware.crossbar.rows * hardware.crossbar.cols),
        num_rounds=mapping.num_rounds,
        adc_conversions=sums.conversions * layer.num_pixels,
        table_bits=mapping.table_bits,
        num_pixels=layer.num_pixels,
        pixel_s=sums.pixel_s(),
        latency_s=sums.latency_s(),
        merge_s=merge_s,
        send_s=sent_bits / link,
        sent_bits=sent_bits,
        merged_bits=merged_bits,
        energy_j={name: value * layer.num_pixels for name, value in sums.energy_j.items()},
        buffer_use=BufferUse(*map(float, sums.use)),
        input_buffer_bytes=_line(layer) * layer.in_channels * activation_bits / 8 / mapping.num_crossbars,
        output_buffer_bytes=2 * mapping.computed_channels * activation_bits / 8 / num_tiles,
    )


class _Sums:
    """Sums over the rounds of a pixel; input buffers take a time of their own in four kinds of pixel."""

    def __init__(
        self, layer: LayerShape, mapping: LayerRounds, hardware: Hardware, activation_bits: int, num_tiles: int
    ) -> None:
        self.layer, self.mapping, self.hardware, self.activation_bits = layer, mapping, hardware, activation_bits
        self.counts = pixel_counts(layer.out_size, layer.num_calls)
        self.energy_j = dict.fromkeys(("adc", "dac", "crossbar", "digital", "tables"), 0.0)
        self.analog_s = self.digital_s = self.output_s = self.table_s = 0.0
        self.conversions = 0
        self.use = np.zeros(4)
        inputs = hardware.tile.pe.input_buffer
        self.input_s = access_times(inputs, _written_bits(layer, mapping.fetched_channels * activation_bits))
        pes = num_tiles * min(mapping.num_crossbars, hardware.tile.num_pes)
        self._power(1, pes, num_tiles, float(self.input_s @ self.counts), 0.0)

    def add(self, round_: Round, cost: RoundCost, count: int, *, first: bool, last: bool) -> None:
        """Adds one round of each of `count` output groups."""
        inputs, pixels = self.hardware.tile.pe.input_buffer, self.layer.num_pixels
        read_s = access_times(inputs, _read_bits(self.layer, max(round_.rows), self.activation_bits))
        result_s = (0.0 if first else cost.add_s) + (cost.result_s if last else 0.0)
        pes = count * cost.num_tiles * cost.num_pes
        self._power(0, pes, count * cost.num_tiles, float(read_s @ self.counts), result_s * pixels)
        self._power(1, pes, count * cost.num_tiles, 0.0, cost.write_s * pixels)
        self.analog_s += count * cost.analog_s
        self.digital_s += count * cost.digital_s
        self.input_s = self.input_s + count * read_s
        self.output_s += count * (result_s + cost.write_s)
        self.conversions += count * cost.conversions
        for name, value in cost.energy_j.items():
            self.energy_j[name] += count * value
        if self.mapping.row_bits:
            table_s = inputs.access_s(self.mapping.row_bits)
            self.table_s += count * table_s
            self.energy_j["tables"] += count * table_s * inputs.read_w(inputs.holding(self.mapping.table_bits / 8))

    def _power(self, write: int, num_pes: int, num_tiles: int, input_s: float, output_s: float) -> None:
        """Adds buffer-seconds; `write` is 1 for a write and 0 for a read."""
        if self.hardware.tile.buffers_together:
            input_s = output_s = input_s + output_s
        self.use[write] += num_pes * input_s
        self.use[2 + write] += num_tiles * output_s

    def pixel_s(self) -> tuple[float, float, float, float]:
        """Time of the four kinds of pixel."""
        fixed = self.analog_s + self.digital_s + self.output_s + self.table_s
        corner, top, left, inside = (self.input_s + fixed).tolist()
        return corner, top, left, inside

    def latency_s(self) -> dict[str, float]:
        """Time of one image by component."""
        pixels = self.layer.num_pixels
        return {
            "analog": self.analog_s * pixels,
            "digital": self.digital_s * pixels,
            "input_buffer": float(self.input_s @ self.counts),
            "output_buffer": self.output_s * pixels,
            "tables": self.table_s * pixels,
        }


def pooling_cost(step: Step, hardware: Hardware, *, activation_bits: int = 9) -> StepCost:
    """Cost of a pooling: a tile of its own, all channels of a pixel in one buffer.

    Args:
        step: the pooling.
        hardware: the chip.
        activation_bits: of inputs and outputs.
    """
    tile, unit = hardware.tile, hardware.tile.pooling
    (kh, kw), (sh, sw) = step.kernel, step.stride
    kept_h, kept_w = max(kh - step.padding[0], 0), max(kw - step.padding[1], 0)
    values = step.channels * activation_bits
    counts = pixel_counts(step.out_size, step.num_calls)
    write_s = access_times(tile.pe.input_buffer, [n * values for n in (kept_h * kept_w, sh * sw, sh * kept_w, sh * sw)])
    read_s = access_times(tile.pe.input_buffer, [n * values for n in (kh * kw, kh * sw, kh * kw, kh * sw)])
    operations = math.ceil(step.channels / unit.lanes) * math.ceil(kh * kw / unit.window)
    output_s, pixels = tile.output_buffer.access_s(values), step.num_pixels
    pixel = (write_s + read_s + operations * unit.operation_s + 2 * output_s).tolist()
    # Charged to the output buffer alone, as its time is in the reference.
    reads, writes = float(read_s @ counts) + output_s * pixels, float(write_s @ counts) + output_s * pixels
    return StepCost(
        name=step.name,
        kind=step.kind,
        num_tiles=1,
        num_pixels=pixels,
        pixel_s=(pixel[0], pixel[1], pixel[2], pixel[3]),
        latency_s={
            "pooling": operations * unit.operation_s * pixels,
            "input_buffer": float((write_s + read_s) @ counts),
            "output_buffer": 2 * output_s * pixels,
        },
        send_s=values / hardware.links.link_bits_per_s,
        sent_bits=values,
        energy_j={"pooling": operations * unit.energy_j * pixels},
        buffer_use=BufferUse(output_read_s=reads, output_write_s=writes),
    )


def sum_cost(step: Step, hardware: Hardware, *, activation_bits: int = 9) -> StepCost:
    """Cost of a sum of two maps, in the accumulator: time, and sending; its energy and area are not counted.

    Args:
        step: the sum.
        hardware: the chip.
        activation_bits: of inputs and outputs.
    """
    values = step.channels * activation_bits
    buffer_s = 2 * hardware.tile.output_buffer.access_s(2 * values)
    pixel, pixels = hardware.links.sum_s + buffer_s, step.num_pixels
    return StepCost(
        name=step.name,
        kind=step.kind,
        num_pixels=pixels,
        pixel_s=(pixel, pixel, pixel, pixel),
        latency_s={"digital": hardware.links.sum_s * pixels, "output_buffer": buffer_s * pixels},
        send_s=values / hardware.links.link_bits_per_s,
        sent_bits=values,
    )


def _written_bits(layer: LayerShape, pixel_bits: int) -> list[int]:
    """New inputs of the four kinds of pixel, where one position has `pixel_bits`."""
    if layer.kind == "linear":
        return [pixel_bits] * 4
    (kh, kw), (sh, sw) = layer.kernel, layer.stride
    kept_h, kept_w = max(kh - layer.padding[0], 0), max(kw - layer.padding[1], 0)
    return [n * pixel_bits for n in (kept_h * kept_w, kh * sw, sh * kept_w, sh * sw)]


def _read_bits(layer: LayerShape, rows: int, activation_bits: int) -> list[int]:
    """Inputs that the word lines of a round read: all in the left column, the new columns' elsewhere."""
    if layer.kind == "linear":
        return [rows * activation_bits] * 4
    kh, kw = layer.kernel
    moved = max(1, rows // (kh * kw)) * kh * layer.stride[1] * activation_bits
    return [rows * activation_bits, moved, rows * activation_bits, moved]


def _line(layer: LayerShape) -> int:
    """Values of one channel that are kept: as many rows of the map as the window is high."""
    if layer.kind == "linear":
        return 1
    return layer.in_size[1] * (layer.dilation[0] * (layer.kernel[0] - 1) + 1)
