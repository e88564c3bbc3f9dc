"""What `sparing nas search` and `train` share: options, faults, images, and what Ctrl-C says."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sparing.cli.var_options import load_data
from sparing.errors import ArgumentError, MissingExtraError
from sparing.runs.progress import Progress

if TYPE_CHECKING:
    from sparing.faults import FaultModel
    from sparing.vision import ImageDataset

__all__ = ["open_fault", "open_images", "preset_of", "resumable", "run_options"]

_DIGITS, _EVERY = "digits", 3
_SIDE, _DIGIT_SIDE = 32, 8
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
    parser.add_argument("--images", type=int, metavar="N", help="training images to use at most (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn by chance (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on with what is in --out, if anything is")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, ...")


def preset_of(arguments: argparse.Namespace) -> str:
    """The preset that was asked for, or what fits the data."""
    return arguments.preset or ("demo" if arguments.data == _DIGITS else "cpu")


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
    order = np.random.default_rng(0)  # which images is no matter of the seed
    if arguments.data == _DIGITS:
        train, test = _digits(image_size)
    else:
        size = max(_SIDE, image_size)
        train = load_data(arguments.data, split="train", size=size, progress=progress)
        test = load_data(arguments.data, split="test", size=size, progress=progress)
        if np.array_equal(train.images, test.images):
            shuffled = order.permutation(len(train))
            count = int(len(train) * _TEST_SHARE)
            if count < 1:
                raise ArgumentError(f"--data: expected enough pictures to keep a fifth for tests, got {len(train)}")
            train, test = train.subset(shuffled[count:]), train.subset(shuffled[:count])
    if arguments.images is not None and arguments.images < len(train):
        train = train.subset(np.sort(order.permutation(len(train))[: arguments.images]))
    return train, test


def _digits(image_size: int) -> "tuple[ImageDataset, ImageDataset]":
    import numpy as np

    from sparing.vision import ImageDataset

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="text", purpose="--data digits") from error
    if image_size % _DIGIT_SIDE:
        raise ArgumentError(f"--image-size: expected a multiple of {_DIGIT_SIDE} for digits, got {image_size}")
    found, factor = load_digits(), image_size // _DIGIT_SIDE
    small = np.minimum(found.images * 16, 255).astype(np.uint8)
    images = np.repeat(small.repeat(factor, axis=1).repeat(factor, axis=2)[:, None], 3, axis=1)
    dataset = ImageDataset(images, found.target.astype(np.int64), tuple(map(str, range(10))), "digits (scikit-learn)")
    is_test = np.arange(len(dataset)) % _EVERY == 0
    return dataset.subset(np.flatnonzero(~is_test)), dataset.subset(np.flatnonzero(is_test))


@contextlib.contextmanager
def resumable(what: str) -> Iterator[None]:
    """Stands around a run; says what is kept when Ctrl-C comes."""
    try:
        yield
    except KeyboardInterrupt:
        message = f"interrupted; the {what} so far is kept: the same command with --resume goes on from there"
        raise KeyboardInterrupt(message) from None
