"""Trains the transformer: cross-entropy over the tokens of all scales, the right tokens of earlier scales given."""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sparing.errors import ArgumentError, ConfigError, ShapeError
from sparing.runs.progress import Progress
from sparing.var.training.loop import TrainingConfig, TrainingResult, train_
from sparing.var.transformer import VARTransformer
from sparing.var.vqvae import VQVAE
from sparing.vision.augment import EpochSampler, stream_generator, to_float
from sparing.vision.datasets import ImageDataset

__all__ = ["TokenDataset", "TransformerTrainingConfig", "encode_dataset", "train_transformer_"]

_MIRRORS = 2


class TransformerTrainingConfig(TrainingConfig):
    """How the transformer is trained; its settings say how often the class is left out.

    Attributes:
        label_smoothing: share of the target spread over all codes.
    """

    label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, eq=False)
class TokenDataset:
    """Images as tokens, each also mirrored.

    Attributes:
        tokens: (2, n, L) uint16: as they are, and mirrored.
        labels: (n,) int64.
        name: of the images.
    """

    tokens: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.int64]
    name: str


@torch.inference_mode()
def encode_dataset(
    tokenizer: VQVAE, dataset: ImageDataset, *, batch_size: int = 250, progress: Progress | None = None
) -> TokenDataset:
    """Encodes images and their mirror images once, so that training need not.

    Args:
        tokenizer: trained, on any device.
        dataset: images of its size.
        batch_size: images at once.
        progress: called with ``("encoding", done, images)``.

    Returns:
        Their tokens; 2·L bytes an image and mirror image each.
    """
    device = next(tokenizer.parameters()).device
    tokens = np.empty((_MIRRORS, len(dataset), sum(p * p for p in tokenizer.config.patch_nums)), dtype=np.uint16)
    for begin in range(0, len(dataset), batch_size):
        images = to_float(torch.from_numpy(dataset.images[begin : begin + batch_size]), device)
        for mirror in range(_MIRRORS):
            found = torch.cat(tokenizer.encode(images.flip(3) if mirror else images), 1)
            tokens[mirror, begin : begin + batch_size] = found.cpu().numpy().astype(np.uint16)
        if progress is not None:
            progress("encoding", min(begin + batch_size, len(dataset)), len(dataset))
    return TokenDataset(tokens, dataset.labels, dataset.name)


def train_transformer_(
    model: VARTransformer,
    tokenizer: VQVAE,
    data: TokenDataset,
    *,
    config: TransformerTrainingConfig,
    checkpoint_folder: str | os.PathLike[str] | None = None,
    checkpoint_every_s: float = 120.0,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains a transformer in place.

    Args:
        model: the transformer, on the device to train on.
        tokenizer: the one that made the tokens, on the same device; unchanged.
        data: from :func:`encode_dataset`.
        config: how.
        checkpoint_folder: where to save and whence to resume.
        checkpoint_every_s: least time between checkpoints.
        progress: called with ``("training", done, steps)``.

    Returns:
        The history (loss, share of right tokens) and the averaged weights.

    Raises:
        ShapeError: tokens of another number than the model's scales have, or than there are labels.
        ArgumentError: labels or tokens that the model has no embedding for.
        ConfigError: a tokenizer of other scales or codes.
        NonFiniteError, ConfigError, FormatError: as :func:`~sparing.var.training.loop.train_`.
    """
    settings = model.config
    _check(data, model, tokenizer)
    device = next(model.parameters()).device
    sampler = EpochSampler(len(data.labels), config.batch_size, seed=config.seed)
    tokens_of, labels_of = torch.from_numpy(data.tokens.astype(np.int32)), torch.from_numpy(data.labels)
    quantizer = tokenizer.quantize

    def loss_at(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        generator = stream_generator(config.seed, 1, step)
        rows = sampler.indices(step)
        mirrors = torch.randint(_MIRRORS, (len(rows),), generator=generator)
        dropped = torch.rand(len(rows), generator=generator) < settings.class_dropout
        labels = torch.where(dropped, settings.num_classes, labels_of[rows]).to(device)
        tokens = tokens_of[mirrors, rows].long().to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            inputs = quantizer.next_inputs(tokens.split(settings.scale_sizes, 1))
        logits = model(labels, inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), label_smoothing=config.label_smoothing)
        return loss, {"right": (logits.detach().argmax(-1) == tokens).float().mean()}

    return train_(
        model,
        loss_at,
        config=config,
        kind="sparing.var.transformer-training",
        described={
            "transformer": settings.model_dump(mode="json"),
            "data": {
                "name": data.name,
                "images": len(data.labels),
                "crc32": zlib.crc32(
                    np.ascontiguousarray(data.labels).data, zlib.crc32(np.ascontiguousarray(data.tokens).data)
                ),
            },
        },
        checkpoint_folder=checkpoint_folder,
        checkpoint_every_s=checkpoint_every_s,
        progress=progress,
    )


def _check(data: TokenDataset, model: VARTransformer, tokenizer: VQVAE) -> None:
    ours, theirs = model.config, tokenizer.config
    if (ours.patch_nums, ours.z_channels) != (theirs.patch_nums, theirs.z_channels):
        raise ConfigError(
            f"tokenizer: expected patch_nums {ours.patch_nums} and codes of {ours.z_channels}, got "
            f"{theirs.patch_nums} and {theirs.z_channels}"
        )
    expected = (_MIRRORS, len(data.labels), ours.num_tokens)
    if data.tokens.shape != expected or data.labels.ndim != 1:
        raise ShapeError(f"data: expected tokens {expected} for {data.labels.shape} labels, got {data.tokens.shape}")
    codes = min(ours.vocab_size, theirs.vocab_size)
    if not len(data.labels) or data.labels.min() < 0 or data.labels.max() >= ours.num_classes:
        raise ArgumentError(f"data: expected labels from 0 to {ours.num_classes - 1}, got {np.unique(data.labels)}")
    if data.tokens.max() >= codes:
        raise ArgumentError(f"data: expected tokens below {codes}, got up to {data.tokens.max()}")
