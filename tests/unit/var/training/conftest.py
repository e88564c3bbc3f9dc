"""Pictures and tokens that a very small model learns at once."""

import numpy as np
import pytest


@pytest.fixture
def stripes():
    """24 images of 16 × 16 in five classes: how dark they are, and stripes that are not their own mirror image."""
    pytest.importorskip("torch", reason="needs sparing[vision]")
    from sparing.vision import ImageDataset

    random = np.random.default_rng(0)
    labels = np.arange(24) % 5
    images = random.integers(0, 30, (24, 3, 16, 16)) + 40 * labels[:, None, None, None]
    images[:, 0, :, ::3] += 60
    images[:, 1] += 4 * np.arange(16)
    names = ("a", "b", "c", "d", "e")
    return ImageDataset(images.astype(np.uint8), labels.astype(np.int64), class_names=names, name="stripes")


@pytest.fixture
def tokens():
    """20 images as tokens that follow from their class."""
    pytest.importorskip("torch", reason="needs sparing[vision]")
    pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")
    from sparing.var.training.transformer import TokenDataset

    labels = np.arange(20) % 5
    found = (np.arange(30)[None, None] * 7 + labels[None, :, None] * 3 + np.arange(2)[:, None, None]) % 24
    return TokenDataset(found.astype(np.uint16), labels.astype(np.int64), "sums")
