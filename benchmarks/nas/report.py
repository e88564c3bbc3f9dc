"""Writes RESULTS.md from the result files: every floor and goal beside the figure reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.reporting import Section, mean_interval, table, write_results

_CLAIMS = {"features": ("+5", "+18"), "weights, bit form": ("+3", "+8.8"), "weights, cell form": ("+3", "+8.8")}
_OPEN = "not measured yet"


def write_report(folder: Path) -> None:
    """Reads what result files there are."""
    write_results(
        folder,
        "nas",
        "Architecture search under faults: results",
        {"studies-cpu": _studies, "supernet-cpu": _supernet, "primitives-cpu": _primitives},
        head=["claim", "floor", "goal", "reached"],
        intro=[
            "Faults are *simulated*: accuracies are those of networks whose numbers were changed as the models say."
        ],
    )


def _points(found: list[dict[str, Any]]) -> str:
    """Mean over seeds with its interval; of one seed, that of its draws."""
    values = [100 * one["mean"] for one in found]
    if len(values) == 1:
        low, high = (100 * end for end in _ends(found[0]["interval"]))
        return f"{values[0]:+.1f} (one seed; over draws {low:+.1f} to {high:+.1f})"
    return mean_interval(values)


def _ends(interval: Any) -> tuple[float, float]:
    return (interval["low"], interval["high"]) if isinstance(interval, dict) else (interval[0], interval[1])


def _supernet(results: Any) -> Section:
    rows, text = _studies(results, searched="searched by a supernet")
    return [row for row in rows if row[-1] != _OPEN], ["Before halving: the search by a supernet's weights.", "", *text]


def _studies(results: Any, *, searched: str = "searched") -> Section:
    rows: list[tuple[str, ...]] = []
    text = [
        f"Images of {results['image_size']} × {results['image_size']}; {results['training']['epochs']} epochs each.",
        "",
    ]
    for study in dict.fromkeys(row["study"] for row in results["jobs"]):
        found = [row for row in results["jobs"] if row["study"] == study]
        for first, second in (("searched", "rival"), ("searched", "searched, no faults in training")):
            pairs = [
                d for d in results["differences"] if (d["study"], d["first"], d["second"]) == (study, first, second)
            ]
            turned = [
                {**d, "mean": -d["mean"], "interval": [-end for end in _ends(d["interval"])[::-1]]}
                for d in results["differences"]
                if (d["study"], d["first"], d["second"]) == (study, second, first)
            ]
            if pairs or turned:
                floor, goal = _CLAIMS[study] if second == "rival" else ("", "measured")
                name = (
                    next((r["network"] for r in found if r["job"] == "rival"), "rival") if second == "rival" else second
                )
                rows.append((f"{study}: {searched} against {name}, points", floor, goal, _points(pairs + turned)))
        text += [f"## {study}", "", *_networks(found), ""]
    measured = {row[0].split(":")[0] for row in rows}
    rows += [
        (f"{study}: {searched}, points", *claim, _OPEN) for study, claim in _CLAIMS.items() if study not in measured
    ]
    if results["jobs_open"]:
        text.append(f"{results['jobs_open']} jobs are open.")
    return rows, text


def _primitives(results: Any) -> Section:
    text = [
        "## Primitives, with as many parameters",
        "",
        f"Residual networks of one primitive, about {results['parameters']:,} parameters, as wide as that allows;",
        f"{results['training']['epochs']} epochs under the fault.",
        "",
    ]
    for study in dict.fromkeys(row["study"] for row in results["jobs"]):
        text += [f"### {study}", "", *_networks([row for row in results["jobs"] if row["study"] == study]), ""]
    if results["jobs_open"]:
        text.append(f"{results['jobs_open']} jobs are open.")
    return [], text


def _networks(found: list[dict[str, Any]]) -> list[str]:
    trained = [row for row in found if "under_faults" in row]
    if not trained:
        return ["Nothing is trained yet."]
    rates = [f"{point['rate']:g}" for point in trained[0]["under_faults"]["points"]]
    body = [
        [
            row["job"] if row["job"] != "rival" else row["network"],
            str(row["seed"]),
            f"{row['num_parameters']:,}",
            f"{row['num_macs']:,}",
            f"{100 * row['under_faults']['clean_accuracy']:.1f}",
            *(f"{100 * p['mean']:.1f} ± {100 * (p['high'] - p['low']) / 2:.1f}" for p in row["under_faults"]["points"]),
        ]
        for row in trained
    ]
    return table(
        ["network", "seed", "parameters", "products", "no faults, %", *(f"at {rate}, %" for rate in rates)], body
    )
