"""Recall against time a query, as SVG and PNG, drawn from the result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.hybrid.front import front

OURS = "#c0392b"
COLOURS = ["#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#ff7f0e"]


def draw_curves(results: dict[str, Any], title: str, note: str, out: Path, lowest: float = 0.7) -> None:
    """One line a contestant: the Pareto front of its tuned grid; log time, recall from `lowest`."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "sparing"  # the same picture gives the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    styles = iter([(colour, dash) for dash in ("-", "--") for colour in COLOURS])  # no two lines alike
    for name, entry in results.items():
        line = [point for point in front(entry["points"]) if point["recall"] >= lowest]
        mine = name == "ours"
        colour, dash = (OURS, "-") if mine else next(styles)
        axes.plot(
            [point["recall"] for point in line],
            [point["ms"] for point in line],
            marker="o",
            markersize=4 if mine else 3,
            linewidth=2.4 if mine else 1.3,
            color=colour,
            linestyle=dash,
            label=name,
            zorder=3 if mine else 2,
        )
    axes.axvline(0.95, color="black", linewidth=0.6, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("recall of the exact top 10")
    axes.set_ylabel("milliseconds a query, one thread")
    axes.set_title(title, loc="left")
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    figure.text(0.01, -0.03, note, fontsize=7, color="0.35")
    figure.savefig(out.with_suffix(".svg"), metadata={"Date": None}, bbox_inches="tight")
    figure.savefig(out.with_suffix(".png"), dpi=130, bbox_inches="tight")
    plt.close(figure)
