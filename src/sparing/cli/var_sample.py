"""`sparing var sample`: draws images of classes as one picture."""

import argparse
from pathlib import Path
from typing import Any

from sparing.cli import render
from sparing.cli.options import add_command
from sparing.cli.var_options import open_pipeline, resolve_classes, run_options, sampling_options, set_precision_
from sparing.errors import ArgumentError

__all__ = ["add_commands"]

_LARGE = 96
_SCALE = 3


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "sample", _sample, "draw images of classes as a PNG grid, one row a class")
    parser.add_argument("folder", metavar="DIR", help="a saved model, or hf://OWNER/NAME")
    parser.add_argument("--classes", default="all", metavar="cat,dog,3", help="names or numbers, or all (default)")
    parser.add_argument("--num", type=int, default=8, metavar="N", help="images a class (default: 8)")
    parser.add_argument("--out", required=True, metavar="FILE.png", help="the picture to write")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images drawn at once (default: 64)")
    parser.add_argument("--compile", action="store_true", help="fewer launches; pays on a GPU, for many batches")
    sampling_options(parser)
    run_options(parser)


def _sample(arguments: argparse.Namespace) -> None:
    if arguments.num < 1 or arguments.batch_size < 1:
        raise ArgumentError(f"--num, --batch-size: expected 1 or more, got {arguments.num}, {arguments.batch_size}")
    out = Path(arguments.out)
    if not out.parent.is_dir():
        raise ArgumentError(f"--out: the folder {str(out.parent)!r} does not exist")
    import numpy as np
    import torch

    from sparing.var import image_grid, save_png

    pipe = open_pipeline(arguments)
    set_precision_(pipe, arguments.precision)
    if arguments.compile:
        pipe.compile_()
    labels = torch.tensor(resolve_classes(pipe, arguments.classes)).repeat_interleave(arguments.num)
    # One generator for all batches: images depend on the seed and on the size of the batches alone.
    generator = torch.Generator(pipe.device).manual_seed(arguments.seed)
    images, latency_s, peaks = [], 0.0, []
    with render.progress_bars() as progress:
        for part in labels.split(arguments.batch_size):
            drawn = pipe(
                part,
                guidance_scale=arguments.guidance,
                top_k=arguments.top_k,
                top_p=arguments.top_p,
                generator=generator,
            )
            images.append(drawn.images.numpy())
            latency_s += drawn.latency_s
            peaks += [] if drawn.peak_bytes is None else [drawn.peak_bytes]
            progress("drawing", sum(map(len, images)), len(labels))
    stacked = np.concatenate(images)
    save_png(out, image_grid(stacked, arguments.num, scale=_SCALE if stacked.shape[2] < _LARGE else 1))
    answer = {
        "file": arguments.out,
        "num_images": len(labels),
        "latency_s": latency_s,
        "peak_bytes": max(peaks, default=None),
    }
    if arguments.json:
        render.print_json(answer)
    else:
        memory = "" if answer["peak_bytes"] is None else f", at most {answer['peak_bytes'] / 1e6:,.0f} MB in use"
        render.print_line(f"{arguments.out}: {len(labels)} images in {latency_s:.2f} s{memory}")
