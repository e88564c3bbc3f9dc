"""`sparing var analyze` and `bench`: what is redundant, what leaving it out can save on a device, and saves here."""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render
from sparing.cli.options import add_command, open_device
from sparing.cli.var_options import open_pipeline, run_options, set_precision_
from sparing.errors import ArgumentError, FormatError

if TYPE_CHECKING:
    from sparing.runs.progress import Progress
    from sparing.var import CompressionPlan, VARConfig, VARPipeline
    from sparing.var.deployment import DeviceDescription, TechniqueEstimate

__all__ = ["add_commands"]

_MILLI, _MEGA = 1e3, 1e6
_WAYS = {"without the plan": False, "with the plan": True}


def add_commands(commands: Any) -> None:
    """Adds both commands."""
    analyze = add_command(
        commands, "analyze", _analyze, "what is redundant in a model, and what leaving it out can save"
    )
    analyze.add_argument("folder", metavar="DIR|NAME", help="a saved model, or d16, d20, ... (layout only)")
    run_options(analyze)
    analyze.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    analyze.add_argument("--num-images", type=int, default=32, metavar="N", help="images to look at (default: 32)")
    analyze.add_argument("--plan", metavar="FILE", help="a plan whose windows are analyzed too")
    analyze.add_argument("--describe", metavar="FILE.json", help="a device to model instead of the one at hand")
    analyze.add_argument("--measure", action="store_true", help="also time each technique here (saved models only)")
    analyze.add_argument("--out", metavar="DIR", help="write redundancy.png, deployment.png and analysis.json")
    bench = add_command(commands, "bench", _bench, "latency and memory of drawing, with the plan and without, in turn")
    bench.add_argument("folder", metavar="DIR", help="a saved model")
    run_options(bench)
    bench.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="timed rounds after a warm-up (default: 5)")
    bench.add_argument("--plan", metavar="FILE", help="the plan to compare with none (default: the saved one)")


def _analyze(arguments: argparse.Namespace) -> None:
    from sparing.var.config import RELEASED, released_config
    from sparing.var.deployment import analyze_deployment, probe_device
    from sparing.var.plan import load_plan

    plan = load_plan(arguments.plan) if arguments.plan else None
    pipe = None
    if arguments.folder in RELEASED and not Path(arguments.folder).is_dir():
        config = released_config(arguments.folder)
    else:
        pipe = open_pipeline(arguments)
        set_precision_(pipe, arguments.precision)
        config = pipe.transformer.config
        plan = plan or pipe.plan
    if plan is not None and plan.model != config:
        raise ArgumentError(f"--plan: {arguments.plan} was made for another model")
    device = _described(arguments.describe) if arguments.describe else probe_device(open_device(arguments.device))
    precision: Any = arguments.precision or ("bfloat16" if pipe is None else _precision_of(pipe))
    rows = analyze_deployment(config, device, batch_size=arguments.batch_size, plan=plan, precision=precision)
    with render.progress_bars() as progress:
        redundancy = _redundancy(pipe, arguments.num_images, progress)
        measured = _measured(pipe, rows, plan, arguments.batch_size, progress) if arguments.measure else {}
    result = {
        "device": device.model_dump(),
        "batch_size": arguments.batch_size,
        "modelled": [dataclasses.asdict(row) for row in rows],
        "measured_s": measured,
        "redundancy": None if redundancy is None else _summary(redundancy),
    }
    if arguments.out:
        _write(Path(arguments.out), result, rows, redundancy)
    if arguments.json:
        render.print_json(result)
    else:
        _print(result, rows)


def _redundancy(pipe: "VARPipeline | None", num_images: int, progress: "Progress") -> Any:
    from sparing.var.redundancy import measure_redundancy

    return None if pipe is None else measure_redundancy(pipe, num_images=num_images, progress=progress)


def _described(path: str) -> "DeviceDescription":
    from sparing.runs.documents import validated
    from sparing.var.deployment import DeviceDescription

    try:
        fields = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        names = ", ".join(DeviceDescription.model_fields)
        raise FormatError(f"{Path(path).name}: expected a JSON object with {names}: {error}") from None
    return validated(DeviceDescription, fields, name=Path(path).name)


def _precision_of(pipe: "VARPipeline") -> str:
    import torch

    return "float32" if pipe.transformer.head.weight.dtype == torch.float32 else "bfloat16"


def _summary(report: Any) -> dict[str, Any]:
    import numpy as np

    scales = range(report.locality.shape[2])
    return {
        "num_images": report.num_images,
        "own_row_share": [[float(np.nanmean(layer[:, s, s])) for s in scales] for layer in report.locality],
        "guidance_similarity": report.guidance_similarity.tolist(),
        "guidance_error": report.guidance_error.tolist(),
        "activations": [
            {"kind": a.kind, "skewness": a.skewness, "used_range": a.used_range, "quantiles": a.quantiles}
            for a in report.activations
        ],
    }


def _measured(
    pipe: "VARPipeline | None",
    rows: "list[TechniqueEstimate]",
    plan: "CompressionPlan | None",
    batch_size: int,
    progress: "Progress",
) -> dict[str, float]:
    """Best of three timed draws of tokens for each technique, which take turns. The norms are always once an image."""
    if pipe is None:
        raise ArgumentError("--measure: a layout has no weights to time; give a saved model")
    from sparing.var.deployment import technique_plans
    from sparing.var.engine import Engine

    plans = technique_plans(pipe.transformer.config, plan)
    names = [row.technique for row in rows if row.technique in plans]
    engines = {name: Engine(pipe.transformer, plan=plans[name]) for name in names}
    times = _take_turns({name: _tokens(pipe, engine, batch_size) for name, engine in engines.items()}, 3, progress)
    return {name: min(seconds) for name, seconds in times.items()}


def _tokens(pipe: "VARPipeline", engine: Any, batch_size: int) -> Any:
    import torch

    from sparing.var.sampling import SamplingSettings

    config: VARConfig = engine.config
    settings = SamplingSettings(top_k=min(900, config.vocab_size))
    labels = torch.arange(batch_size, device=pipe.device) % config.num_classes
    return lambda: engine.generate(
        labels, pipe.tokenizer.quantize, settings, torch.Generator(pipe.device).manual_seed(0)
    )


def _take_turns(work: dict[str, Any], rounds: int, progress: "Progress") -> dict[str, list[float]]:
    import time

    import torch

    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for place, (name, draw) in enumerate(work.items()):
            start = time.perf_counter()
            draw()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
            progress("timing", turn * len(work) + place + 1, (rounds + 1) * len(work))
    return times


def _write(folder: Path, result: dict[str, Any], rows: "list[TechniqueEstimate]", redundancy: Any) -> None:
    from sparing.runs.atomic import replace_file
    from sparing.var.pictures import draw_deployment, draw_redundancy, save_figure

    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / "analysis.json") as file:
        file.write(json.dumps(result, indent=1).encode() + b"\n")
    picture = draw_deployment(rows, device=result["device"]["name"], measured_s=result["measured_s"])
    save_figure(folder / "deployment.png", picture)
    if redundancy is not None:
        save_figure(folder / "redundancy.png", draw_redundancy(redundancy))


def _print(result: dict[str, Any], rows: "list[TechniqueEstimate]") -> None:
    from rich.console import Console
    from rich.table import Table

    device = result["device"]
    speeds = ", ".join(f"{name} {value / 1e12:.2f}" for name, value in device["flops"].items())
    found = "measured by a probe" if device["measured"] else "as described"
    render.print_line(f"{device['name']} ({found}): {speeds} TFLOP/s, {device['bandwidth'] / 1e9:.0f} GB/s")
    table = Table(title=f"transformer, a batch of {result['batch_size']}")
    columns = ["technique", "GMAC", "weights MB", "K, V MB", "modelled ms", "saved ms", "pays"]
    for name in columns + (["measured ms"] if result["measured_s"] else []):
        table.add_column(name, justify="left" if name == "technique" else "right")
    for row in rows:
        numbers = [row.macs / 1e9, row.weight_bytes / _MEGA, row.cache_bytes / _MEGA]
        cells = [f"{x:.1f}" for x in [*numbers, row.time_s * _MILLI, row.saved_s * _MILLI]]
        cells.append(("yes" if row.pays else "no") if row.technique != "none" else "")
        if result["measured_s"]:
            seconds = result["measured_s"].get(row.technique)
            cells.append("" if seconds is None else f"{seconds * _MILLI:.1f}")
        table.add_row(row.technique, *cells)
    Console().print(table)
    for activation in (result["redundancy"] or {}).get("activations", ()):
        render.print_line(
            f"input of {activation['kind']}: skewness {activation['skewness']:.2f}, a symmetric range uses "
            f"{activation['used_range']:.0%}"
        )


def _bench(arguments: argparse.Namespace) -> None:
    from sparing.var.memory import PeakMemory, return_freed_memory
    from sparing.var.plan import load_plan

    if arguments.rounds < 1 or arguments.batch_size < 1:
        raise ArgumentError("--rounds, --batch-size: expected at least 1")
    pipe = open_pipeline(arguments)
    plan = load_plan(arguments.plan) if arguments.plan else pipe.plan
    set_precision_(pipe, arguments.precision)
    if plan is None:
        raise ArgumentError(f"{arguments.folder}: no plan is saved with this model; give --plan")
    peaks, work = {}, {}
    for name, use in _WAYS.items():
        # Memory while nothing else is ready to draw.
        _use(pipe, plan if use else None)
        draw = _draw(pipe, arguments.batch_size)
        with PeakMemory(pipe.device) as memory:
            draw()
        peaks[name] = memory.peak_bytes
        del draw
        return_freed_memory()
    for name, use in _WAYS.items():
        _use(pipe, plan if use else None)
        work[name] = _draw(pipe, arguments.batch_size)
    with render.progress_bars() as progress:
        times = _take_turns(work, arguments.rounds, progress)
    rows = [
        {
            "name": name,
            "best_s": min(seconds),
            "median_s": statistics.median(seconds),
            "worst_s": max(seconds),
            "peak_bytes": peaks[name],
        }
        for name, seconds in times.items()
    ]
    ratio = min(times["without the plan"]) / min(times["with the plan"])
    if arguments.json:
        render.print_json(
            {"batch_size": arguments.batch_size, "rounds": arguments.rounds, "rows": rows, "ratio": ratio}
        )
        return
    pairs = {}
    for name, seconds in times.items():
        best, median, worst = (x * _MILLI for x in (min(seconds), statistics.median(seconds), max(seconds)))
        memory_mb = f"; at most {(peaks[name] or 0) / _MEGA:,.0f} MB in use"
        pairs[name] = f"best {best:.1f}, median {median:.1f}, worst {worst:.1f} ms{memory_mb}"
    render.print_pairs({**pairs, "faster by": f"{ratio:.2f}x"})


def _use(pipe: "VARPipeline", plan: "CompressionPlan | None") -> None:
    from sparing.var import apply_, remove_

    remove_(pipe)
    if plan is not None:
        apply_(pipe, plan)


def _draw(pipe: "VARPipeline", batch_size: int) -> Any:
    """Draws images with the plan that is in force now."""
    tokens, decoder = _tokens(pipe, pipe.engine, batch_size), pipe.decoder
    return lambda: decoder(tokens()[1])
