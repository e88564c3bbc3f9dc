"""Writes RESULTS.md and its pictures from the result files: every floor and goal beside the figure reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reporting import Section, table, write_results
from benchmarks.var.memory import COLUMNS as MEMORY
from sparing.var.pictures import draw_bars, draw_front, save_figure

AGREEMENT_FLOOR, AGREEMENT_GOAL = 0.60, 0.85
FRECHET_ALLOWED, AGREEMENT_ALLOWED = 0.056 / 1.97, 0.01


def write_report(folder: Path) -> None:
    """Reads what result files there are; a missing one leaves its rows out."""
    intro = []
    if not any(folder.glob("*-gpu.json")):
        intro = [
            "No accelerator was at hand: the rows for a GPU are open. Their script is the same, with `--device cuda`;",
            "on a CPU it runs end to end with `--tiny`.",
        ]
    head = ["claim", "floor", "goal", "measured"]
    files = write_results(folder, "var", "VAR compression: results", SECTIONS, head=head, intro=intro)
    if "quality-cpu" in files:
        _pictures(folder, files["quality-cpu"]["results"])


def _latency(results: Any) -> Section:
    rows: list[tuple[str, ...]] = []
    text = ["## Latency (measured)", ""]
    columns = results["columns"]
    for batch, floor, goal in ((1, "2x", "3x"), (8, "1.8x", "2.5x")):
        ours = [c for c in columns if c["batch_size"] == batch and c["kind"] != "rival"]
        if ours:
            found = "; ".join(f"{c['speedup_of_best']:.2f}x {c['column'].removeprefix('ours, ')}" for c in ours)
            rows.append((f"latency, {columns[0]['model']}, CPU, batch {batch}", floor, goal, found))
    head = ["batch", "column", "kind", "best s", "median s", "worst s", "against the first"]
    text += table(
        head,
        [
            [
                str(c["batch_size"]),
                c["column"],
                c["kind"],
                *(f"{c[k]:.2f}" for k in ("best_s", "median_s", "worst_s")),
                f"{c['speedup_of_best']:.2f}x",
            ]
            for c in columns
        ],
    )
    text += ["", f"Greedy tokens on which both agree in float32: {results['greedy_tokens_that_agree']:.2%}. "]
    text[-1] += (
        f"Sharing leaves out {results['attention_removed_by_sharing']:.1%} of attention's computation (counted)."
    )
    return rows, text


def _memory(results: Any) -> Section:
    base = next(r["peak_bytes"] for r in results if r["column"] == MEMORY[0])
    reached = "; ".join(
        f"{r['peak_bytes'] / base - 1:+.1%} {r['column'].removeprefix('ours, ')}"
        for r in results
        if r["column"] != MEMORY[0]
    )
    name = f"peak memory, {results[0]['model']}, batch {results[0]['batch_size']}"
    shown = table(
        ["column", "after loading, GB", "peak, GB: median", "range"],
        [
            [
                r["column"],
                f"{r['weights_and_code_bytes'] / 1e9:.2f}",
                f"{r['peak_bytes'] / 1e9:.2f}",
                f"{min(r['all_peak_bytes']) / 1e9:.2f}–{max(r['all_peak_bytes']) / 1e9:.2f}",
            ]
            for r in results
        ],
    )
    note = "Resident size of a process of its own, above what it had before the weights were loaded."
    return [(name, "−50 %", "−60 %", reached)], ["## Peak memory (measured)", "", *shown, "", note]


def _attention(results: Any) -> Section:
    ways = ["compiled core", "tiles in PyTorch"]
    windowed = [row for row in results if row["pairs_removed"] > 0]
    found = "; ".join(
        f"{r[ways[0]]['speedup']:.1f}x at {r['pairs_removed']:.1%} of the pairs removed" for r in windowed
    )
    shown = table(
        ["pairs removed", "PyTorch, whole, s", *(f"{way}: speedup (range)" for way in ways)],
        [
            [f"{r['pairs_removed']:.1%}", f"{r['PyTorch, whole']['best_s']:.3f}", *(_range(r[way]) for way in ways)]
            for r in results
        ],
    )
    claim = "512² windows: attention time, real skipping"
    return [(claim, "2x", "5x", found)], ["## Attention with windows, 512² (measured)", "", *shown]


def _range(way: dict[str, Any]) -> str:
    low, high = way["speedup_range"]
    return f"{way['speedup']:.2f}x ({low:.2f}–{high:.2f})"


def _convolutions(results: Any) -> Section:
    head = [
        "channels",
        "side",
        "GFLOP",
        "norm, SiLU, convolution in bfloat16, ms",
        "int8 in one pass, ms",
        "ratio",
        "error",
    ]
    shown = table(
        head,
        [
            [
                " → ".join(map(str, r["channels"])),
                str(r["side"]),
                str(r["gflop"]),
                f"{r['bfloat16_ms']:.2f}",
                f"{r['int8_ms']:.2f}",
                f"{r['speedup']:.2f}x",
                f"{r['relative_error']:.4f}",
            ]
            for r in results
        ],
    )
    return [], ["## The decoder's convolutions (measured)", "", *shown]


def _figures(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['attention_removed']:.1%}",
        f"{row['macs_removed']:.1%}",
        f"{row['frechet']:.2f}",
        f"{row['class_agreement']:.1%}",
        f"{row['precision']:.3f}",
        f"{row['recall']:.3f}",
        *_of_tokens(row),
    ]


_FIGURES = ["attention removed", "multiply-adds removed", "Fréchet", "agreement", "precision", "recall"]
_FIGURES += ["cross-entropy, nats", "divergence, nats"]


def _change(row: dict[str, Any], base: dict[str, Any]) -> str:
    agreement = row["class_agreement"] - base["class_agreement"]
    return (
        f"{row['attention_removed']:.1%} at guidance {base['guidance_scale']}: Fréchet "
        f"{row['frechet'] / base['frechet'] - 1:+.2%}, agreement {100 * agreement:+.2f} points"
    )


def _is_within(row: dict[str, Any], base: dict[str, Any]) -> bool:
    worse = row["frechet"] / base["frechet"] - 1
    lost = base["class_agreement"] - row["class_agreement"]
    return bool(worse <= FRECHET_ALLOWED and lost <= AGREEMENT_ALLOWED)


def _quality(results: Any) -> Section:
    bases = {row["guidance_scale"]: row for row in results["guidance"]}
    best = max(bases.values(), key=lambda r: r["class_agreement"])
    base, floor = bases[results["best_guidance"]], results["floor"]
    allowed = f"Fréchet distance at most {FRECHET_ALLOWED:.2%} worse, agreement at most {AGREEMENT_ALLOWED:.0%} lower"
    plans = [*results["tau_sweep"], *results["sharing_variants"], *results["front"], *floor]
    within = [row for row in plans if _is_within(row, bases[row["guidance_scale"]])]
    most = max(within, key=lambda r: r["attention_removed"], default=base)
    changes = "most within both: " + _change(most, bases[most["guidance_scale"]])
    changes += "".join("; asked for 85.2 %: " + _change(row, bases[row["guidance_scale"]]) for row in floor)
    agreement = f"{best['class_agreement']:.1%} at {best['guidance_scale']}"
    claim = "Model S: class agreement at its best guidance"
    rows: list[tuple[str, ...]] = [
        (claim, f"{AGREEMENT_FLOOR:.0%}", f"{AGREEMENT_GOAL:.0%}", agreement),
        (f"Model S: attention removed; {allowed}", "85.2 % (Model M)", "92 % (M)", changes),
    ]
    text = ["## Model S on CIFAR-10 (measured; bits below 8 simulated; bfloat16)", ""]
    text += [f"{base['num_samples']:,} images a row, paired seeds; features: {base['features']}."]
    if results["jobs_open"]:
        text[-1] += f" {results['jobs_open']} rows are still open."
    text += ["", "![front](results/front.png)", "", "### Guidance", ""]
    text += table(["guidance", *_FIGURES], [[str(r["guidance_scale"]), *_figures(r)] for r in results["guidance"]])
    rebuilt = results["reconstruction"]
    text += ["", "The test images through the tokenizer and back: Fréchet distance "]
    text[-1] += f"{rebuilt['frechet']:.2f}, {rebuilt['psnr_db']:.1f} dB. All that follows is at guidance "
    text[-1] += f"{results['best_guidance']} where it says nothing else."
    text += ["", "### Whole plans: integer products, cache and decoder in 8 bits are real", ""]
    text += table(["plan", *_FIGURES], [[row["name"], *_figures(row)] for row in results["whole_plans"]])
    text += ["", "### Windows and sharing together", ""]
    text += table(
        ["plan", "guidance", *_FIGURES],
        [[_plan_name(r), str(r["guidance_scale"]), *_figures(r)] for r in [*results["front"], *floor]],
    )
    text += ["", "### Windows as published: one τ for each segment of each head", ""]
    text += table(["τ", *_FIGURES], [[str(r["tau"]), *_figures(r)] for r in results["tau_sweep"]])
    text += ["", "### The two rules for windows, one τ everywhere (without drawing)", ""]
    text += table(
        ["rule", "τ", "attention removed", *_FIGURES[-2:]],
        [
            [row["rule"], str(row["tau"]), f"{row['attention_removed']:.1%}", *_of_tokens(row)]
            for row in results["window_rules"]
        ],
    )
    text += ["", "### Sharing across guidance, from a scale on, in all layers", ""]
    head = ["variant", "first scale", *_FIGURES]
    text += table(head, [[r["variant"], str(r["first_scale"]), *_figures(r)] for r in results["sharing_variants"]])
    text += ["", "### Bits of weights and activations (simulated)", ""]
    text += table(
        ["weights", "activations", "fc2", *_FIGURES[2:]],
        [[str(r["weight_bits"]), str(r["activation_bits"]), r["fc2"], *_figures(r)[2:]] for r in results["bit_table"]],
    )
    text += ["", "### Four bits in one kind of layer (simulated, without drawing)", ""]
    text += ["![layers](results/seven-layers.png)", ""]
    text += table(["layer", *_FIGURES[-2:]], [[r["kind"], *_of_tokens(r)] for r in results["seven_layers"]])
    return rows, text


def _of_tokens(row: dict[str, Any]) -> list[str]:
    return [f"{row['cross_entropy']:.4f}", f"{row['divergence']:.4f}"]


def _plan_name(row: dict[str, Any]) -> str:
    return f"{row['kind']}, τ {row['tau']}" if "tau" in row else row["kind"]


def _pictures(folder: Path, results: Any) -> None:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in results["front"]:
        series.setdefault(row["kind"], []).append((100 * row["attention_removed"], row["frechet"]))
    series["windows alone, as published"] = [(100 * r["attention_removed"], r["frechet"]) for r in results["tau_sweep"]]
    for variant in ("output", "map"):
        series[f"{variant} shared from a scale on"] = [
            (100 * r["attention_removed"], r["frechet"]) for r in results["sharing_variants"] if r["variant"] == variant
        ]
    figure = draw_front(
        series, x="attention computation removed, %", y="Fréchet distance (judge's features)", title="Model S, CIFAR-10"
    )
    save_figure(folder / "front.png", figure)
    bars = {row["kind"]: row["divergence"] for row in results["seven_layers"]}
    save_figure(
        folder / "seven-layers.png",
        draw_bars(bars, x="divergence from the model as it is, nats a token", title="4 bits in one kind of layer"),
    )


SECTIONS: dict[str, Callable[[Any], Section]] = {
    "quality-cpu": _quality,
    "memory-cpu": _memory,
    "latency-cpu": _latency,
    "latency-gpu": _latency,
    "attention-cpu": _attention,
    "convolutions-cpu": _convolutions,
}
