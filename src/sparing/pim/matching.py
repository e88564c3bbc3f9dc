"""A design within a budget of crossbars that is no slower and no hungrier than a reference: the published comparison.

Crossbars, time layer by layer and energy add up over layers, so evolution searches their tables; whether a design keeps
its promise in the pipeline, on the whole chip, is then asked of the full model, design by design along the front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparing.errors import ArgumentError
from sparing.pim.cost import layer_cost
from sparing.pim.design import LayerDesign, NetworkDesign
from sparing.pim.design_tables import DesignTables, design_tables
from sparing.pim.error_proxy import error_proxy
from sparing.pim.evaluation import ChipCost, Evaluation
from sparing.pim.exact_search import bounded_best
from sparing.pim.hardware import Hardware
from sparing.pim.layer_options import network_options
from sparing.pim.layers import LayerShape, NetworkShape
from sparing.pim.option_costs import option_costs
from sparing.pim.search import evolve_designs
from sparing.runs.progress import Progress

__all__ = ["MatchedDesign", "chip_cost", "design_error", "match_design", "matching_tables"]

_PROMISED = ("latency_s", "serial_s", "energy_j")
_MOST_EVALUATED = 30
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


@dataclass(frozen=True)
class MatchedDesign:
    """What was found.

    Attributes:
        design: the design.
        cost: of the design on the chip; modelled.
        reference: of the reference.
        keeps: no slower, in the pipeline and layer by layer, and no hungrier than the reference. Where no design that
            was found is, the one of least latency in the pipeline is given.
        error: its error proxy, see :mod:`sparing.pim.error_proxy`.
        found_error: the least error that evolution found within the limits that add up over layers; None where it found
            no design within them, and the design is the exact search's.
        bound: no design within those limits has less error, says the exact search.
        evaluations: designs that evolution tried.
    """

    design: NetworkDesign
    cost: ChipCost
    reference: ChipCost
    keeps: bool
    error: float
    found_error: float | None
    bound: float
    evaluations: int

    @property
    def gap(self) -> float | None:
        """How far evolution is from the exact optimum, as a share of it; at most, where the solver ran out of time.

        None where evolution found nothing.
        """
        if self.found_error is None:
            return None
        return self.found_error / self.bound - 1 if self.bound else 0.0


def chip_cost(network: NetworkShape, design: NetworkDesign, hardware: Hardware) -> ChipCost:
    """What a design costs in all; :func:`~sparing.pim.hardware_report` says it by layer."""
    return Evaluation(network, design, hardware).total()


def matching_tables(
    network: NetworkShape, hardware: Hardware, reference: NetworkDesign, *, bits: Sequence[int], wrapped: bool = True
) -> DesignTables:
    """Tables of all options whose buffers are no larger than the reference's.

    Args:
        network: the layers.
        hardware: the chip.
        reference: names the layers, the bits of activations, and by its neediest layer the buffers.
        bits: choices for the weights.
        wrapped: offer wrapped epitomes too.

    Raises:
        ArgumentError: bits that no crossbar holds.
    """
    whole = chip_cost(network, reference, hardware)
    needs = {"input_buffer_bytes": whole.input_buffer_bytes, "output_buffer_bytes": whole.output_buffer_bytes}
    costs = option_costs(hardware, activation_bits=reference.activation_bits, **needs)

    def columns(layer: LayerShape, design: LayerDesign) -> Mapping[str, float]:
        needed = layer_cost(layer, design, hardware, activation_bits=reference.activation_bits)
        return {**costs(layer, design), **{name: getattr(needed, name) for name in needs}}

    options = network_options(network, hardware.crossbar, bits=bits, wrapped=wrapped)
    tables = design_tables(
        network,
        hardware.crossbar,
        {name: options[name] for name in reference.layers},
        cost=columns,
        activation_bits=reference.activation_bits,
    )
    for name, most in needs.items():
        tables = tables.within(name, most)
    return tables


def match_design(
    network: NetworkShape,
    hardware: Hardware,
    *,
    max_crossbars: int,
    reference: NetworkDesign,
    bits: Sequence[int] = (3,),
    wrapped: bool = True,
    seed: int = 0,
    evaluations: int = 300_000,
    progress: Progress | None = None,
) -> MatchedDesign:
    """Finds the design of least error that keeps a budget of crossbars and is no worse than a reference.

    Designs are evolution's; the exact search's is asked last, where none of them is as good as the reference.

    Args:
        network: the layers.
        hardware: the chip.
        max_crossbars: the budget; a positive and a negative crossbar count as one.
        reference: a design of the network.
        bits: choices for the weights.
        wrapped: offer wrapped epitomes too.
        seed: of the evolution, 0 or more.
        evaluations: designs that evolution tries.
        progress: called with ``("evaluations", done, total)``.

    Raises:
        ArgumentError: a budget or limits that no design keeps, or bits that no crossbar holds.
        ShapeError: a reference that does not fit the network.
    """
    reference.check(network)
    tables = matching_tables(network, hardware, reference, bits=bits, wrapped=wrapped)
    limits = {"crossbars": float(max_crossbars), **_sums(network, reference, hardware)}
    exact = bounded_best(tables, objective="error", limits=limits)
    slim = tables.without_beaten([*limits, "error"])
    aim = chip_cost(network, reference, hardware)
    least: float | None = None
    tried: list[tuple[NetworkDesign, ChipCost, float]] = []
    done = 0
    # Fewer tiles lie nearer to each other: where the whole budget is too slow in the pipeline, a part may not be.
    for share in _SHARES:
        within = {**limits, "crossbars": int(share * max_crossbars)}
        front, _ = evolve_designs(
            slim, ("error", "serial_s"), within, {}, seed=seed, evaluations=evaluations, progress=progress
        )
        done += front.evaluations
        if not front.designs:  # nor is there one in a smaller part
            break
        least = front.designs[0].costs["error"] if least is None else least
        # The front rises in error: the first that keeps its promise has the least.
        for found in front.designs[:: max(1, len(front.designs) // _MOST_EVALUATED)]:
            cost = chip_cost(network, found.design, hardware)
            tried.append((found.design, cost, found.costs["error"]))
            if _keeps(cost, aim):
                return MatchedDesign(*tried[-1][:2], aim, True, tried[-1][2], least, exact.bound, done)
    last = exact.found.design
    tried.append((last, chip_cost(network, last, hardware), exact.objective))
    keeps = _keeps(tried[-1][1], aim)
    design, cost, error = tried[-1] if keeps else min(tried, key=lambda one: one[1].latency_s)
    return MatchedDesign(design, cost, aim, keeps, error, least, exact.bound, done)


def _keeps(cost: ChipCost, aim: ChipCost) -> bool:
    return all(getattr(cost, name) <= getattr(aim, name) for name in _PROMISED)


def _sums(network: NetworkShape, design: NetworkDesign, hardware: Hardware) -> dict[str, float]:
    """What adds up over the layers of a design, as the tables count it."""
    if not design.layers:
        raise ArgumentError("reference: expected a design with layers")
    whole = chip_cost(network, design, hardware)
    costs = option_costs(
        hardware,
        activation_bits=design.activation_bits,
        input_buffer_bytes=whole.input_buffer_bytes,
        output_buffer_bytes=whole.output_buffer_bytes,
    )
    rows = [costs(network[name], layer) for name, layer in design.layers.items()]
    return {name: sum(row[name] for row in rows) for name in ("serial_s", "energy_j")}


def design_error(network: NetworkShape, design: NetworkDesign) -> float:
    """The error proxy of a design, without a model.

    Raises:
        ArgumentError, ShapeError: a design that does not fit the network.
    """
    design.check(network)
    error = error_proxy()
    return sum(error(network[name], layer) for name, layer in design.layers.items())
