"""Designed ResNet-50s within a budget of crossbars, no worse than a reference, for several seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.pim.models import imagenet_shape, tiny_shape
from sparing.errors import ArgumentError
from sparing.pim import (
    ChipCost,
    CrossbarRatio,
    NetworkDesign,
    NetworkShape,
    dense_design,
    hardware_report,
    load_hardware,
    match_design,
    num_crossbars,
    uniform_design,
)
from sparing.pim.matching import design_error

BUDGETS = (428, 336)
BITS = 3


def search(seeds: Sequence[int], *, evaluations: int, tiny: bool) -> dict[str, Any]:
    """All budgets against all references."""
    network = tiny_shape() if tiny else imagenet_shape("ResNet-50", 10)
    hardware = load_hardware("mnsim")
    small: dict[str, Any] = {"max_rows": 512, "min_weights": 100_000} if tiny else {}
    references = {
        "uniform": uniform_design(network, hardware.crossbar, bits=BITS, **small),
        "uniform, wrapped": uniform_design(network, hardware.crossbar, bits=BITS, wrapped=True, **small),
        "dense": dense_design(network, bits=BITS),
    }
    dense = num_crossbars(network, references["dense"], hardware.crossbar)
    budgets = (int(0.8 * dense),) if tiny else BUDGETS
    rows: list[dict[str, Any]] = []
    for budget in budgets:
        for name in ("uniform", "dense"):
            for seed in seeds:
                found = _match(network, references[name], budget, seed, evaluations)
                rows.append({"budget": budget, "reference": name, "seed": seed, **found})
                print(budget, name, seed, {k: found[k] for k in ("keeps", "gap", "seconds") if k in found}, flush=True)
    return {
        "network": "tiny" if tiny else "ResNet-50, 10 classes",
        "weight_bits": BITS,
        "references": {name: _reference(network, design) for name, design in references.items()},
        "designs": rows,
    }


def _reference(network: NetworkShape, design: NetworkDesign) -> dict[str, Any]:
    report = hardware_report(network, design, load_hardware("mnsim"))
    return {**_cost(report.design), "ratio": _split(report.ratio), "error": design_error(network, design)}


def _match(network: NetworkShape, reference: NetworkDesign, budget: int, seed: int, evaluations: int) -> dict[str, Any]:
    hardware = load_hardware("mnsim")
    start = time.perf_counter()
    try:
        found = match_design(
            network,
            hardware,
            max_crossbars=budget,
            reference=reference,
            bits=(BITS,),
            seed=seed,
            evaluations=evaluations,
        )
    except ArgumentError as error:
        return {"refused": str(error), "seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    layers = [layer.epitome for layer in found.design.layers.values() if layer.epitome is not None]
    return {
        "keeps": found.keeps,
        **_cost(found.cost),
        "ratio": _split(hardware_report(network, found.design, hardware).ratio),
        "against_reference": {
            name: getattr(found.cost, name) / getattr(found.reference, name)
            for name in ("latency_s", "serial_s", "energy_j", "area_m2")
        },
        "error": found.error,
        "found_error": found.found_error,
        "bound": found.bound,
        "gap": found.gap,
        "epitomes": len(layers),
        "wrapped": sum(shape.wrapped for shape in layers),
        "evaluations": found.evaluations,
        "seconds": seconds,
        "design": found.design.model_dump(mode="json", exclude_none=True),
    }


def _cost(cost: ChipCost) -> dict[str, Any]:
    counts = ("num_crossbars", "num_tiles", "num_rounds", "adc_conversions", "table_bits")
    names = (*counts, "latency_s", "serial_s", "energy_j", "area_m2", "energy_by_component_j")
    return {name: getattr(cost, name) for name in names}


def _split(ratio: CrossbarRatio) -> dict[str, float]:
    return {"bits": ratio.bits, "epitome": ratio.epitome, "total": ratio.total}
