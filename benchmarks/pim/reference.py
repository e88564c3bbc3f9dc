"""The hardware model beside the published simulator's figures, block tables, and how long answers take."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.pim.models import NETWORKS, imagenet_shape, tiny_shape
from sparing.pim import (
    CrossbarSize,
    HardwareReport,
    NetworkShape,
    dense_design,
    hardware_report,
    load_hardware,
    num_crossbars,
    uniform_design,
)
from sparing.pim.matching import matching_tables

# MNSIM 2.0 with its defaults, 9-bit activations, 1000 classes, pipelined.
PUBLISHED: dict[int, dict[str, float]] = {
    9: {
        "latency_ms": 41.6,
        "energy_mj": 30.3,
        "adc_mj": 22.0,
        "buffers_mj": 8.2,
        "pes": 3472,
        "tiles": 870,
        "area_mm2": 3756,
    },
    7: {"latency_ms": 41.3, "energy_mj": 28.4},
}
# Blocks of one plane at 10 classes on 256 × 256, by the project's counting rules.
KNOWN_BLOCKS = {"ResNet-18": 206, "ResNet-50": 410, "ResNet-101": 716}
SIZES = (64, 128, 256, 512)
_AT_ONCE = 100_000


def compare() -> list[dict[str, Any]]:
    """ResNet-50 dense on the preset `mnsim`, at both widths of weights."""
    network, hardware = imagenet_shape("ResNet-50", 1000), load_hardware("mnsim")
    rows = []
    for bits, published in PUBLISHED.items():
        report = hardware_report(network, dense_design(network, bits=bits), hardware)
        modelled = _figures(report)
        rows.append(
            {
                "weight_bits": bits,
                "published": published,
                "modelled": modelled,
                "ratio": {name: modelled[name] / value for name, value in published.items()},
                "energy_j": report.design.energy_by_component_j,
                "serial_s": report.design.latency_by_component_s,
                "area_m2": report.design.area_by_component_m2,
                "utilization": report.design.utilization,
            }
        )
    return rows


def _figures(report: HardwareReport) -> dict[str, float]:
    cost = report.design
    return {
        "latency_ms": cost.latency_s * 1e3,
        "energy_mj": cost.energy_j * 1e3,
        "adc_mj": cost.energy_by_component_j["adc"] * 1e3,
        "buffers_mj": cost.energy_by_component_j["buffers"] * 1e3,
        "pes": cost.num_crossbars,
        "tiles": cost.num_tiles,
        "area_mm2": cost.area_m2 * 1e6,
    }


def block_tables() -> list[dict[str, Any]]:
    """Blocks of one plane and crossbars of 32, for each network and size of crossbar."""
    rows = []
    for name in NETWORKS:
        for classes in (10, 1000):
            network = imagenet_shape(name, classes)
            blocks = {
                str(size): num_crossbars(network, dense_design(network), CrossbarSize(size, size)) // 32
                for size in SIZES
            }
            known = KNOWN_BLOCKS[name] if classes == 10 else None
            rows.append({"network": name, "classes": classes, "blocks": blocks, "known_at_256": known})
    return rows


def published_epitome() -> dict[str, Any]:
    """The uniform epitome of 1024 × 256 at 3 bits, 10 classes, beside the dense network at 3 bits."""
    network, hardware = imagenet_shape("ResNet-50", 10), load_hardware("mnsim")
    found: dict[str, Any] = {}
    designs = {
        "dense": dense_design(network, bits=3),
        "uniform": uniform_design(network, hardware.crossbar, bits=3),
        "uniform, wrapped": uniform_design(network, hardware.crossbar, bits=3, wrapped=True),
    }
    for name, design in designs.items():
        report = hardware_report(network, design, hardware)
        found[name] = {
            "crossbars": report.num_crossbars,
            "ratio": dataclasses.asdict(report.ratio),
            "table_bits": report.design.table_bits,
            **_figures(report),
        }
    return found


def report_seconds(times: int, *, tiny: bool) -> dict[str, Any]:
    """How long a hardware report takes, from the traced layers on; the tracing by itself."""
    network = tiny_shape() if tiny else imagenet_shape("ResNet-50", 1000)
    hardware = load_hardware("mnsim")
    results: dict[str, Any] = {"times": times}
    for name, design in {
        "dense": dense_design(network, bits=3),
        "uniform": uniform_design(network, hardware.crossbar, bits=3),
    }.items():
        taken = [_seconds(partial(hardware_report, network, design, hardware)) for _ in range(times)]
        results[name] = {"first_s": taken[0], "best_s": min(taken), "median_s": statistics.median(taken)}
    taken = [_seconds(lambda: _traced(tiny)) for _ in range(min(times, 5))]
    results["tracing"] = {"first_s": taken[0], "best_s": min(taken), "median_s": statistics.median(taken)}
    return results


def _traced(tiny: bool) -> NetworkShape:
    if tiny:
        return tiny_shape.__wrapped__()
    return imagenet_shape.__wrapped__("ResNet-50", 1000)


def evaluations_a_second(times: int, *, tiny: bool) -> dict[str, Any]:
    """Designs a second whose crossbars, energy, time layer by layer and error are added up from tables."""
    network = tiny_shape() if tiny else imagenet_shape("ResNet-50", 10)
    hardware = load_hardware("mnsim")
    start = time.perf_counter()
    tables = matching_tables(network, hardware, dense_design(network, bits=3), bits=(3, 5))
    built = time.perf_counter() - start
    add = tables.adder(["crossbars", "energy_j", "serial_s", "error"])
    counts = tables.num_options
    choices = np.random.default_rng(0).integers(0, counts, (_AT_ONCE // (100 if tiny else 1), len(counts)))
    taken = [_seconds(lambda: add(choices)) for _ in range(times)]
    return {
        "options": int(counts.sum()),
        "costs": 4,
        "designs_at_once": len(choices),
        "tables_s": built,
        "best_a_second": len(choices) / min(taken),
        "median_a_second": len(choices) / statistics.median(taken),
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(*, times: int, tiny: bool) -> dict[str, Any]:
    """The whole stage."""
    return {
        "comparison": compare(),
        "blocks": block_tables(),
        "published_epitome": published_epitome(),
        "report": report_seconds(times, tiny=tiny),
        "evaluations": evaluations_a_second(times, tiny=tiny),
    }
