"""Cost of one round of one pixel: what converters, crossbars and digital circuits take; buffers only their time."""

import math
from dataclasses import dataclass

from sparing.pim.hardware import Hardware
from sparing.pim.rounds import Round

__all__ = ["RoundCost", "round_cost"]


@dataclass(frozen=True)
class RoundCost:
    """One round of one pixel.

    Attributes:
        analog_s: converters and crossbars.
        digital_s: registers, shifts, switches, adders and the tile's bus.
        write_s: of the sums into the output buffer.
        add_s: to read what they are added to, where something is there already.
        result_s: to read the results, behind the last round of an output group.
        width: bit lines of a tile, over its PEs.
        num_pes: that work, and draw power, in each tile.
        num_tiles: that work.
        conversions: of bit lines that are in use.
        energy_j: by component, without buffers.
    """

    analog_s: float
    digital_s: float
    write_s: float
    add_s: float
    result_s: float
    width: int
    num_pes: int
    num_tiles: int
    conversions: int
    energy_j: dict[str, float]


def round_cost(round_: Round, num_planes: int, hardware: Hardware, activation_bits: int) -> RoundCost:
    """Cost of one round.

    Args:
        round_: what works.
        num_planes: of the weights.
        hardware: the chip.
        activation_bits: of inputs and outputs.
    """
    tile, digital = hardware.tile, hardware.digital
    pe = tile.pe
    rows, cols = max(round_.rows), max(round_.cols)
    working = round_.num_blocks * num_planes
    pes, tiles = min(working, tile.num_pes), math.ceil(working / tile.num_pes)
    row_turns, col_turns = math.ceil(rows / pe.num_dacs), math.ceil(cols / pe.num_adcs)
    cycles = math.ceil(activation_bits / pe.dac.bits)
    drives = cycles * row_turns * (1 if pe.overlapped else col_turns)
    slots = cycles * row_turns * col_turns
    demux_s, mux_s = pe.demux.switch_s(pe.row_turns), pe.mux.switch_s(pe.col_turns)
    levels, depth = math.ceil(math.log2(pes)), math.ceil(math.log2(tile.num_pes)) if tile.num_pes > 1 else 0
    clock = digital.clock_s
    if pe.overlapped:
        drive_s, convert_s = pe.dac.conversion_s + pe.crossbar.read_s, max(pe.adc.conversion_s, mux_s, clock)
        analog_s = drives * max(drive_s, col_turns * convert_s) + col_turns * convert_s
        digital_s = row_turns * clock + drives * demux_s
    else:
        analog_s = slots * (pe.dac.conversion_s + pe.crossbar.read_s + pe.adc.conversion_s)
        digital_s = (row_turns * col_turns + slots) * clock + slots * (clock + demux_s + mux_s)
    digital_s += col_turns * clock + levels * clock
    sum_bits = pe.adc.bits + levels
    digital_s += (depth * sum_bits - levels * (levels + 1) / 2) * cols / hardware.links.bus_bits_per_s
    dacs, adcs = math.ceil(rows / pe.row_turns), math.ceil(cols / pe.col_turns)
    read_cells = 2 * rows * cols / pe.row_turns / (1 if pe.overlapped else pe.col_turns)
    charged = tiles * pes
    return RoundCost(
        analog_s=analog_s,
        digital_s=digital_s,
        write_s=tile.output_buffer.access_s(sum_bits * cols * pes),
        add_s=tile.output_buffer.access_s(sum_bits * cols * pes),
        result_s=tile.output_buffer.access_s(activation_bits * cols * pes),
        width=cols * pes,
        num_pes=pes,
        num_tiles=tiles,
        conversions=cycles
        * sum(math.ceil(n / pe.num_dacs) for n in round_.rows)
        * sum(round_.cols)
        * round_.copies
        * num_planes,
        energy_j={
            "adc": charged * adcs * slots * pe.adc.energy_j,
            "dac": charged * dacs * drives * pe.dac.energy_j,
            "crossbar": charged * read_cells * drives * pe.crossbar.read_s * pe.crossbar.cell_power_w,
            "digital": charged
            * (
                adcs * slots * digital.shift.energy_j
                + dacs * (row_turns * (1 if pe.overlapped else col_turns) + drives) * digital.register_.energy_j
                + adcs * col_turns * digital.register_.energy_j
                + dacs * drives * demux_s * pe.demux.lane(pe.row_turns).power_w
                + adcs * slots * mux_s * pe.mux.lane(pe.col_turns).power_w
            )
            + tiles * (pes - 1) * adcs * levels * digital.adder.energy_j,
        },
    )
