"""What `sparing nas search` and `train` share: options, faults, images, and what Ctrl-C says."""

import argparse
from typing import TYPE_CHECKING

from sparing.cli.images import DIGITS, load_split
from sparing.errors import ArgumentError
from sparing.runs.progress import Progress

if TYPE_CHECKING:
    from sparing.faults import FaultModel
    from sparing.vision import ImageDataset

__all__ = ["open_fault", "open_images", "preset_of", "run_options"]

_SIDE = 32
_TEST_SHARE = 0.2
_DEFAULT_FAULT = {"feature": "bit-bias:p_m=1e-4", "weight": "stuck-at:rate=0.08,form=bit"}
PRESETS = ("cpu", "published", "demo")


def run_options(parser: argparse.ArgumentParser) -> None:
    """Adds data, folder, faults, sizes, and how to run."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|digits",
        help="CIFAR-10, a folder of pictures with one sub-folder a class, or the digits of scikit-learn",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--fault",
        metavar="KIND:FIELD=X,...",
        help="what the network must bear, for example bit-bias:p_m=1e-4 or stuck-at:form=bit (default: of features, "
        f"{_DEFAULT_FAULT['feature']}; of weights, {_DEFAULT_FAULT['weight']})",
    )
    parser.add_argument("--p-m", type=float, metavar="P", help="of --fault bit-bias: probability of a product")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="sizes: cpu for two cores (default), published for an accelerator, demo for seconds (default for digits)",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="over the training images (default: the preset's)")
    parser.add_argument("--channels", type=int, metavar="C", help="of the first cells (default: the preset's)")
    parser.add_argument("--cells", type=int, metavar="N", help="of the network (default: the preset's)")
    parser.add_argument("--image-size", type=int, metavar="N", help="side in pixels (default: the preset's)")
    parser.add_argument(
        "--loss-share",
        type=float,
        metavar="A",
        help="part of the loss under faults; 0 trains without faults (default: the preset's)",
    )
    parser.add_argument(
        "--weight-limit",
        type=float,
        metavar="X",
        help="keep weights within this while networks are trained, which makes stuck cells and flipped bits small; "
        "for example 0.125 (default: no limit)",
    )
    parser.add_argument("--images", type=int, metavar="N", help="training images to use at most (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn by chance (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out, if anything is")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, ...")


def preset_of(arguments: argparse.Namespace) -> str:
    """The preset that was asked for, or what fits the data."""
    return arguments.preset or ("demo" if arguments.data == DIGITS else "cpu")


def open_fault(arguments: argparse.Namespace, space: str | None) -> "FaultModel":
    """Reads the faults; without any those that were published for the space.

    Raises:
        ArgumentError: a probability beside another fault than bit-bias.
        ConfigError: not a model of faults.
    """
    from sparing.faults import parse_fault

    text = arguments.fault or _DEFAULT_FAULT[space or "feature"]
    if arguments.p_m is not None:
        kind = text.partition(":")[0].strip()
        if kind != "bit-bias" or (arguments.fault and ":" in text):
            raise ArgumentError(f"--p-m: expected with --fault bit-bias alone, got --fault {text}")
        text = f"bit-bias:p_m={arguments.p_m!r}"
    return parse_fault(text)


def open_images(
    arguments: argparse.Namespace, image_size: int, progress: Progress
) -> "tuple[ImageDataset, ImageDataset]":
    """Images for training and for tests, never the same.

    Of a folder of pictures a fifth, always the same one, is for tests.

    Raises:
        ArgumentError, FormatError, MissingExtraError, OSError: the data cannot be had, or are too few.
    """
    import numpy as np

    if arguments.images is not None and arguments.images < 1:
        raise ArgumentError(f"--images: expected at least 1, got {arguments.images}")
    size = image_size if arguments.data == DIGITS else max(_SIDE, image_size)
    train, test = load_split(arguments.data, size=size, test_share=_TEST_SHARE, progress=progress)
    if arguments.images is not None and arguments.images < len(train):
        order = np.random.default_rng(0).permutation(len(train))  # which images is no matter of the seed
        train = train.subset(np.sort(order[: arguments.images]))
    return train, test
