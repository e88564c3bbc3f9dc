"""What adds up over layers: columns for the tables of a design search."""

from collections.abc import Callable

from sparing.pim.area import table_area, tile_area
from sparing.pim.cost import layer_cost
from sparing.pim.design import LayerDesign
from sparing.pim.hardware import Hardware
from sparing.pim.layers import LayerShape
from sparing.pim.step_cost import buffer_energy

__all__ = ["option_costs"]


def option_costs(
    hardware: Hardware,
    *,
    activation_bits: int = 9,
    input_buffer_bytes: float = 0.0,
    output_buffer_bytes: float = 0.0,
    inside_hops: float = 0.0,
    outside_hops: float = 0.0,
) -> Callable[[LayerShape, LayerDesign], dict[str, float]]:
    """Makes the function that :func:`~sparing.pim.design_tables.design_tables` asks for its columns.

    Summed over the layers of a design they are what :func:`~sparing.pim.hardware_report` says of it, poolings and sums
    apart, under two assumptions: that buffers have the sizes given here, and that each layer's numbers travel as far as
    said here. Take both from the report of a design near the ones that are looked for. Pipelined latency does not add
    up; it is at least the largest ``serial_s`` of a layer.

    Args:
        hardware: the chip.
        activation_bits: of inputs and outputs.
        input_buffer_bytes: of each PE; 0 for the smallest there are.
        output_buffer_bytes: of each tile; 0 for the smallest there are.
        inside_hops: of each layer, between its own tiles.
        outside_hops: of each layer, to the next.

    Returns:
        Gives ``tiles``, ``rounds`` and ``adc_conversions`` (of one image), ``table_bits``, ``serial_s``, ``energy_j``
        and ``area_m2``.
    """
    inputs, outputs = hardware.tile.pe.input_buffer, hardware.tile.output_buffer
    classes = inputs.holding(input_buffer_bytes), outputs.holding(output_buffer_bytes)
    area = sum(tile_area(hardware, *classes).values())

    def costs(layer: LayerShape, design: LayerDesign) -> dict[str, float]:
        cost = layer_cost(layer, design, hardware, activation_bits=activation_bits)
        way_s = inside_hops * cost.merge_s + outside_hops * cost.send_s
        way_bits = inside_hops * cost.merged_bits + outside_hops * cost.sent_bits
        energy = sum(cost.energy_j.values()) + buffer_energy(cost.buffer_use, hardware, *classes)
        return {
            "tiles": cost.num_tiles,
            "rounds": cost.num_rounds * cost.num_pixels,
            "adc_conversions": cost.adc_conversions,
            "table_bits": cost.table_bits,
            "serial_s": sum(cost.latency_s.values()) + way_s * cost.num_pixels,
            "energy_j": energy + way_bits * cost.num_pixels * hardware.links.energy_j_per_bit,
            "area_m2": cost.num_tiles * area + table_area(hardware, cost.table_bits),
        }

    return costs
