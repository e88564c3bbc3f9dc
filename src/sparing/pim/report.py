"""HardwareReport: what a design costs on a chip, layer by layer and in all, beside the dense network at the same bits.

Everything in it is counted or modelled, nothing measured. Each ratio of crossbars is split: what fewer bits give, and
what epitomes give on top. Unquantized weights (32 planes) are a yardstick for counting; no chip works like that.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from sparing.errors import ArgumentError
from sparing.pim.crossbar import FLOAT_BITS, num_planes
from sparing.pim.design import LayerDesign, NetworkDesign
from sparing.pim.evaluation import ChipCost, Evaluation
from sparing.pim.hardware import Hardware
from sparing.pim.layers import NetworkShape, SkippedLayer
from sparing.pim.step_cost import StepCost
from sparing.pim.steps import Step

__all__ = ["CrossbarRatio", "HardwareReport", "StepReport", "hardware_report"]


@dataclass(frozen=True)
class CrossbarRatio:
    """How many times fewer crossbars than the dense unquantized network takes.

    Attributes:
        bits: by fewer planes.
        epitome: by epitomes, at the same bits.
        total: the product.
    """

    bits: float
    epitome: float
    total: float


@dataclass(frozen=True)
class StepReport:
    """One step of the network on the chip; a pooling or a sum has no crossbars.

    Attributes:
        name, kind: of the step.
        bits: of its weights; None for a pooling or a sum.
        epitome: (Eo, Ei, p, q) that is stored; None for none.
        wrapped: one group of output channels is computed and repeated.
        num_crossbars: pairs, all planes.
        ratio: of its crossbars; None without any.
        num_tiles: whole tiles.
        utilization: share of its crossbars' cells that hold weights.
        num_rounds: of one pixel.
        adc_conversions: of one image.
        table_bits: of its tables.
        serial_s: all its pixels one after the other, sent on.
        first_s, last_s: when its first and last pixel are done in the pipeline.
        latency_s: parts of `serial_s`.
        energy_j: of one image, by component.
        area_m2: of its tiles and tables.
    """

    name: str
    kind: str
    bits: int | None
    epitome: tuple[int, int, int, int] | None
    wrapped: bool
    num_crossbars: int
    ratio: CrossbarRatio | None
    num_tiles: int
    utilization: float
    num_rounds: int
    adc_conversions: int
    table_bits: int
    serial_s: float
    first_s: float
    last_s: float
    latency_s: dict[str, float]
    energy_j: dict[str, float]
    area_m2: float


@dataclass(frozen=True)
class HardwareReport:
    """What a design costs on a chip; modelled.

    Attributes:
        hardware: name of the chip.
        crossbar: its size, ``"256x256"``.
        activation_bits: of inputs and outputs.
        num_crossbars: of the design.
        num_crossbars_float: of the same layers dense and unquantized.
        ratio: of the two.
        design: the design in all.
        dense: the same layers dense, each at the design's bits.
        steps: of the design.
        off_chip: names of layers that the design leaves off the crossbars; they are counted nowhere.
        skipped: other modules with weights, which no crossbar could take; they are counted nowhere.
    """

    hardware: str
    crossbar: str
    activation_bits: int
    num_crossbars: int
    num_crossbars_float: int
    ratio: CrossbarRatio
    design: ChipCost
    dense: ChipCost
    steps: tuple[StepReport, ...]
    off_chip: tuple[str, ...]
    skipped: tuple[SkippedLayer, ...] = ()

    def to_json(self) -> str:
        """Returns the report as readable JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"


def hardware_report(network: NetworkShape, design: NetworkDesign, hardware: Hardware) -> HardwareReport:
    """Says what a design costs.

    Args:
        network: the layers, of :func:`~sparing.pim.trace_layers`.
        design: of this network.
        hardware: the chip.

    Returns:
        The report, in tens of milliseconds for a ResNet-50.

    Raises:
        ArgumentError: a design without layers, or one that does not fit the network.
        ShapeError: an epitome larger than its layer.
    """
    if not design.layers:
        raise ArgumentError("design: expected at least one layer")
    design.check(network)
    dense_layers = {name: LayerDesign(bits=layer.bits) for name, layer in design.layers.items()}
    dense = design.model_copy(update={"layers": dense_layers})
    as_designed = Evaluation(network, design, hardware)
    as_dense = as_designed if dense_layers == design.layers else Evaluation(network, dense, hardware)
    floats = FLOAT_BITS * sum(
        as_dense.costs[name].num_crossbars // num_planes(layer.bits) for name, layer in design.layers.items()
    )
    return HardwareReport(
        hardware=hardware.name,
        crossbar=str(hardware.crossbar),
        activation_bits=design.activation_bits,
        num_crossbars=as_designed.num_crossbars,
        num_crossbars_float=floats,
        ratio=_ratio(floats, as_dense.num_crossbars, as_designed.num_crossbars),
        design=as_designed.total(),
        dense=as_dense.total(),
        steps=tuple(_step_report(as_designed, step, as_dense.costs) for step in as_designed.steps),
        off_chip=tuple(layer.name for layer in network.layers if layer.name not in design.layers),
        skipped=network.skipped,
    )


def _ratio(floats: int, dense: int, designed: int) -> CrossbarRatio:
    return CrossbarRatio(bits=floats / dense, epitome=dense / designed, total=floats / designed)


def _step_report(found: Evaluation, step: Step, dense: Mapping[str, StepCost]) -> StepReport:
    cost, layer = found.costs[step.name], found.design.layers.get(step.name)
    latency, ratio, bits, stored = found.latency_of_step(cost), None, None, None
    if layer is not None:
        bits = layer.bits
        dense_count = dense[step.name].num_crossbars
        floats = dense_count // num_planes(layer.bits) * FLOAT_BITS
        ratio = _ratio(floats, dense_count, cost.num_crossbars)
        if layer.epitome is not None:
            stored = layer.epitome.size_of(found.shapes[step.name].weight_shape)
    return StepReport(
        name=step.name,
        kind=step.kind,
        bits=bits,
        epitome=stored,
        wrapped=bool(layer and layer.epitome and layer.epitome.wrapped),
        num_crossbars=cost.num_crossbars,
        ratio=ratio,
        num_tiles=cost.num_tiles,
        utilization=cost.utilization,
        num_rounds=cost.num_rounds,
        adc_conversions=cost.adc_conversions,
        table_bits=cost.table_bits,
        serial_s=math.fsum(latency.values()),
        first_s=found.latency.first_s[step.name],
        last_s=found.latency.last_s[step.name],
        latency_s=latency,
        energy_j=found.energy_of_step(cost),
        area_m2=math.fsum(found.area_of_step(cost).values()),
    )
