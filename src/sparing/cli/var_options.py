"""What the commands of `sparing var` share: options, and opening what they name (models, images, classes)."""

import argparse
import copy
from typing import TYPE_CHECKING

from sparing.cli.options import open_device, seed
from sparing.errors import ArgumentError
from sparing.runs.progress import Progress

if TYPE_CHECKING:
    import torch

    from sparing.var import VARPipeline
    from sparing.vision import ImageDataset

__all__ = [
    "open_pipeline",
    "picked",
    "resolve_classes",
    "run_options",
    "sampling_options",
    "set_precision_",
    "tokens_of",
]


def run_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--device` and `--precision` for commands that run a saved model."""
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="of the weights in memory (default: as they were saved)"
    )


def sampling_options(parser: argparse.ArgumentParser) -> None:
    """Adds how images are drawn."""
    parser.add_argument("--guidance", type=float, default=1.5, metavar="X", help="strength of guidance (default: 1.5)")
    parser.add_argument("--top-k", type=int, default=900, metavar="N", help="most likely codes; 0: all (default: 900)")
    parser.add_argument("--top-p", type=float, default=0.96, metavar="P", help="share of the codes (default: 0.96)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the draw (default: 0)")
    parser.add_argument("--no-plan", action="store_true", help="without the plan that was saved with the model")


def open_pipeline(arguments: argparse.Namespace) -> "VARPipeline":
    """Loads the model that a command names, on its device, in the dtype it was saved in."""
    from sparing.var import VARPipeline, remove_

    pipe = VARPipeline.from_pretrained(arguments.folder, device=open_device(arguments.device))
    if getattr(arguments, "no_plan", False):
        remove_(pipe)
    return pipe


def set_precision_(pipe: "VARPipeline", precision: str | None) -> None:
    """Brings a pipeline's weights into the dtype that was asked for, if one was."""
    import torch

    if precision is not None:
        pipe.to(dtype=getattr(torch, precision))


def picked(dataset: "ImageDataset", count: int | None, *, seed: int = 0) -> "ImageDataset":
    """Draws images at random without repeats, or puts all in a random order where there are no more (or None)."""
    import numpy as np

    if count is not None and count < 1:
        raise ArgumentError(f"--num-images: expected at least 1, got {count}")
    return dataset.subset(np.random.default_rng(seed).permutation(len(dataset))[:count])


def tokens_of(
    pipe: "VARPipeline", dataset: "ImageDataset", progress: Progress | None
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Encodes images with a pipeline's tokenizer: tokens (n, L) and labels (n,), int64 on the CPU."""
    import torch

    from sparing.var import encode_dataset

    if pipe.class_names is not None and pipe.class_names != dataset.class_names:
        raise ArgumentError(
            f"--data: expected the model's classes {', '.join(pipe.class_names[:5])}, ... "
            f"in this order, got {', '.join(dataset.class_names[:5])}, ..."
        )
    tokenizer = pipe.tokenizer
    if tokenizer.post_quant_conv.weight.dtype != torch.float32:
        tokenizer = copy.deepcopy(tokenizer).float()
    found = encode_dataset(tokenizer, dataset, progress=progress)
    return torch.from_numpy(found.tokens[0].astype("int64")), torch.from_numpy(found.labels)


def resolve_classes(pipe: "VARPipeline", text: str) -> list[int]:
    """Turns ``cat,dog,3`` or ``all`` into labels.

    Raises:
        ArgumentError: a class that the model does not know.
    """
    count, names = pipe.transformer.config.num_classes, pipe.class_names or ()
    if text == "all":
        return list(range(count))
    labels = []
    for part in text.split(","):
        if part in names:
            labels.append(names.index(part))
        elif part.isdecimal() and int(part) < count:
            labels.append(int(part))
        else:
            known = f"one of {', '.join(names)}, or " if names and len(names) <= 20 else ""
            raise ArgumentError(f"--classes: expected {known}a number from 0 to {count - 1}, or all, got {part!r}")
    return labels
