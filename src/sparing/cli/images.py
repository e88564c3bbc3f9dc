"""Opening the images that a command names: CIFAR-10, a user's own folder, or the digits of scikit-learn."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sparing.errors import ArgumentError
from sparing.runs.progress import Progress

if TYPE_CHECKING:
    from sparing.vision import ImageDataset

__all__ = ["DIGITS", "load_data", "load_split"]

DIGITS = "digits"
"""Names them."""

_CIFAR10_FILES = tuple(
    f"{batch}{suffix}" for batch in ("data_batch_1", "test_batch") for suffix in (".bin", ".npz", "")
)


def load_data(
    folder: str, *, split: Literal["train", "test"], size: int, progress: Progress | None = None
) -> "ImageDataset":
    """Loads CIFAR-10 if its files are in a folder, else the folder's own pictures, one sub-folder a class.

    Args:
        folder: where the images are.
        split: of CIFAR-10; a user's folder is taken whole.
        size: side in pixels; 32 for CIFAR-10.
        progress: called with the images loaded so far.

    Raises:
        ArgumentError, FormatError, MissingExtraError: as the loaders, and CIFAR-10 for a model of other images.
    """
    from sparing.vision import load_cifar10, load_image_folder

    if not _is_cifar10(folder):
        return load_image_folder(folder, size=size, progress=progress)
    data = load_cifar10(folder, split=split, progress=progress)
    if data.images.shape[2] != size:
        raise ArgumentError(
            f"{folder}: CIFAR-10 has images of 32×32, but {size}×{size} are needed; choose the model's size so, or "
            "name a folder of pictures, which are scaled"
        )
    return data


def load_split(
    source: str, *, size: int, test_share: float, progress: Progress | None = None
) -> "tuple[ImageDataset, ImageDataset]":
    """Loads images for training and images for tests, never the same.

    Args:
        source: as of :func:`load_data`, or ``"digits"``, those of scikit-learn.
        size: side in pixels.
        test_share: of a user's folder, what is for tests; always the same pictures.
        progress: called with the images loaded so far.

    Raises:
        ArgumentError, FormatError, MissingExtraError, OSError: the data cannot be had, or are too few.
    """
    import numpy as np

    from sparing.vision import load_digits

    if source == DIGITS:
        return load_digits(size)
    whole = load_data(source, split="train", size=size, progress=progress)
    if _is_cifar10(source):
        return whole, load_data(source, split="test", size=size, progress=progress)
    order, count = np.random.default_rng(0).permutation(len(whole)), int(len(whole) * test_share)
    if count < 1:
        raise ArgumentError(
            f"--data: expected enough pictures to keep {test_share:.0%} of them for tests, got {len(whole)}"
        )
    return whole.subset(order[count:]), whole.subset(order[:count])


def _is_cifar10(folder: str) -> bool:
    places = (Path(folder), Path(folder) / "cifar-10-batches-bin")
    return any((place / name).is_file() for place in places for name in _CIFAR10_FILES)
