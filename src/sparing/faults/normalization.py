"""Batch normalizations measured on the chip: means and variances under its faults, without labels and without training.

Faults that last shift what goes into a normalization, for all images alike. Measured anew behind the faulty layers, the
statistics take that shift out; a batch or two of images is enough.

Source: V. Joshi et al., *Accurate deep neural network inference using computational phase-change memory*, Nature
Communications 11, 2020 (adaptive batch normalization statistics, AdaBS), which updates with a momentum; here the
averages of the given images alone count.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparing.errors import ArgumentError, NonFiniteError
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
            on. Each normalization measures all its inputs together, over all batches; on the way each batch is
            normalized by its own statistics.

    Raises:
        ArgumentError: no batch normalization with running statistics that runs, no images, or a compiled model.
        DtypeError, ShapeError: images that are no batch of 2 or more.
        NonFiniteError: NaN or infinity in them, or in what a normalization gets.

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
        moments = _measured(model, norms, batches)
        if not any(one.count for one in moments):
            raise ArgumentError(
                "model: expected at least one batch normalization with running statistics that runs, got none"
            )
        if not all(bool(one.mean.isfinite().all() and one.squares.isfinite().all()) for one in moments if one.count):
            raise NonFiniteError("model: expected finite inputs of batch normalizations, got NaN or infinity")
    finally:
        _restore_(norms, before)
    for norm, one in zip(norms, moments, strict=True):
        if one.count:  # it ran
            _write_(norm, one, len(batches))


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


class _Moments:
    """A hook before a normalization: number, mean and sum of squared distances of all its inputs, channel by channel.

    In float64 over batches: one batch's sums are float32, or better where the inputs are.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        x = inputs[0] if inputs else named["input"]
        x = x if x.dtype == torch.float64 else x.float()
        count = x.numel() // x.shape[1]
        found, mean = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
        mean, squares = mean.double(), found.double() * count
        # T. Chan, G. Golub and R. LeVeque, *Updating formulae and a pairwise algorithm*, 1979.
        total, away = self.count + count, mean - self.mean.to(mean.device)
        self.squares = self.squares.to(mean.device) + squares + away.square() * (self.count * count / total)
        self.mean = self.mean.to(mean.device) + away * (count / total)
        self.count = total


@torch.no_grad()
def _measured(model: nn.Module, norms: Sequence[_BatchNorm], batches: Sequence[Tensor]) -> list[_Moments]:
    moments = [_Moments() for _ in norms]
    with evaluating(model), ExitStack() as undo:
        for norm, one in zip(norms, moments, strict=True):
            undo.callback(norm.register_forward_pre_hook(one, with_kwargs=True).remove)
            norm.training = True  # only the normalization: ranges of features, which may be its submodule, stay
        for batch in batches:
            model(batch)
    return moments


@torch.no_grad()
def _write_(norm: _BatchNorm, found: _Moments, num_batches: int) -> None:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise AssertionError("unreachable: these have statistics")
    mean.copy_(found.mean)
    var.copy_(found.squares / max(found.count - 1, 1))
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.fill_(num_batches)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def _statistics(norms: Sequence[_BatchNorm]) -> list[dict[str, Tensor]]:
    return [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]


@torch.no_grad()
def _restore_(norms: Sequence[_BatchNorm], before: Sequence[dict[str, Tensor]]) -> None:
    for norm, buffers in zip(norms, before, strict=True):
        for name, buffer in buffers.items():
            norm.get_buffer(name).copy_(buffer)
