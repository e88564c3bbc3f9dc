"""Epitomes on crossbars at work: what a ResNet-50 costs on a chip, and a design with 30 times fewer crossbars."""

import math
import time

import torch
from frame import Section
from rich.table import Table
from terminal import bars, console, step

from pim_demo.page import HEAD, NETWORK, Found, rows, section
from sparing import pim, vision

BITS, EVALUATIONS, RATIO = 3, 100_000, 30.65


def find() -> Found:
    """Traces the network, searches a design and makes the reports."""
    with torch.device("meta"):
        network = pim.trace_layers(vision.resnet50(num_classes=10))
    chip = pim.load_hardware("mnsim")
    dense, uniform = pim.dense_design(network, bits=BITS), pim.uniform_design(network, chip.crossbar, bits=BITS)
    begin = time.perf_counter()
    reports = {"dense": pim.hardware_report(network, dense, chip)}
    report_s = time.perf_counter() - begin
    floats = reports["dense"].num_crossbars_float
    with bars() as progress:
        matched = pim.match_design(
            network,
            chip,
            max_crossbars=math.floor(floats / RATIO),
            reference=uniform,
            bits=(BITS,),
            evaluations=EVALUATIONS,
            progress=progress,
        )
    reports["uniform epitomes"] = pim.hardware_report(network, uniform, chip)
    reports["designed"] = pim.hardware_report(network, matched.design, chip)
    tables = pim.design_tables(network, chip.crossbar, pim.network_options(network, chip.crossbar, bits=(BITS,)))
    front = pim.exact_front(tables, objectives=("crossbars", "error"))
    errors = {
        name: pim.design_error(network, design) for name, design in (("dense", dense), ("uniform epitomes", uniform))
    }
    errors["designed"] = matched.error
    return Found(
        reports, errors, report_s, matched, [(one.costs["crossbars"], one.costs["error"]) for one in front.designs]
    )


def run() -> Section:
    """Shows the system, and returns what the page says about it."""
    step(f"mapping a {NETWORK} onto crossbars and searching a design with {RATIO} times fewer")
    found = find()
    table = Table(title=f"{NETWORK}, ten classes, {BITS} bits, on {found.chip}; modelled", title_justify="left")
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="right" if i else "left")
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    ratio, matched = found.reports["designed"].ratio, found.matched
    promise = "no slower and no hungrier than" if matched.keeps else "slower or hungrier than"
    console.print(
        f"[bold green]crossbars[/]: {ratio.total:.2f} times fewer = {ratio.bits:.2f} by bits × {ratio.epitome:.2f} by "
        f"epitomes; {promise} uniform epitomes; error proxy {matched.gap:.2%} above the exact optimum"
    )
    return section(found)
