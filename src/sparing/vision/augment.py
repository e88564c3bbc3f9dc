"""Batches for training: their order, random flips and crops, and the step from bytes to numbers."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparing.errors import ArgumentError, DtypeError, ShapeError

__all__ = ["EpochSampler", "random_crop", "random_flip", "stream_generator", "to_float"]

_ORDER = 0  # the sampler's stream; classifier.py has the others


def stream_generator(seed: int, *stream: int) -> torch.Generator:
    """Gives a generator of its own to each numbered place in a run, so that no state has to be saved.

    Args:
        seed: the run's seed, 0 or more.
        *stream: what the generator is for, for example a purpose and a step, each 0 or more.

    Returns:
        A CPU generator; the same numbers give the same one.

    Raises:
        ArgumentError: a negative number.
    """
    if min(seed, *stream, 0) < 0:
        raise ArgumentError(f"seed, stream: expected integers of 0 or more, got {(seed, *stream)}")
    (mixed,) = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed) >> 1)


def random_flip(images: Tensor, generator: torch.Generator, *, probability: float = 0.5) -> Tensor:
    """Mirrors each image left to right with a probability.

    Args:
        images: `n × c × h × w` uint8 tensor.
        generator: decides, image by image.
        probability: of a flip, 0 to 1.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        DtypeError: not a uint8 tensor.
        ShapeError: not four axes.
        ArgumentError: a probability out of range.
    """
    _check_images(images)
    if not 0 <= probability <= 1:
        raise ArgumentError(f"probability: expected 0 to 1, got {probability}")
    flip = torch.rand(len(images), generator=generator, device=generator.device) < probability
    return torch.where(flip.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_crop(
    images: Tensor,
    generator: torch.Generator,
    *,
    padding: int = 4,
    mode: Literal["reflect", "zero"] = "reflect",
) -> Tensor:
    """Pads each image on all sides and cuts its size out at a random place.

    Args:
        images: `n × c × h × w` uint8 tensor.
        generator: draws each image's place, all (2 · padding + 1)² equally likely.
        padding: pixels on each side, 0 or more; with ``"reflect"`` less than `h` and `w`.
        mode: pad with the mirrored image (without its edge), or with zeros (black).

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        DtypeError: not a uint8 tensor.
        ShapeError: not four axes.
        ArgumentError: a padding out of range, or another mode.
    """
    _check_images(images)
    n, channels, height, width = images.shape
    if mode not in ("reflect", "zero"):
        raise ArgumentError(f"mode: expected 'reflect' or 'zero', got {mode!r}")
    if padding < 0 or (mode == "reflect" and padding >= min(height, width)):
        raise ArgumentError(
            f"padding: expected 0 or more, and with 'reflect' less than {min(height, width)}, got {padding}"
        )
    device = images.device
    shift = torch.randint(2 * padding + 1, (2, n), generator=generator, device=generator.device).to(device)
    rows = shift[0, :, None] + torch.arange(height, device=device)
    columns = shift[1, :, None] + torch.arange(width, device=device)
    if mode == "zero":
        source = torch.nn.functional.pad(images, (padding,) * 4)
    else:
        source, rows, columns = images, _reflected(rows - padding, height), _reflected(columns - padding, width)
    return source[
        torch.arange(n, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def to_float(images: "Tensor | npt.NDArray[np.uint8]", device: "torch.device | str | None" = None) -> Tensor:
    """Turns bytes into numbers: 0 becomes −1 and 255 becomes 1.

    Args:
        images: uint8 tensor or array of any shape.
        device: where the result goes; None leaves it where the images are.

    Returns:
        A float32 tensor of the same shape, in [−1, 1].

    Raises:
        DtypeError: not uint8.
    """
    tensor: object = torch.from_numpy(np.array(images)) if isinstance(images, np.ndarray) else images
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8:
        raise DtypeError(f"images: expected uint8, got {getattr(tensor, 'dtype', type(tensor).__name__)}")
    return tensor.to(device).float().div_(127.5).sub_(1.0)


class EpochSampler:
    """Which images a step trains on: each epoch a permutation of its own, whose last partial batch is dropped.

    The answer depends on the arguments and the step alone, so that a run that goes on needs nothing but its step.

    Args:
        num_items: how many images there are, 1 or more.
        batch_size: images a step, 1 to `num_items`.
        seed: 0 or more; the permutation of epoch `e` is drawn from (seed, e).

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> sampler = EpochSampler(10, 4, seed=0)
        >>> sampler.steps_per_epoch, sampler.indices(5).shape
        (2, torch.Size([4]))
    """

    def __init__(self, num_items: int, batch_size: int, *, seed: int) -> None:
        if not 1 <= batch_size <= num_items:
            raise ArgumentError(f"batch_size: expected 1 to the {num_items} images there are, got {batch_size}")
        if seed < 0:
            raise ArgumentError(f"seed: expected 0 or more, got {seed}")
        self._num_items = num_items
        self._batch_size = batch_size
        self._seed = seed
        self._cached: tuple[int, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """How many whole batches an epoch has."""
        return self._num_items // self._batch_size

    def indices(self, step: int) -> Tensor:
        """Gives the batch of a step.

        Args:
            step: counted from 0 over all epochs.

        Returns:
            `batch_size` distinct int64 indices in [0, num_items), on the CPU.

        Raises:
            ArgumentError: a negative step.
        """
        if step < 0:
            raise ArgumentError(f"step: expected 0 or more, got {step}")
        epoch, place = divmod(step, self.steps_per_epoch)
        cached = self._cached
        if cached is None or cached[0] != epoch:
            generator = stream_generator(self._seed, _ORDER, epoch)
            cached = epoch, torch.randperm(self._num_items, generator=generator, device="cpu")
            self._cached = cached
        return cached[1][place * self._batch_size : (place + 1) * self._batch_size].clone()


def _check_images(images: object) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise DtypeError(f"images: expected a uint8 tensor, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4:
        raise ShapeError(f"images: expected n × c × h × w, got shape {tuple(images.shape)}")


def _reflected(index: Tensor, length: int) -> Tensor:
    """Maps −1 to 1 and `length` to `length` − 2, and so on."""
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
