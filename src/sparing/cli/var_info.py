"""`sparing var info`: what a released layout, a saved model or a file of weights holds, and what an image costs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render, var_render
from sparing.cli.options import add_command, integers
from sparing.cli.var_plan import plan_summary
from sparing.errors import ArgumentError, FormatError

if TYPE_CHECKING:
    from sparing.var import VQVAE, ModelCost, VARTransformer

__all__ = ["add_commands"]

_TOKENIZER_NAME = "vqvae"


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "info", _info, "what a model is made of, and what an image costs")
    parser.add_argument(
        "model",
        metavar="NAME|DIR|FILE",
        help="d16, d20, d24, d30, d36-s or vqvae (layout only, no weights); the folder of a saved model or tokenizer; "
        "a released .pth or .safetensors file",
    )
    parser.add_argument(
        "--patch-nums", type=integers, metavar="1,2,...", help="of a file, where it is none of the released schedules"
    )


def _info(arguments: argparse.Namespace) -> None:
    found = _describe(arguments.model, arguments.patch_nums)
    if arguments.json:
        render.print_json(found)
    else:
        var_render.print_model(found)


def _describe(name: str, patch_nums: tuple[int, ...] | None) -> dict[str, Any]:
    from sparing.var import RELEASED

    if name in RELEASED or name == _TOKENIZER_NAME:
        return _of_name(name)
    path = Path(name)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return _of_file(path, patch_nums)
    raise ArgumentError(
        f"model: expected one of {', '.join(RELEASED)}, {_TOKENIZER_NAME}, a folder or a file of weights, got {name!r}"
    )


def _of_name(name: str) -> dict[str, Any]:
    import torch

    from sparing.var import VQVAE, VARTransformer, model_cost, released_config

    # Without memory for a single weight: only shapes are counted.
    with torch.device("meta"):
        if name == _TOKENIZER_NAME:
            return {"name": name, "kind": "released layout", "tokenizer": _part(VQVAE())}
        config = released_config(name)
        model = VARTransformer(config)
    return {
        "name": name,
        "kind": "released layout",
        "transformer": _part(model),
        "cost": _cost(model_cost(config), "bfloat16"),
    }


def _of_folder(path: Path) -> dict[str, Any]:
    from sparing.var import VARPipeline, load_tokenizer, model_cost

    if not (path / "config.json").exists() and (path / "tokenizer.json").exists():
        return {"name": str(path), "kind": "tokenizer", "tokenizer": _part(load_tokenizer(path))}
    pipe = VARPipeline.from_pretrained(path)
    config, dtype = pipe.transformer.config, _dtype(pipe.transformer)
    found = {
        "name": str(path),
        "kind": "pipeline",
        "class_names": pipe.class_names,
        "tokenizer": _part(pipe.tokenizer),
        "transformer": _part(pipe.transformer),
        "cost": _cost(model_cost(config, dtype=dtype), dtype),
        "plan": None,
    }
    if pipe.plan is not None:
        found["plan"] = plan_summary(pipe.plan)
        found["cost_with_plan"] = _cost(model_cost(config, pipe.plan, dtype=dtype), dtype)
    return found


def _of_file(path: Path, patch_nums: tuple[int, ...] | None) -> dict[str, Any]:
    from sparing.var import PATCH_NUMS_256, model_cost, read_state, tokenizer_from, transformer_from

    state = read_state(path)
    if "quantize.embedding.weight" in state:
        tokenizer = tokenizer_from(state, patch_nums=patch_nums or PATCH_NUMS_256)
        return {"name": path.name, "kind": "released file", "tokenizer": _part(tokenizer)}
    if "lvl_embed.weight" not in state:
        raise FormatError(f"{path.name}: neither a VAR transformer nor its tokenizer in the released layout")
    model = transformer_from(state, patch_nums=patch_nums)
    dtype = _dtype(model)
    return {
        "name": path.name,
        "kind": "released file",
        "transformer": _part(model),
        "cost": _cost(model_cost(model.config, dtype=dtype), dtype),
    }


def _dtype(model: "VARTransformer") -> str:
    return str(model.head.weight.dtype).removeprefix("torch.")


def _part(model: "VQVAE | VARTransformer") -> dict[str, Any]:
    count = model.num_parameters
    return {
        "num_parameters": count,
        "bytes": {"float32": 4 * count, "bfloat16": 2 * count},
        "patch_nums": model.config.patch_nums,
        "num_tokens": sum(side * side for side in model.config.patch_nums),
        "config": model.config,
    }


def _cost(cost: "ModelCost", dtype: str) -> dict[str, Any]:
    """What one image costs, with guidance; counted."""
    return {
        "dtype": dtype,
        "macs": {**cost.linear_macs, "attention": cost.attention.macs},
        "macs_total": cost.macs,
        "attention_removed": cost.attention.removed,
        "weight_bytes": cost.weight_bytes,
        "cache_bytes": cost.cache_bytes,
    }
