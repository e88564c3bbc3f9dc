"""1,797 small hand-written digits that come with scikit-learn: real images where nothing may be fetched."""

import numpy as np

from sparing.errors import ArgumentError, MissingExtraError
from sparing.vision.datasets import ImageDataset

__all__ = ["load_digits"]

_SIDE, _TEST_EVERY = 8, 3


def load_digits(size: int = 32) -> tuple[ImageDataset, ImageDataset]:
    """Loads them, every third for tests.

    Args:
        size: side of the images in pixels, a multiple of the 8 that they were scanned with.

    Returns:
        1,198 images for training and 599 for tests, gray in three channels.

    Raises:
        ArgumentError: another size.
        MissingExtraError: scikit-learn is not installed.
    """
    if size < _SIDE or size % _SIDE:
        raise ArgumentError(f"size: expected a multiple of {_SIDE} for digits, got {size}")
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="text", purpose="the digits") from error
    found = datasets.load_digits()
    small = np.minimum(found.images * 16, 255).astype(np.uint8)  # 0 to 16 as they come
    images = np.repeat(small.repeat(size // _SIDE, axis=1).repeat(size // _SIDE, axis=2)[:, None], 3, axis=1)
    name = f"digits (scikit-learn, {size}×{size})"
    dataset = ImageDataset(images, found.target.astype(np.int64), tuple(map(str, range(10))), name)
    is_test = np.arange(len(dataset)) % _TEST_EVERY == 0
    return dataset.subset(np.flatnonzero(~is_test)), dataset.subset(np.flatnonzero(is_test))
