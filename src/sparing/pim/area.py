"""Area of a tile, component by component, and of an epitome's tables."""

from sparing.pim.hardware import Hardware
from sparing.pim.parts import MemoryClass

__all__ = ["table_area", "tile_area"]


def tile_area(hardware: Hardware, input_class: MemoryClass, output_class: MemoryClass) -> dict[str, float]:
    """Area of one tile in m², by component.

    Args:
        hardware: the chip.
        input_class: the input buffer of each PE.
        output_class: the output buffer of the tile.
    """
    tile, digital = hardware.tile, hardware.digital
    pe = tile.pe
    lines = pe.num_dacs * pe.demux.lane(pe.row_turns).area_m2 + pe.num_adcs * pe.mux.lane(pe.col_turns).area_m2
    registers = (pe.num_dacs + pe.num_adcs) * digital.register_.area_m2 + pe.num_adcs * digital.shift.area_m2
    adders = (tile.num_pes - 1) * pe.num_adcs * digital.adder.area_m2
    return {
        "crossbar": tile.num_pes * 2 * pe.crossbar.area_m2,
        "adc": tile.num_pes * pe.num_adcs * pe.adc.area_m2,
        "dac": tile.num_pes * pe.num_dacs * pe.dac.area_m2,
        "buffers": tile.num_pes * input_class.area_m2 + output_class.area_m2,
        "digital": tile.num_pes * (lines + registers) + adders,
        "pooling": tile.pooling.area_m2,
        "links": tile.router_area_m2,
    }


def table_area(hardware: Hardware, table_bits: int) -> float:
    """Area of the memory that holds a layer's tables in m²; 0 for none. It is of the input buffers' kind."""
    return hardware.tile.pe.input_buffer.holding(table_bits / 8).area_m2 if table_bits else 0.0
