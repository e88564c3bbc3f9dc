"""Writes RESULTS.md from the result files: every floor and goal beside the figure reached."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.reporting import Section, mean_interval, table, write_results


def write_report(folder: Path) -> None:
    """Reads what result files there are; a missing one leaves its rows out."""
    write_results(
        folder,
        "faults",
        "Faults: results",
        {"overhead-cpu": _overhead, "training-cpu": _training, "tokenizer-cpu": _tokenizer},
        head=["claim", "floor", "goal", "reached"],
        intro=[
            "Times are *measured*; faults are *simulated*: accuracies are those of networks whose numbers were changed",
            "as the fault models say.",
        ],
    )


def _overhead(results: Any) -> Section:
    ours = [row for row in results["rows"] if row["kind"] == "ours"]
    rows: list[tuple[str, ...]] = []
    for precision in ("float32", "bfloat16"):
        ratios = [row["against_base_best"] for row in ours if row["precision"] == precision]
        if ratios:
            reached = f"{min(ratios):.2f}x to {max(ratios):.2f}x over {len(ratios)} kinds of faults"
            rows.append((f"overhead, ResNet-20, p ≤ 1e-2, {precision}", "1.20x", "1.05x", reached))
    text = [f"## One forward pass of ResNet-20, batch of {results['batch_size']} (measured)", ""]
    text += [
        "Ours against the fixed-point network without faults; rivals, and that network, against the float network.",
        "",
    ]
    body = []
    for row in results["rows"]:
        quartiles = row["against_base_quartiles"]
        body.append(
            [
                row["precision"],
                row["column"],
                f"{1e3 * row['best_s']:.1f}",
                f"{1e3 * row['median_s']:.1f}",
                f"{row['against_base_best']:.2f}x",
                f"{quartiles[1]:.2f}x ({quartiles[0]:.2f}–{quartiles[2]:.2f})",
                "" if row["hits"] is None else f"{row['hits']:,}",
            ]
        )
    head = [
        "precision",
        "column",
        "best, ms",
        "median, ms",
        "ratio of bests",
        "median ratio (quartiles)",
        "numbers hit",
    ]
    return rows, [*text, *table(head, body)]


def _training(results: Any) -> Section:
    rows: list[tuple[str, ...]] = []
    for job, fault in dict.fromkeys((gain["job"], gain["fault"]) for gain in results["gains"]):
        found = [gain for gain in results["gains"] if (gain["job"], gain["fault"]) == (job, fault)]
        reached = f"{mean_interval([100 * gain['mean'] for gain in found])}; {results['draws']} paired draws each"
        at = f"{found[0]['rate']:g}, ResNet-20: points gained"
        if found[0]["own"]:
            rows.append((f"training under {job}, {at}", "+15", "+30", reached))
        else:
            how = job.replace("recalibrated", "recalibrated on each chip")
            rows.append((f"{how}, under {fault}, {at}", "", "measured", reached))
    text = ["## Accuracy under faults (simulated), %", ""]
    text += [
        f"{results['draws']} paired draws, {results['images']} test images; mean over seeds of means over draws.",
        f"Weights clipped: within ±{results['weight_limit']:g} while training.",
        "",
    ]
    tests = list(results["jobs"][0]["under_faults"]) if results["jobs"] else []
    for test in tests:
        points = results["jobs"][0]["under_faults"][test]["points"]
        head = ["trained", "seeds", "no faults", *(f"{point['rate']:g}" for point in points)]
        body = []
        for job in dict.fromkeys(row["job"] for row in results["jobs"]):
            found = [row for row in results["jobs"] if row["job"] == job and test in row["under_faults"]]
            if not found:
                continue
            body.append(_accuracies(job, found, "under_faults", test, len(points)))
            clipped = [row for row in found if test in row.get("clipped", {})]
            if clipped:
                body.append(_accuracies(f"{job}, ranges clipped", clipped, "clipped", test, len(points)))
        text += [f"### {test}", "", *table(head, body), ""]
    if results["jobs_open"]:
        text.append(f"{results['jobs_open']} jobs are open.")
    return rows, text


def _tokenizer(results: Any) -> Section:
    text = ["## An image tokenizer whose integer weights fail (simulated)", ""]
    text += [
        f"The decoder of the small image model that comes along: {results['layers']} integer convolutions of",
        f"{results['weights']:,} weights; {results['images']} test images, {results['draws']} draws.",
        "",
    ]
    head = ["fault", "rate", "to the sound decoder's, dB", "to the original, dB", "judged right, %", "Fréchet distance"]
    sound = results["sound"]
    body = [
        [row["fault"], f"{row['rate']:g}", f"{row['mean']['psnr_to_sound_db']:.1f}", *_judged(row["mean"])]
        for row in results["rows"]
    ]
    return [], [*text, *table(head, [["none", "0", "", *_judged(sound)], *body])]


def _judged(row: dict[str, float]) -> list[str]:
    return [f"{row['psnr_to_original_db']:.1f}", f"{100 * row['judged_right']:.1f}", f"{row['frechet']:.2f}"]


def _accuracies(name: str, rows: list[dict[str, Any]], key: str, test: str, points: int) -> list[str]:
    clean = statistics.mean(row[key][test]["clean_accuracy"] for row in rows)
    means = [statistics.mean(row[key][test]["points"][i]["mean"] for row in rows) for i in range(points)]
    return [name, str(len(rows)), *(f"{100 * value:.1f}" for value in [clean, *means])]
