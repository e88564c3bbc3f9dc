"""Writes RESULTS.md from the result files: every floor and goal beside the figure reached, and what kind it is."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reporting import Section, table, write_results

_NAMES = {
    "latency_ms": "latency, ms",
    "energy_mj": "energy, mJ",
    "adc_mj": "of which ADC, mJ",
    "buffers_mj": "of which buffers, mJ",
    "pes": "PEs",
    "tiles": "tiles",
    "area_mm2": "area, mm²",
}


def write_report(folder: Path) -> None:
    """Reads what result files there are; a missing one leaves its rows out."""
    write_results(
        folder,
        "pim",
        "Epitomes on crossbars: results",
        SECTIONS,
        head=["claim", "floor", "goal", "reached", "kind"],
        intro=[
            "*Counted* and *modelled* figures follow from the design; *measured* ones are times of this code on this",
            "machine; accuracies are *simulated*: measured on images, with rounded weights and inputs.",
        ],
    )


def _reference(results: Any) -> Section:
    rows: list[tuple[str, ...]] = []
    text = ["## ResNet-50, 1000 classes, dense, against MNSIM 2.0's figures", ""]
    compared, parts = [], []
    for row in results["comparison"]:
        bits = row["weight_bits"]
        worst = max(row["ratio"].values(), key=lambda ratio: abs(ratio - 1))
        reached = f"largest deviation {worst - 1:+.1%}"
        rows.append((f"`mnsim`, ResNet-50, W{bits}: latency, energy, area", "25 %", "5 %", reached, "modelled"))
        for name, value in row["published"].items():
            ours = row["modelled"][name]
            compared.append([f"W{bits}", _NAMES[name], f"{value:g}", f"{ours:.4g}", f"{row['ratio'][name] - 1:+.1%}"])
        for name in dict.fromkeys([*row["energy_j"], *row["serial_s"], *row["area_m2"]]):
            values = (row["energy_j"].get(name), row["serial_s"].get(name), row["area_m2"].get(name))
            shown = [("" if v is None else f"{v * by:.4g}") for v, by in zip(values, (1e3, 1e3, 1e6), strict=True)]
            parts.append([f"W{bits}", name, *shown])
    text += table(["weights", "figure", "reported", "modelled here", "deviation"], compared)
    text += ["", "### By component (modelled; time is that of all pixels one after the other)", ""]
    text += table(["weights", "component", "energy, mJ", "time, ms", "area, mm²"], parts)
    blocks = results["blocks"]
    known = [row for row in blocks if row["known_at_256"] is not None]
    right = sum(row["blocks"]["256"] == row["known_at_256"] for row in known)
    rows.append(("block tables of ResNet-18/50/101", "exact", "exact", f"{right} of {len(known)} equal", "counted"))
    sizes = list(blocks[0]["blocks"])
    text += ["", "### Blocks of one plane (counted)", ""]
    text += table(
        ["network", "classes", *(f"{size} × {size}" for size in sizes), "crossbars in floats at 256"],
        [
            [
                row["network"],
                str(row["classes"]),
                *(str(row["blocks"][s]) for s in sizes),
                str(32 * row["blocks"]["256"]),
            ]
            for row in blocks
        ],
    )
    took, speed = results["report"], results["evaluations"]
    found = "; ".join(f"{took[k]['best_s']:.3f} s {k}" for k in ("dense", "uniform"))
    rows.append(("hardware report of ResNet-50", "2 s", "0.2 s", found, "measured"))
    reached = f"{speed['best_a_second']:,.0f}"
    rows.append(("design evaluations a second", "100,000", "1,000,000", reached, "measured"))
    text += ["", f"### Time (measured, best and median of {took['times']})", ""]
    text += table(
        ["what", "first, s", "best, s", "median, s"],
        [
            [n, *(f"{took[k][v]:.4f}" for v in ("first_s", "best_s", "median_s"))]
            for n, k in (("report, dense", "dense"), ("report, uniform epitome", "uniform"), ("tracing", "tracing"))
        ],
    )
    text += ["", f"{speed['designs_at_once']:,} designs at once, {speed['costs']} costs each, from tables of "]
    text[-1] += (
        f"{speed['options']:,} options (built in {speed['tables_s']:.2f} s): best {speed['best_a_second']:,.0f}, "
    )
    text[-1] += f"median {speed['median_a_second']:,.0f} a second."
    return rows, text


def _search(results: Any) -> Section:
    rows: list[tuple[str, ...]] = []
    found = [row for row in results["designs"] if "refused" not in row]
    for name, goal in (("uniform", ""), ("dense", "≤ 1.00x")):
        for budget in dict.fromkeys(row["budget"] for row in found if row["reference"] == name):
            those = [row for row in found if (row["reference"], row["budget"]) == (name, budget)]
            latency = [row["against_reference"]["latency_s"] for row in those]
            energy = [row["against_reference"]["energy_j"] for row in those]
            kept = sum(row["keeps"] for row in those)
            ratio = those[0]["ratio"]
            reached = f"{kept} of {len(those)} seeds; {_range(latency)}x latency, {_range(energy)}x energy, "
            reached += f"{ratio['total']:.2f}x crossbars = {ratio['bits']:.0f} × {ratio['epitome']:.2f}"
            floor = "≤ 1.00x" if name == "uniform" else ""
            claim = f"designed {results['network']}, at most {budget} crossbars, against {name} at 3 bits"
            rows.append((claim, floor, goal, reached, "modelled"))
    if found:
        gaps = [row["gap"] for row in found]
        reached = f"median {statistics.median(gaps):.2%}, largest {max(gaps):.2%}"
        rows.append(("evolution against the exact optimum (error proxy)", "5 %", "1 %", reached, "modelled"))
    text = [f"## Design search: {results['network']}, 256 × 256, 3 bits (modelled; error is a proxy, not accuracy)", ""]
    head = ["design", "crossbars", "bits × form", "latency, ms", "energy, mJ", "area, mm²", "rounds", "table bits"]
    head += ["error proxy"]
    text += table(head, [_cost_row(name, row) for name, row in results["references"].items()])
    text += [""]
    head = ["no worse than, budget, seed", *head[1:], "keeps", "gap", "epitomes (wrapped)"]
    lines = []
    for row in results["designs"]:
        name = f"{row['reference']}, {row['budget']}, {row['seed']}"
        if "refused" in row:
            lines.append([name, row["refused"], *[""] * (len(head) - 2)])
            continue
        more = ["yes" if row["keeps"] else "no", f"{row['gap']:.2%}", f"{row['epitomes']} ({row['wrapped']})"]
        lines.append([*_cost_row(name, row), *more])
    return rows, text + table(head, lines)


def _cost_row(name: str, row: dict[str, Any]) -> list[str]:
    ratio = row["ratio"]
    return [
        name,
        str(row["num_crossbars"]),
        f"{ratio['bits']:.0f} × {ratio['epitome']:.3f} = {ratio['total']:.2f}",
        f"{row['latency_s'] * 1e3:.2f}",
        f"{row['energy_j'] * 1e3:.3f}",
        f"{row['area_m2'] * 1e6:.0f}",
        f"{row['num_rounds']:,}",
        f"{row['table_bits']:,}",
        f"{row['error']:.4g}",
    ]


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low}–{high}"


def _executor(results: Any) -> Section:
    dense = [row for row in results if row["form"] == "dense"]
    speed = "; ".join(f"{row['best_images_per_s']:.1f} on {row['crossbar']}" for row in dense)
    differ = sum(row["outputs_that_differ_from_integer_products"] for row in results)
    total = sum(row["outputs_compared"] for row in results)
    rows: list[tuple[str, ...]] = [
        ("executor, ideal ADC, against integer products", "exact", "exact", f"{differ} of {total} differ", "measured"),
        ("executor, 6-bit ADC, ResNet-20: images a second", "", "20", speed, "measured"),
    ]
    head = ["network", "crossbar", "form", "crossbars", "images at once", "best images/s", "median images/s"]
    head += ["outputs that differ (ideal ADC)", "from the fake-quantized network"]
    text = ["## Bit-true executor: every plane and cycle, 6-bit ADC (measured)", ""]
    return rows, text + table(
        head,
        [
            [
                row["network"],
                row["crossbar"],
                row["form"],
                str(row["crossbars"]),
                str(row["images"]),
                f"{row['best_images_per_s']:.2f}",
                f"{row['median_images_per_s']:.2f}",
                f"{row['outputs_that_differ_from_integer_products']} of {row['outputs_compared']}",
                f"at most {row['largest_difference_from_fake_quantized']:.2g} of {row['largest_output']:.2g}",
            ]
            for row in results
        ],
    )


def _training(results: Any) -> Section:
    from benchmarks.pim.training import paired

    jobs = [row for row in results["jobs"] if "accuracy" in row]
    rows: list[tuple[str, ...]] = []
    claims = [
        ("3-bit epitome at ≥ 30x against its float self", ("epitome", "designed"), ("float",), "−3", "−1"),
        ("the same against block pruning", ("epitome", "designed"), ("pruned",), "not below", "+1"),
        ("the same against narrower networks", ("epitome", "designed"), ("narrow", "shallow"), "not below", "+1"),
        ("range rule weighted_mse over max, 3 bits", ("epitome",), ("epitome, max",), "measured", "+0.5"),
    ]
    for claim, ours, theirs, floor, goal in claims:
        parts = []
        for one in ours:
            for other in theirs:
                differences = paired(jobs, one, other)
                if differences:
                    parts.append(f"{one} − {other}: {_spread(differences)}")
        if parts:
            rows.append((claim + " (points)", floor, goal, "; ".join(parts), "simulated"))
    text = [f"## {results['network']} on CIFAR-10, crossbars of {results['crossbar']} (accuracy simulated)", ""]
    text += [
        f"At most {results['budget']} crossbars for all but float and dense; mean ± standard deviation over seeds."
    ]
    if results["jobs_open"]:
        text[-1] += f" {results['jobs_open']} jobs are still open."
    text += [""]
    head = ["network", "crossbars", "bits × form", "seeds", "accuracy, %", "against float, points"]
    lines, modelled = [], []
    for job in dict.fromkeys(row["job"] for row in jobs):
        those = [row for row in jobs if row["job"] == job]
        ratio = those[0]["ratio"]
        accuracy = _spread([100 * row["accuracy"] for row in those], sign="")
        counts = sorted({row["crossbars"] for row in those})
        lost = paired(jobs, job, "float")
        split = f"{ratio['bits']:.0f} × {ratio['form']:.3f} = {ratio['total']:.2f}"
        shown = ", ".join(map(str, counts))
        lines.append([job, shown, split, str(len(those)), accuracy, _spread(lost) if lost else ""])
        if "modelled" in those[0] and ", " not in job:  # range rules cost the chip nothing
            cost = those[0]["modelled"]
            figures = [
                f"{cost['latency_s'] * 1e3:.3f}",
                f"{cost['energy_j'] * 1e3:.4f}",
                f"{cost['area_m2'] * 1e6:.1f}",
            ]
            modelled.append([job, shown, *figures, f"{cost['num_rounds']:,}", f"{cost['adc_conversions']:,}"])
    text += table(head, lines)
    text += [
        "",
        "### The same on the chip (modelled, `mnsim` with crossbars of this size; the first seed's design)",
        "",
    ]
    head = ["network", "crossbars", "latency, ms", "energy, mJ", "area, mm²", "rounds", "ADC conversions"]
    return rows, text + table(head, modelled) + _stuck(results)


def _stuck(results: Any) -> list[str]:
    """Accuracy over the rates of stuck cells: means over chips and seeds."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for row in results["jobs"]:
        if "stuck_cells" in row and (", " not in row["job"] or row["job"].endswith(", recalibrated")):
            found.setdefault(row["job"], []).append(row["stuck_cells"])
    if not found:
        return []
    rates = [point["rate"] for point in next(iter(found.values()))[0]]
    lines = []
    for job, seeds in sorted(found.items()):
        chips = [
            [100 * accuracy for points in seeds for accuracy in points[i]["accuracies"]] for i in range(len(rates))
        ]
        lines.append([job, str(len(seeds)), *(_spread(own, sign="") if own else "" for own in chips)])
    return [
        "",
        "### With cells stuck, one bit each, 16.3 % of them on (simulated; accuracy, %)",
        "",
        f"{results['stuck_draws']} chips a seed and rate, the same for all networks, {results['stuck_images']} test",
        "images; mean ± standard deviation over chips and seeds. Every cell of an epitome gives several weights.",
        f"Recalibrated: normalizations measured anew on each chip, on {results['recalibration_images']} images.",
        "",
        *table(["network", "seeds", *(f"{rate:.1%}" for rate in rates)], lines),
    ]


def _spread(values: list[float], *, sign: str = "+") -> str:
    mean = f"{statistics.mean(values):{sign}.2f}"
    if len(values) == 1:
        return f"{mean} (1 seed)"
    return f"{mean} ± {statistics.stdev(values):.2f}"


SECTIONS: dict[str, Callable[[Any], Section]] = {
    "training-cpu": _training,
    "search-cpu": _search,
    "reference-cpu": _reference,
    "executor-cpu": _executor,
}
