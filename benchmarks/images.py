"""CIFAR-10 for the trainings, or noise in its place for tiny runs."""

from __future__ import annotations

import argparse

import numpy as np

from sparing.errors import ArgumentError
from sparing.vision import ImageDataset, load_cifar10


def open_images(options: argparse.Namespace, *, tiny: int = 64) -> tuple[ImageDataset, ImageDataset]:
    """Images for training and for tests; of tiny runs so many."""
    if options.tiny:
        generator = np.random.default_rng(0)
        images = generator.integers(0, 256, (tiny, 3, 32, 32), np.uint8)
        whole = ImageDataset(images, np.arange(tiny) % 10, tuple("0123456789"), "noise")
        return whole, whole.subset(range(tiny // 4))
    if options.data is None:
        raise ArgumentError("--data: expected CIFAR-10's folder, or SPARING_DATA in the environment")
    return load_cifar10(options.data, split="train"), load_cifar10(options.data, split="test")
