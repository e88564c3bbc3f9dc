"""Batch normalizations measured on the chip: means and variances under its faults, without labels and without training.

Faults that last shift what goes into a normalization, for all images alike. Measured anew behind the faulty layers, the
statistics take that shift out; a batch or two of images is enough.

Source: V. Joshi et al., *Accurate deep neural network inference using computational phase-change memory*, Nature
Communications 11, 2020 (adaptive batch normalization statistics, AdaBS), which updates with a momentum; here the
averages of the given images alone count.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparing.errors import ArgumentError
from sparing.faults.sites import check_model, image_batches
from sparing.runs.modes import evaluating

__all__ = ["MIN_IMAGES", "recalibrate_norms_", "recalibrated_norms"]

MIN_IMAGES = 2
"""Of a batch: one image has no variance over images."""


def recalibrate_norms_(model: nn.Module, images: Tensor | Iterable[Tensor]) -> None:
    """Measures running means and variances of batch normalizations anew, under whatever faults are active.

    For faults that last: inside ``with inject(model, fault_map)``, or :func:`sparing.pim.programmed`, the network that
    results is that chip's own. Weights and ranges of features stay. Afterwards the network without faults is worse than
    before.

    Args:
        model: changed in place; nothing changes on an error.
        images: one batch n × c × h × w of 2 or more images, or several, as the model takes them; not those to measure
            on. Batches count alike.

    Raises:
        ArgumentError: no batch normalization with running statistics that runs, no images, or a compiled model.
        DtypeError, NonFiniteError, ShapeError: images that are no batch of 2 or more, or NaN or infinity in them.

    Example:
        >>> chip = StuckAt(rate=0.08, form="bit").sample(model, seed=7)  # doctest: +SKIP
        >>> with inject(model, chip):  # doctest: +SKIP
        ...     recalibrate_norms_(model, images)
    """
    check_model(model)
    batches = image_batches(images, "images", least=MIN_IMAGES)
    norms = _norms(model)
    before = _statistics(norms)
    try:
        _measure_(model, norms, batches)
        if not any(bool(norm.num_batches_tracked) for norm in norms):
            raise ArgumentError(
                "model: expected at least one batch normalization with running statistics that runs, got none"
            )
    except BaseException:
        _restore_(norms, before)
        raise
    for norm, buffers in zip(norms, before, strict=True):
        if not norm.num_batches_tracked:  # it did not run
            _restore_([norm], [buffers])


@contextmanager
def recalibrated_norms(model: nn.Module, images: Tensor | Iterable[Tensor]) -> Iterator[None]:
    """:func:`recalibrate_norms_` inside a ``with`` block; the statistics from before, bit for bit, behind it."""
    norms = _norms(model)
    before = _statistics(norms)
    try:
        recalibrate_norms_(model, images)
        yield
    finally:
        _restore_(norms, before)


@torch.no_grad()
def _measure_(model: nn.Module, norms: Sequence[_BatchNorm], batches: Sequence[Tensor]) -> None:
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                # Only the normalization: ranges of features, which may be its submodule, stay.
                norm.momentum, norm.training = None, True  # None: the mean of all batches
            for batch in batches:
                model(batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def _statistics(norms: Sequence[_BatchNorm]) -> list[dict[str, Tensor]]:
    return [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]


@torch.no_grad()
def _restore_(norms: Sequence[_BatchNorm], before: Sequence[dict[str, Tensor]]) -> None:
    for norm, buffers in zip(norms, before, strict=True):
        for name, buffer in buffers.items():
            norm.get_buffer(name).copy_(buffer)
