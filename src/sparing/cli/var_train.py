"""`sparing var train`: trains the transformer that draws tokens, and saves it with its tokenizer as a model."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render, var_render
from sparing.cli.images import load_data
from sparing.cli.options import add_command, open_device, resumable
from sparing.cli.var_training import (
    KEPT,
    TRAINING,
    model_options,
    read_settings,
    settings,
    training_options,
    write_history,
)
from sparing.errors import ConfigError

if TYPE_CHECKING:
    from sparing.var import VQVAE, VARConfig, VARPipeline
    from sparing.vision import ImageDataset

__all__ = ["add_commands"]

# For images of 32×32 on a CPU.
_MODEL: dict[str, Any] = {"depth": 8, "embed_dim": 256, "num_heads": 4}
_TRAINING: dict[str, Any] = {"steps": 20_000, "batch_size": 64, "learning_rate": 1e-3}
_FLAGS = {"depth": "--depth", "embed_dim": "--embed-dim", "num_heads": "--heads"}
_MAX_ROWS, _COLUMNS = 10, 8


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "train", _train, "train the transformer on images that a tokenizer encodes")
    training_options(parser, _TRAINING, "[transformer] and [training]")
    parser.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="from sparing var train-tokenizer, or the released file"
    )
    model_options(parser, _MODEL, _FLAGS)
    parser.add_argument(
        "--shared-adaln",
        action=argparse.BooleanOptionalAction,
        help="one adaptive norm for all blocks (default: one each)",
    )


def _train(arguments: argparse.Namespace) -> None:
    from sparing.var import (
        TransformerTrainingConfig,
        VARPipeline,
        VARTransformer,
        cached_tokens,
        train_transformer_,
    )

    begin, out = time.perf_counter(), Path(arguments.out)
    tables = read_settings(arguments.config, ("transformer", "training"))
    training = settings(TransformerTrainingConfig, _TRAINING, tables["training"], arguments, TRAINING)
    device = open_device(arguments.device)
    tokenizer = _open_tokenizer(arguments.tokenizer).to(device)
    with render.progress_bars() as progress:
        size = tokenizer.config.image_size
        data = load_data(arguments.data, split="train", size=size, progress=progress)
        config = _config(arguments, tables["transformer"], tokenizer, data)
        tokens = cached_tokens(out, tokenizer, data, progress=progress)
        model = VARTransformer(config, seed=training.seed).to(device)
        with resumable(KEPT):
            result = train_transformer_(
                model, tokenizer, tokens, config=training, checkpoint_folder=out / "checkpoints", progress=progress
            )
        model.load_state_dict(result.averaged, strict=False)
        pipe = VARPipeline(tokenizer, model, class_names=data.class_names)
        history = write_history(out, result.history)
        picture = _samples(out / "samples.png", pipe, training.seed)
        pipe.save_pretrained(out / "pipeline")
    answer = {
        "folder": arguments.out,
        "files": [str(out / "pipeline"), history, picture],
        "num_parameters": model.num_parameters,
        "steps": result.steps,
        "seconds": time.perf_counter() - begin,
        "last": result.history[-1] if result.history else None,
    }
    if arguments.json:
        render.print_json(answer)
    else:
        var_render.print_training(answer)


def _open_tokenizer(name: str) -> "VQVAE":
    from sparing.var import load_tokenizer, read_state, tokenizer_from

    return tokenizer_from(read_state(name)).float() if Path(name).is_file() else load_tokenizer(name)


def _config(
    arguments: argparse.Namespace, table: dict[str, Any], tokenizer: "VQVAE", data: "ImageDataset"
) -> "VARConfig":
    """The transformer's settings; what the tokenizer and the images decide cannot be set otherwise."""
    from sparing.var import VARConfig

    theirs = tokenizer.config
    decided = {
        "num_classes": data.num_classes,
        "vocab_size": theirs.vocab_size,
        "z_channels": theirs.z_channels,
        "patch_nums": theirs.patch_nums,
    }
    config = settings(VARConfig, {**_MODEL, **decided}, table, arguments, (*_FLAGS, "shared_adaln"))
    for name, value in decided.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"{name}: the tokenizer and the images decide {value!r}, got {getattr(config, name)!r}; leave it out"
            )
    return config


def _samples(path: Path, pipe: "VARPipeline", seed: int) -> str:
    """Writes a few images of the first classes."""
    import torch

    from sparing.var import image_grid, save_png

    labels = torch.arange(min(pipe.transformer.config.num_classes, _MAX_ROWS)).repeat_interleave(_COLUMNS)
    save_png(path, image_grid(pipe(labels, seed=seed).images.numpy(), _COLUMNS))
    return str(path)
