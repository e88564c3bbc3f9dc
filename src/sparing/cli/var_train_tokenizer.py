"""`sparing var train-tokenizer`: trains the part that turns images into tokens and back."""

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render, var_render
from sparing.cli.images import load_data
from sparing.cli.options import add_command, open_device, resumable
from sparing.cli.var_training import (
    KEPT,
    TRAINING,
    model_options,
    named,
    read_settings,
    settings,
    training_options,
    write_history,
)

if TYPE_CHECKING:
    import torch

    from sparing.var import VQVAE
    from sparing.vision import ImageDataset

__all__ = ["add_commands"]

# For images of 32×32 on a CPU; an 8×8 latent.
_MODEL: dict[str, Any] = {
    "patch_nums": (1, 2, 3, 4, 6, 8),
    "vocab_size": 1024,
    "z_channels": 16,
    "ch": 32,
    "ch_mult": (1, 2, 4),
    "num_res_blocks": 1,
    "use_attention": False,
    "num_groups": 8,
}
_TRAINING: dict[str, Any] = {"steps": 6000, "batch_size": 32, "learning_rate": 8e-4, "ema_decay": 0.995}
_FLAGS = {
    name: "--" + name.replace("_", "-")
    for name in ("patch_nums", "vocab_size", "z_channels", "ch", "ch_mult", "num_groups")
}
_NUM_SHOWN = 10


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "train-tokenizer", _train, "train the part that turns images into tokens and back")
    training_options(parser, _TRAINING, "[tokenizer] and [training]")
    model_options(parser, _MODEL, _FLAGS)
    parser.add_argument(
        "--features",
        metavar="CLASSIFIER.safetensors",
        help="also keep what this classifier of sparing.vision sees in the images (recommended)",
    )


def _train(arguments: argparse.Namespace) -> None:
    import torch

    from sparing.var import VQVAE, TokenizerConfig, TokenizerTrainingConfig, save_tokenizer, train_tokenizer_

    begin, out = time.perf_counter(), Path(arguments.out)
    tables = read_settings(arguments.config, ("tokenizer", "training"))
    config = settings(TokenizerConfig, _MODEL, tables["tokenizer"], arguments, _FLAGS)
    training = settings(TokenizerTrainingConfig, _TRAINING, tables["training"], arguments, TRAINING)
    device = open_device(arguments.device)
    features, judged = _features(arguments.features, device)
    with render.progress_bars() as progress:
        data = load_data(arguments.data, split="train", size=config.image_size, progress=progress)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            model = VQVAE(config)
        model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        out.mkdir(parents=True, exist_ok=True)
        with resumable(KEPT):
            result = train_tokenizer_(
                model,
                named(data, judged),
                config=training,
                features=features,
                checkpoint_folder=out / "checkpoints",
                progress=progress,
            )
        model.load_state_dict(result.averaged, strict=False)
        history = write_history(out, result.history)
        picture = _reconstructions(out / "reconstructions.png", model, data)
        save_tokenizer(out, model)
    answer = {
        "folder": arguments.out,
        "files": [str(out / "tokenizer.safetensors"), str(out / "tokenizer.json"), history, picture],
        "num_parameters": model.num_parameters,
        "steps": result.steps,
        "seconds": time.perf_counter() - begin,
        "last": result.history[-1] if result.history else None,
    }
    if arguments.json:
        render.print_json(answer)
    else:
        var_render.print_training(answer)


def _features(
    path: str | None, device: "torch.device"
) -> "tuple[Callable[[torch.Tensor], Sequence[torch.Tensor]] | None, str]":
    """The classifier's feature maps on the way, and what names it in the training's record."""
    if path is None:
        return None, "no features"
    from sparing.vision import load_classifier

    model = load_classifier(path).model.to(device).requires_grad_(False)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    return model.stage_maps, f"features of {digest}"


def _reconstructions(path: Path, model: "VQVAE", data: "ImageDataset") -> str:
    """Writes images, and below them what the tokenizer makes of them."""
    import numpy as np
    import torch

    from sparing.var import image_grid, save_png
    from sparing.vision import to_float

    count = min(_NUM_SHOWN, len(data))
    shown = data.images[np.linspace(0, len(data) - 1, count).astype(int)]
    with torch.inference_mode():
        back = model.decode_tokens(model.encode(to_float(shown, next(model.parameters()).device)))
    drawn = back.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    save_png(path, image_grid(np.concatenate([shown, drawn]), count))
    return str(path)
