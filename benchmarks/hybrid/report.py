"""Writes RESULTS.md and the pictures from the result files: every floor and goal beside the figure reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.hybrid.front import front, time_at
from benchmarks.hybrid.plots import draw_curves
from benchmarks.hybrid.record import load
from sparing.hybrid import HybridConfig

TARGET = 0.95
DATABASES = ["zvec", "qdrant-edge"]
TOGETHER = "naive + pruning + two-stage"
Row = tuple[str, str, str, str]


def write_report(folder: Path) -> None:
    """Reads what result files there are; a missing one leaves its rows out."""
    files = {path.stem: load(path) for path in sorted(folder.glob("*.json"))}
    rows: list[Row] = []
    details: list[str] = []
    for name, section in SECTIONS.items():
        if name in files:
            new_rows, text = section(files)
            rows += new_rows
            details += text
    lines = ["# Hybrid retrieval: results", "", *_header(files), ""]
    lines += ["| claim | floor | goal | measured |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *details]
    (folder.parent / "RESULTS.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    _pictures(folder, files)


def _header(files: dict[str, Any]) -> list[str]:
    lines = ["Made by `python -m benchmarks.hybrid.run report` from `results/*.json`; do not edit.", ""]
    if "curves" in files:
        record = files["curves"]["record"]
        machine, data = record["machine"], record["data"]
        widest = "AVX-512" if "avx512f" in machine["simd"] else "AVX2"
        lines.append(
            f"{data['passages']:,} Debian package descriptions (all-MiniLM-L6-v2, 384 dimensions; SPLADE-tiny, about "
            f"143 terms), {record['num_queries']} queries drawn with seed {record['seed']}, k = {record['k']}, recall "
            f"against the exact weighted top {record['k']}, equal weights, scale {record['scale']:.5f}. "
            f"{machine['cpu']}, {widest}, searches on one thread, best of {record['rounds']} interleaved rounds. Times "
            "are read off each contestant's Pareto front over its whole grid, interpolated in log time. Everything "
            "here is measured."
        )
    return lines


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f} ms"


def _ratio(theirs: float | None, ours: float | None) -> str:
    return "–" if theirs is None or ours is None else f"{theirs / ours:.1f}x"


def _ladder(files: dict[str, Any]) -> tuple[list[Row], list[str]]:
    results = files["ladder"]["results"]
    times = {name: time_at(entry["points"], TARGET) for name, entry in results.items()}
    naive, ours = times.get("naive"), times.get("ours")
    rows: list[Row] = [
        ("over the naive single graph, all levers, recall .95", "3x", "5x", _ratio(naive, ours)),
        ("of that, two-stage and pruning together", "2.1x", "3x", _ratio(naive, times.get(TOGETHER))),
    ]
    text = ["## The ladder", "", "| step | ms a query at recall .95 | times faster than naive |", "|---|---|---|"]
    text += [f"| {name} | {_ms(time)} | {_ratio(naive, time)} |" for name, time in times.items()]
    return rows, [*text, ""]


def _curves(files: dict[str, Any]) -> tuple[list[Row], list[str]]:
    results = files["curves"]["results"]
    mine = results["ours"]["points"]
    ours = time_at(mine, TARGET)
    rows: list[Row] = []
    pairings = {name: entry for name, entry in results.items() if entry["family"] == "two routes"}
    for name, entry in pairings.items():
        whole, alone = time_at(entry["points"], TARGET), time_at(entry["points"], TARGET, "routes_ms")
        value = f"{_ratio(whole, ours)} (routes alone {_ratio(alone, ours)})"
        rows.append((f"over two routes, {name}, recall .95", "7x (5x)", "15x (10x)", value))
    for name in DATABASES:
        if name in results:
            best = front(results[name]["points"])[-1]
            beside = f"{_ratio(best['ms'], time_at(mine, best['recall']))} at its best recall {best['recall']:.3f}"
            rows.append((f"over {name}", "20x", "40x", beside))
    if "kannolo" in results:
        theirs = time_at(results["kannolo"]["points"], TARGET)
        rows.append(("over one sparse HNSW (kannolo), recall .95", "5x", "12x", _ratio(theirs, ours)))
    text = [
        "## Hybrid search at equal weights",
        "",
        "![recall against time](results/curves.svg)",
        "",
        "| contestant | ms at recall .90 | .95 | .98 | best recall | build, 1 thread | on disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in results.items():
        cells = [_ms(time_at(entry["points"], recall)) for recall in (0.9, 0.95, 0.98)]
        build = _build_at_target(entry)
        size = f"{build['seconds']:.0f} s | {build['disk_bytes'] / 1e6:.0f} MB" if build else "see the routes | –"
        text.append(f"| {name} | {' | '.join(cells)} | {entry['best_recall']:.3f} | {size} |")
    return rows, [*text, ""]


def _build_at_target(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Facts of the build that holds the first front point at the target recall, or else the best one."""
    if "builds" not in entry:
        return None
    line = front(entry["points"])
    point = next((each for each in line if each["recall"] >= TARGET), line[-1])
    found: dict[str, Any] = next(facts for facts in entry["builds"] if facts["build"] == point["build"])
    return found


def _dense(files: dict[str, Any]) -> tuple[list[Row], list[str]]:
    results = files["dense"]["results"]
    mine = results["ours"]["points"]
    rows: list[Row] = []
    text = ["## Dense-only queries", "", "![recall against time](results/dense.svg)", ""]
    text += ["| contestant | ms at recall .90 | .95 | .99 |", "|---|---|---|---|"]
    for name, entry in results.items():
        cells = [_ms(time_at(entry["points"], recall)) for recall in (0.9, 0.95, 0.99)]
        text.append(f"| {name} | {' | '.join(cells)} |")
        if name != "ours":
            value = _ratio(time_at(entry["points"], TARGET), time_at(mine, TARGET))
            rows.append((f"dense-only queries against {name}, recall .95", "0.8x", "1.2x", value))
    return rows, [*text, ""]


def _weights(files: dict[str, Any]) -> tuple[list[Row], list[str]]:
    results = files["weights"]["results"]
    default = HybridConfig().beam
    at = {
        pair: next(p for p in table["ours"] if p["params"]["beam"] == default)["recall"]
        for pair, table in results.items()
    }
    asked = [pair for pair in at if pair in ("0.75/0.25", "0.5/0.5", "0.25/0.75")]
    value = ", ".join(f"{pair}: {at[pair]:.3f}" for pair in asked)
    rows: list[Row] = [("recall at weights (dense/sparse), default beam", "≥ 0.95 each", "≥ 0.98", value)]
    text = ["## Other weights on the same graph", "", "Recall, and ms a query.", ""]
    text += ["| setting | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    lines: dict[str, list[str]] = {}
    for table in results.values():
        for name, points in table.items():
            for point in points:
                key = f"{name}, " + ", ".join(f"{field} {setting}" for field, setting in point["params"].items())
                lines.setdefault(key, []).append(f"{point['recall']:.3f}, {point['ms']:.3f}")
    text += [f"| {key} | {' | '.join(cells)} |" for key, cells in lines.items()]
    return rows, [*text, ""]


def _times(files: dict[str, Any]) -> tuple[list[Row], list[str]]:
    results = files["times"]["results"]
    shape = results["2 threads"][0]["build"]
    if "curves" in files:
        shape = _build_at_target(files["curves"]["results"]["ours"])["build"]  # type: ignore[index]
    seconds = {
        threads: next(each for each in results[threads] if each["build"] == shape)["seconds"]
        for threads in ("1 threads", "2 threads")
    }
    stats = results["index"]
    rows: list[Row] = [("build, 2 threads", "under 30 s", "under 10 s", f"{seconds['2 threads']:.1f} s")]
    if "curves" in files and "kannolo" in files["curves"]["results"]:
        theirs = _build_at_target(files["curves"]["results"]["kannolo"])
        value = _ratio(theirs["seconds"] if theirs else None, seconds["1 threads"])
        rows.append(("build against kannolo's, 1 thread", "5x faster", "15x", value))
    bytes_row = f"{stats['index_bytes_per_item']:.0f} B"
    rows.append(("index bytes an item beside the vectors", "under 750 B", "under 450 B", bytes_row))
    return rows, []


def _quality(files: dict[str, Any]) -> tuple[list[Row], list[str]]:
    results = files["index_quality"]["results"]
    rows: list[Row] = []
    for name, methods in results.items():
        over = methods["index, none"]["index_minus_this"]
        fused = {each: m["index_minus_this"] for each, m in methods.items() if each.startswith(("min-max", "RRF"))}
        worst = min(fused, key=lambda each: fused[each]["mean"])
        gap = fused[worst]
        value = (
            f"{over['relative']:+.1%} over none; {gap['relative']:+.1%} [{gap['low']:+.4f}, {gap['high']:+.4f}] over "
            f"the best fusion ({worst})"
        )
        rows.append((f"nDCG@10 with automatic alignment, {name}", "+9 %; not below", "+1 % over fusion", value))
    return rows, []


def _pictures(folder: Path, files: dict[str, Any]) -> None:
    titles = {
        "curves": "Hybrid search, equal weights",
        "ladder": "The ladder: levers added to the naive graph",
        "dense": "Dense-only queries",
    }
    for name, title in titles.items():
        if name in files:
            record = files[name]["record"]
            note = (
                f"{record['data']['passages']:,} passages, {record['num_queries']} queries, k = {record['k']}, "
                f"{record['machine']['cpu']}, one thread, best of {record['rounds']} interleaved rounds"
            )
            draw_curves(files[name]["results"], title, note, folder / name)


SECTIONS = {
    "ladder": _ladder,
    "curves": _curves,
    "dense": _dense,
    "weights": _weights,
    "index_quality": _quality,
    "times": _times,
}
