"""What a classifier says about images: logits, accuracy, and the features of its last layer but one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.runs.modes import evaluating
from sparing.runs.precision import Precision, resolve_precision
from sparing.vision.augment import to_float
from sparing.vision.datasets import ImageDataset
from sparing.vision.weights import Classifier

__all__ = ["evaluate_classifier", "logits_and_features", "penultimate_features", "predict"]


def predict(
    model: nn.Module,
    images: "npt.NDArray[np.uint8] | Tensor",
    *,
    batch_size: int = 500,
    precision: Precision = "float32",
) -> Tensor:
    """Classifies images. The model stays on its device and in its mode (training or not); batch norms use their means.

    Args:
        model: maps `n × 3 × h × w` floats in [−1, 1], of its first parameter's type, to logits.
        images: `n × 3 × h × w` uint8 array or tensor, one or more.
        batch_size: images at a time, 1 or more.
        precision: arithmetic; ``"auto"`` takes bfloat16 where the device computes it natively.

    Returns:
        Logits, `n × k` float32 on the CPU, without gradients.

    Raises:
        DtypeError: images that are not uint8.
        ShapeError: other axes, no image, or a model whose answer is not one row an image.
        ArgumentError: a batch size or precision out of range.
    """
    return _in_batches(model, model, images, batch_size, precision, what="logits")


def evaluate_classifier(
    model: nn.Module, dataset: ImageDataset, *, batch_size: int = 500, precision: Precision = "float32"
) -> float:
    """Measures top-1 accuracy.

    Args:
        model: as in :func:`predict`, with one logit a class of `dataset`.
        dataset: images and their classes.
        batch_size: images at a time, 1 or more.
        precision: as in :func:`predict`.

    Returns:
        The share of images whose largest logit is that of their class, 0 to 1. NaN never counts as right.

    Raises:
        ShapeError: the model has another number of classes.
        ArgumentError: a batch size or precision out of range.
    """
    logits = predict(model, dataset.images, batch_size=batch_size, precision=precision)
    if logits.shape[1] != dataset.num_classes:
        raise ShapeError(
            f"model: expected {dataset.num_classes} logits an image for {dataset.name!r}, got {logits.shape[1]}"
        )
    # argmax takes NaN for the largest.
    right = (logits.argmax(1).numpy() == dataset.labels) & ~logits.isnan().any(1).numpy()
    return float(right.mean())


def penultimate_features(
    model: nn.Module,
    images: "npt.NDArray[np.uint8] | Tensor",
    *,
    batch_size: int = 500,
    precision: Precision = "float32",
) -> npt.NDArray[np.float32]:
    """Gives what a classifier's last layer sees, for distances between sets of images.

    Args:
        model: has a method ``penultimate(x)``, as the networks of :mod:`sparing.vision`.
        images: as in :func:`predict`.
        batch_size: images at a time, 1 or more.
        precision: as in :func:`predict`.

    Returns:
        `n × d` float32.

    Raises:
        DtypeError: images that are not uint8.
        ShapeError: other axes, no image, or features that are not one row an image.
        ArgumentError: a model without `penultimate`, or a batch size or precision out of range.
    """
    penultimate = getattr(model, "penultimate", None)
    if not callable(penultimate):
        raise ArgumentError(f"model: expected a method penultimate(x), which {type(model).__name__} does not have")
    return _in_batches(model, penultimate, images, batch_size, precision, what="features").numpy()


def logits_and_features(
    model: Classifier, images: "npt.NDArray[np.uint8] | Tensor"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Gives what a classifier's last layer sees and what it makes of it, in one pass.

    Args:
        model: the classifier.
        images: as in :func:`predict`.

    Returns:
        `n × classes` and `n × d` float32.

    Raises:
        DtypeError: images that are not uint8.
        ShapeError: other axes, or no image.
    """
    features = penultimate_features(model, images)
    with torch.inference_mode():
        logits: Tensor = model.last_linear(torch.from_numpy(features).to(model.last_linear.weight))
    return logits.float().cpu().numpy(), features


def _in_batches(
    model: nn.Module,
    function: Callable[[Tensor], Any],
    images: "npt.NDArray[np.uint8] | Tensor",
    batch_size: int,
    precision: Precision,
    *,
    what: str,
) -> Tensor:
    if batch_size < 1:
        raise ArgumentError(f"batch_size: expected 1 or more, got {batch_size}")
    given: object = images
    if not isinstance(given, np.ndarray | Tensor) or given.dtype not in (np.uint8, torch.uint8):
        raise DtypeError(f"images: expected uint8, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ShapeError(f"images: expected n × 3 × h × w with none of them 0, got shape {tuple(images.shape)}")
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = torch.float32 if parameter is None or not parameter.is_floating_point() else parameter.dtype
    half = resolve_precision(precision, device) == "bfloat16"
    rows = []
    with (
        evaluating(model),
        torch.no_grad(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=half),
    ):
        for start in range(0, len(images), batch_size):
            x = to_float(images[start : start + batch_size], device)
            x = x.to(dtype, memory_format=torch.channels_last)
            out = function(x)
            if not isinstance(out, Tensor):
                raise DtypeError(f"model: expected a tensor of {what}, got {type(out).__name__}")
            if out.ndim != 2 or len(out) != len(x):
                raise ShapeError(f"model: expected {what} of shape ({len(x)}, d), got {tuple(out.shape)}")
            rows.append(out.float().cpu())
    return torch.cat(rows)
