"""Tiny images and models, made on the spot."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost far more than they bring to networks this small."""
    torch = pytest.importorskip("torch", reason="needs sparing[vision]")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def squares():
    """48 images of 12 × 12 in three classes that a small network learns at once: which channel is bright."""
    from sparing.vision import ImageDataset

    random = np.random.default_rng(0)
    labels = np.arange(48) % 3
    images = random.integers(0, 120, (48, 3, 12, 12), np.uint8)
    images[np.arange(48), labels] += 100
    return ImageDataset(images, labels.astype(np.int64), class_names=("red", "green", "blue"), name="squares")
