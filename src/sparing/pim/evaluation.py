"""A whole network on a chip: what its steps cost, with what only the whole decides (buffers, hops, the pipeline)."""

import math
from dataclasses import dataclass

from sparing.pim.area import table_area, tile_area
from sparing.pim.cost import layer_cost, pooling_cost, sum_cost
from sparing.pim.design import NetworkDesign
from sparing.pim.hardware import Hardware
from sparing.pim.layers import NetworkShape
from sparing.pim.parts import MemoryClass
from sparing.pim.pipeline import Latency, latency_of, network_steps
from sparing.pim.placement import Hops, placed_hops
from sparing.pim.step_cost import StepCost, buffer_energy
from sparing.pim.steps import Step

__all__ = ["ChipCost", "Evaluation"]


@dataclass(frozen=True)
class ChipCost:
    """A whole network on the chip.

    Attributes:
        num_crossbars: pairs, all planes.
        num_tiles: whole tiles, those of poolings among them.
        utilization: share of the crossbars' cells that hold weights.
        num_rounds: of one image: rounds of a pixel times pixels, over all layers.
        adc_conversions: of one image.
        table_bits: of all tables.
        latency_s: of one image in the pipeline.
        serial_s: of one image, one step after the other.
        energy_j: of one image.
        energy_delay_js: energy times pipelined latency.
        area_m2: of tiles and tables.
        input_buffer_bytes, output_buffer_bytes: sizes of each PE's and each tile's buffer, for the neediest layer.
        latency_by_component_s: parts of `serial_s`.
        energy_by_component_j: parts of `energy_j`.
        area_by_component_m2: parts of `area_m2`.
    """

    num_crossbars: int
    num_tiles: int
    utilization: float
    num_rounds: int
    adc_conversions: int
    table_bits: int
    latency_s: float
    serial_s: float
    energy_j: float
    energy_delay_js: float
    area_m2: float
    input_buffer_bytes: float
    output_buffer_bytes: float
    latency_by_component_s: dict[str, float]
    energy_by_component_j: dict[str, float]
    area_by_component_m2: dict[str, float]


class Evaluation:
    """A design on a chip.

    Args:
        network: the layers.
        design: of this network.
        hardware: the chip.

    Attributes:
        costs: of the steps on the chip, by name.
        steps: those steps, in the order of their first call.
        hops: of all steps, by name.
        latency: of one image.
        input_class, output_class: the buffers that the neediest layer asks for, and all get.
        num_crossbars: pairs, all planes.

    Raises:
        ArgumentError: activation bits out of range.
        ShapeError: an epitome larger than its layer.
    """

    def __init__(self, network: NetworkShape, design: NetworkDesign, hardware: Hardware) -> None:
        self.design, self.hardware = design, hardware
        self.shapes = {layer.name: layer for layer in network.layers}
        every = network_steps(network)
        self.costs = {step.name: cost for step in every if (cost := self._cost(step)) is not None}
        self.steps = [step for step in every if step.name in self.costs]
        tiles = [self.costs[step.name].num_tiles if step.name in self.costs else 0 for step in every]
        hops = placed_hops(every, tiles, hardware.links.grid_side)
        self.hops: dict[str, Hops] = {step.name: way for step, way in zip(every, hops, strict=True)}
        self.latency: Latency = latency_of(every, self.costs, hops)
        pe, costs = hardware.tile.pe, self.costs.values()
        self.input_class: MemoryClass = pe.input_buffer.holding(max(cost.input_buffer_bytes for cost in costs))
        self.output_class: MemoryClass = hardware.tile.output_buffer.holding(
            max(cost.output_buffer_bytes for cost in costs)
        )
        self.tile_area = tile_area(hardware, self.input_class, self.output_class)
        self.num_crossbars = sum(cost.num_crossbars for cost in costs)

    def _cost(self, step: Step) -> StepCost | None:
        bits = self.design.activation_bits
        if step.kind == "pool":
            return pooling_cost(step, self.hardware, activation_bits=bits)
        if step.kind == "sum":
            return sum_cost(step, self.hardware, activation_bits=bits)
        layer = self.design.layers.get(step.name)
        if layer is None:
            return None
        return layer_cost(self.shapes[step.name], layer, self.hardware, activation_bits=bits)

    def latency_of_step(self, cost: StepCost) -> dict[str, float]:
        """Time of one image by component, hops among them."""
        hops = self.hops[cost.name]
        merge_s, send_s = (n * cost.num_pixels for n in (hops.inside * cost.merge_s, hops.outside * cost.send_s))
        return {**cost.latency_s, "merge": merge_s, "send": send_s}

    def energy_of_step(self, cost: StepCost) -> dict[str, float]:
        """Energy of one image by component, buffers and links among them."""
        hops = self.hops[cost.name]
        bits = (hops.inside * cost.merged_bits + hops.outside * cost.sent_bits) * cost.num_pixels
        return {
            **cost.energy_j,
            "buffers": buffer_energy(cost.buffer_use, self.hardware, self.input_class, self.output_class),
            "links": bits * self.hardware.links.energy_j_per_bit,
        }

    def area_of_step(self, cost: StepCost) -> dict[str, float]:
        """Area by component."""
        area = {name: cost.num_tiles * value for name, value in self.tile_area.items()}
        return {**area, "tables": table_area(self.hardware, cost.table_bits)}

    def total(self) -> ChipCost:
        """The whole."""
        costs = self.costs.values()
        cells = sum(cost.utilization * cost.num_crossbars for cost in costs)
        energy = _added([self.energy_of_step(cost) for cost in costs])
        area = _added([self.area_of_step(cost) for cost in costs])
        energy_j = math.fsum(energy.values())
        return ChipCost(
            num_crossbars=self.num_crossbars,
            num_tiles=sum(cost.num_tiles for cost in costs),
            utilization=cells / self.num_crossbars,
            num_rounds=sum(cost.num_rounds * cost.num_pixels for cost in costs),
            adc_conversions=sum(cost.adc_conversions for cost in costs),
            table_bits=sum(cost.table_bits for cost in costs),
            latency_s=self.latency.pipelined_s,
            serial_s=self.latency.serial_s,
            energy_j=energy_j,
            energy_delay_js=energy_j * self.latency.pipelined_s,
            area_m2=math.fsum(area.values()),
            input_buffer_bytes=self.input_class.capacity_bytes,
            output_buffer_bytes=self.output_class.capacity_bytes,
            latency_by_component_s=_added([self.latency_of_step(cost) for cost in costs]),
            energy_by_component_j=energy,
            area_by_component_m2=area,
        )


def _added(parts: list[dict[str, float]]) -> dict[str, float]:
    """Sums by name, in the order in which names come up."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: math.fsum(part.get(name, 0.0) for part in parts) for name in names}
