"""Images for a search: brought to its size, and parted into those that train weights and those that judge."""

import zlib
from typing import Any

import numpy as np

from sparing.errors import ArgumentError
from sparing.vision import ImageDataset

__all__ = ["data_identity", "downscaled", "parted"]

_PARTING = 11


def downscaled(dataset: ImageDataset, size: int) -> ImageDataset:
    """Brings images to `size` × `size` by the mean of whole blocks of pixels.

    Args:
        dataset: n × 3 × h × w.
        size: 1 or more; h and w are the same multiple of it.

    Returns:
        n × 3 × size × size, rounded to whole numbers; the dataset itself if it has that size.

    Raises:
        ArgumentError: images that are not square, or of no multiple of the size.
    """
    n, channels, height, width = dataset.images.shape
    if size < 1 or height != width or height % size:
        raise ArgumentError(
            f"image_size: expected a number that the images' {height} × {width} pixels are a multiple of, got {size}"
        )
    if height == size:
        return dataset
    factor = height // size
    blocks = dataset.images.reshape(n, channels, size, factor, size, factor).astype(np.uint32)
    mean = (blocks.sum(axis=(3, 5)) + factor * factor // 2) // (factor * factor)
    name = f"{dataset.name}, averaged to {size}×{size}"
    return ImageDataset(mean.astype(np.uint8), dataset.labels, dataset.class_names, name)


def parted(dataset: ImageDataset, share: float, *, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Parts images by chance: a share for weights, the others held out.

    Args:
        dataset: at least 2 images.
        share: of the images for weights, between 0 and 1.
        seed: 0 or more.

    Raises:
        ArgumentError: nothing would be left on one side.
    """
    order = np.random.default_rng([seed, _PARTING]).permutation(len(dataset))
    count = round(share * len(dataset))
    if not 0 < count < len(dataset):
        raise ArgumentError(f"dataset: expected enough images to part at a share of {share}, got {len(dataset)}")
    return dataset.subset(order[:count]), dataset.subset(order[count:])


def data_identity(dataset: ImageDataset) -> dict[str, Any]:
    """What must be the same for a search to go on, as JSON."""
    return {
        "name": dataset.name,
        "shape": list(dataset.images.shape),
        "images_crc32": zlib.crc32(np.ascontiguousarray(dataset.images).data),
        "labels_crc32": zlib.crc32(np.ascontiguousarray(dataset.labels).data),
        "class_names": list(dataset.class_names),
    }
