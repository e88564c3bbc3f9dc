"""`sparing var calibrate` and `compress`: find what can be left out of a model, and save it with that left out."""

import argparse
import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render, var_render
from sparing.cli.images import load_data
from sparing.cli.options import add_command, numbers, seed
from sparing.cli.var_front import check_front, write_front
from sparing.cli.var_options import open_pipeline, picked, run_options, set_precision_, tokens_of
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    from sparing.var import CalibrationConfig, CompressionPlan, VARPipeline

__all__ = ["add_commands", "plan_summary"]


def add_commands(commands: Any) -> None:
    """Adds both commands."""
    _add_calibrate(add_command(commands, "calibrate", _calibrate, "find what can be left out within a budget"))
    parser = add_command(commands, "compress", _compress, "save a model with a plan in force")
    parser.add_argument("folder", metavar="DIR", help="a saved model, or hf://OWNER/NAME")
    parser.add_argument("--plan", required=True, metavar="plan.json", help="from sparing var calibrate")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write; a model in it is replaced")
    parser.add_argument(
        "--weight-bits", type=int, choices=(8,), help="of the saved file; for a model that was loaded from such a one"
    )


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a saved model, or hf://OWNER/NAME")
    parser.add_argument("--out", required=True, metavar="plan.json", help="the plan to write")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--max-divergence", type=float, metavar="X", help="nats a token, at most (default: 0.02)")
    budget.add_argument("--min-removed", type=float, metavar="X", help="share of attention computation, at least")
    parser.add_argument("--data", metavar="DATA", help="calibrate on real images (default: on drawn ones)")
    parser.add_argument("--num-images", type=int, default=64, metavar="N", help="images (default: 64)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at once (default: 16)")
    parser.add_argument("--sharing", choices=("output", "map", "none"), default="output", help="default: output")
    parser.add_argument("--taus", type=numbers, metavar="0.95,...", help="shares that windows hold; none: no windows")
    parser.add_argument(
        "--search",
        choices=("balanced", "segment"),
        default="balanced",
        help="share of all of a layer's attention, with the fewest pairs; or, as published, of each segment's own",
    )
    parser.add_argument("--maps", choices=("union", "average"), default="average", help="of the images' attention")
    parser.add_argument("--guidance", type=float, default=1.5, metavar="X", help="strength of guidance (default: 1.5)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of drawing and of picking (default: 0)")
    parser.add_argument(
        "--int8", action="store_true", help="linear layers, cache and decoder in 8 bits, with integer products"
    )
    parser.add_argument("--front", metavar="front.json", help="also write all plans worth having, as JSON and as PNG")
    parser.add_argument("--cache", metavar="DIR", help="keep what was measured there, for another budget")
    run_options(parser)


def _calibrate(arguments: argparse.Namespace) -> None:
    for name in (arguments.out, arguments.front):
        if name is not None and not Path(name).parent.is_dir():
            raise ArgumentError(f"--out, --front: the folder {str(Path(name).parent)!r} does not exist")
        if name is not None and Path(name).is_dir():
            raise ArgumentError(f"--out, --front: expected a file, got the folder {name!r}")
    if arguments.front is not None:
        check_front(arguments.front)
    from sparing.var import ComputeBudget, QualityBudget, calibrate, int8_precision, load_sensitivity

    config, budget = _config(arguments), QualityBudget()
    if arguments.max_divergence is not None:
        budget = QualityBudget(arguments.max_divergence)
    files = [arguments.out]
    with render.progress_bars() as progress, tempfile.TemporaryDirectory() as scratch:
        pipe = open_pipeline(arguments)
        # Formats of numbers that are in force stay: what they cost counts against the budget too.
        precision = None if pipe.plan is None else pipe.plan.precision
        if arguments.int8:
            precision = int8_precision(pipe.transformer.config)
        data = None
        if arguments.data is not None:
            size = pipe.tokenizer.config.image_size
            images = load_data(arguments.data, split="train", size=size, progress=progress)
            data = tokens_of(pipe, picked(images, arguments.num_images, seed=arguments.seed), progress)
        set_precision_(pipe, arguments.precision)
        cache = _cache_file(arguments.cache or scratch, data)
        plan = calibrate(
            pipe,
            budget=budget if arguments.min_removed is None else ComputeBudget(arguments.min_removed),
            config=config,
            data=data,
            precision=precision,
            cache=cache,
            progress=progress,
        )
        plan.save(arguments.out)
        if arguments.front is not None:
            sensitivity = load_sensitivity(cache)
            files += write_front(arguments.front, pipe, sensitivity, data=data, precision=precision, progress=progress)
    answer = {"files": files, "plan": plan_summary(plan)}
    if arguments.json:
        render.print_json(answer)
    else:
        var_render.print_plan(answer)


def _config(arguments: argparse.Namespace) -> "CalibrationConfig":
    from sparing.runs.documents import validated
    from sparing.var import CalibrationConfig

    fields = {
        "search": arguments.search,
        "maps": arguments.maps,
        "sharing": None if arguments.sharing == "none" else arguments.sharing,
        "guidance_scale": arguments.guidance,
        "num_images": arguments.num_images,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
    }
    return validated(CalibrationConfig, fields if arguments.taus is None else {**fields, "taus": arguments.taus})


def _cache_file(folder: str, data: "tuple[torch.Tensor, torch.Tensor] | None") -> Path:
    """A file of its own for each set of images, which the measurements themselves do not name."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    name = "drawn"
    if data is not None:
        digest = hashlib.sha256(data[0].numpy().tobytes() + data[1].numpy().tobytes())
        name = digest.hexdigest()[:12]
    return Path(folder) / f"sensitivity-{name}.json"


def plan_summary(plan: "CompressionPlan") -> dict[str, Any]:
    """What a plan leaves out, in a few values.

    Returns:
        ``attention_removed``, ``windows_removed`` and ``macs_removed`` (shares, counted), ``windows`` (the layers that
        have any), ``sharing``, ``precision`` (formats and how many layers have each), ``notes``.
    """
    from sparing.var import attention_cost, model_cost

    cost = attention_cost(plan.model, plan)
    windowed = [
        layer
        for layer, scales in enumerate(plan.windows or ())
        if any(width >= 0 for rows in scales for row in rows or () for width in row)
    ]
    precision = None
    if plan.precision is not None:
        forms = Counter(
            f"W{form.weight_bits or '-'}A{form.activation_bits or '-'}" for form in plan.precision.linears.values()
        )
        precision = {
            "linears": dict(sorted(forms.items())),
            "kv_bits": plan.precision.kv_bits,
            "attention_bits": plan.precision.attention_bits,
            "decoder_bits": plan.precision.decoder_bits,
        }
    return {
        "attention_removed": cost.removed,
        "windows_removed": cost.windows_removed,
        "macs_removed": 1 - model_cost(plan.model, plan).macs / model_cost(plan.model).macs,
        "windows": windowed,
        "sharing": None if plan.sharing is None else plan.sharing.model_dump(mode="json"),
        "precision": precision,
        "notes": plan.notes,
    }


def _compress(arguments: argparse.Namespace) -> None:
    from sparing.var import VARPipeline, apply_, load_plan

    out = Path(arguments.out)
    if out.exists() and not (out.is_dir() and ((out / "config.json").is_file() or not any(out.iterdir()))):
        raise ArgumentError(f"--out: {str(out)!r} holds other things; give a new folder, or that of a saved model")
    plan = load_plan(arguments.plan)
    pipe = VARPipeline.from_pretrained(arguments.folder)
    before = _costs(pipe)
    apply_(pipe, plan)
    pipe.save_pretrained(out, weight_bits=arguments.weight_bits)
    answer = {"folder": arguments.out, "before": before, "after": _costs(pipe), "plan": plan_summary(plan)}
    if arguments.json:
        render.print_json(answer)
    else:
        var_render.print_change(answer)


def _costs(pipe: "VARPipeline") -> dict[str, int]:
    """What one image costs with the plan in force, if any; counted."""
    from sparing.var import model_cost

    dtype = str(pipe.transformer.head.weight.dtype).removeprefix("torch.")
    cost = model_cost(pipe.transformer.config, pipe.plan, dtype=dtype)
    return {
        "attention_macs": cost.attention.macs,
        "macs": cost.macs,
        "weight_bytes": cost.weight_bytes,
        "cache_bytes": cost.cache_bytes,
    }
