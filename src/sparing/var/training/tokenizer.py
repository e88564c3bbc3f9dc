"""Trains the tokenizer: reconstruction, likeness of features, the quantizer's loss, and codes that stay in use."""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sparing.errors import ArgumentError
from sparing.runs.progress import Progress
from sparing.var.quantizer import MultiScaleQuantizer
from sparing.var.training.loop import TrainingConfig, TrainingResult, train_
from sparing.var.vqvae import VQVAE
from sparing.vision.augment import EpochSampler, random_flip, stream_generator, to_float
from sparing.vision.datasets import ImageDataset

__all__ = ["TokenizerTrainingConfig", "train_tokenizer_"]

_HIT_DECAY = 0.99
_DEAD_SHARE = 0.03


class TokenizerTrainingConfig(TrainingConfig):
    """How the tokenizer is trained.

    Attributes:
        feature_weight: weight of the distance between features of image and reconstruction.
        revive_every: steps between searches for codes that fell out of use; they become vectors of the batch at hand.
            None after two thirds of the steps, so that the codes settle.
    """

    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    revive_every: Annotated[int, Field(ge=1)] = 50


def train_tokenizer_(
    model: VQVAE,
    dataset: ImageDataset,
    *,
    config: TokenizerTrainingConfig,
    features: Callable[[Tensor], Sequence[Tensor]] | None = None,
    checkpoint_folder: str | os.PathLike[str] | None = None,
    checkpoint_every_s: float = 120.0,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains a tokenizer in place on images, mirrored at random.

    Args:
        model: the tokenizer, on the device to train on.
        dataset: images of the model's size.
        config: how.
        features: gives feature maps (B, c, h, w) of images (B, 3, side, side) in [−1, 1], as a classifier's stages do;
            their distance keeps what people look at. None leaves it out.
        checkpoint_folder: where to save and whence to resume.
        checkpoint_every_s: least time between checkpoints.
        progress: called with ``("training", done, steps)``.

    Returns:
        The history (loss, pixel, feature and quantizer parts, share of codes in use) and the averaged weights.

    Raises:
        ArgumentError: images of another size, or fewer than a batch.
        NonFiniteError, ConfigError, FormatError: as :func:`~sparing.var.training.loop.train_`.
    """
    side = model.config.image_size
    if dataset.images.shape[2:] != (side, side):
        raise ArgumentError(f"dataset: expected images of {side}×{side} pixels, got {dataset.images.shape[2:]}")
    device = next(model.parameters()).device
    sampler = EpochSampler(len(dataset), config.batch_size, seed=config.seed)
    images = torch.from_numpy(dataset.images)
    quantizer = model.quantize

    def loss_at(step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        generator = stream_generator(config.seed, 1, step)
        batch = to_float(random_flip(images[sampler.indices(step)], generator), device)
        if step % config.revive_every == 0 and 3 * step < 2 * config.steps:
            _revive_(quantizer, model, batch, generator)
        reconstruction, quantized = model(batch)
        _count_(quantizer, quantized.tokens)
        difference = reconstruction.float() - batch
        pixel = difference.abs().mean() + difference.square().mean()
        parts = {"pixel": pixel, "quantizer": quantized.loss, "codes_used": _share_used(quantizer)}
        loss = pixel + quantized.loss
        if features is not None:
            parts["feature"] = _feature_distance(features(reconstruction), features(batch))
            loss = loss + config.feature_weight * parts["feature"]
        return loss, parts

    return train_(
        model,
        loss_at,
        config=config,
        kind="sparing.var.tokenizer-training",
        described={
            "tokenizer": model.config.model_dump(mode="json"),
            "data": {
                "name": dataset.name,
                "images": len(dataset),
                "crc32": zlib.crc32(np.ascontiguousarray(dataset.images).data),
            },
            "features": features is not None,
        },
        checkpoint_folder=checkpoint_folder,
        checkpoint_every_s=checkpoint_every_s,
        progress=progress,
    )


def _feature_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of feature vectors of length 1, averaged over the maps (as LPIPS without its weights)."""
    distances = [
        (F.normalize(a.float(), dim=1) - F.normalize(b.detach().float(), dim=1)).square().sum(1).mean()
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.stack(distances).mean()


@torch.no_grad()
def _count_(quantizer: MultiScaleQuantizer, tokens: Sequence[Tensor]) -> None:
    hits = quantizer.ema_vocab_hit_SV
    for scale, found in enumerate(tokens):
        counts = torch.bincount(found.flatten(), minlength=hits.shape[1])
        hits[scale].lerp_(counts.to(hits.dtype), 1 - _HIT_DECAY)


def _dead(quantizer: MultiScaleQuantizer) -> Tensor:
    hits = quantizer.ema_vocab_hit_SV.sum(0)
    return hits <= _DEAD_SHARE * hits.mean()


def _share_used(quantizer: MultiScaleQuantizer) -> Tensor:
    return 1 - _dead(quantizer).float().mean()


@torch.no_grad()
def _revive_(quantizer: MultiScaleQuantizer, model: VQVAE, batch: Tensor, generator: torch.Generator) -> None:
    """Makes codes that are out of use vectors that the scales have to code in this batch, drawn evenly over scales."""
    dead = _dead(quantizer).nonzero().flatten()
    if not len(dead):
        return
    with torch.autocast(batch.device.type, enabled=False):
        vectors = quantizer.residual_vectors(model.latent(batch).float())
    scales = torch.randint(len(vectors), (len(dead),), generator=generator)
    for scale, found in enumerate(vectors):
        rows = dead[(scales == scale).to(dead.device)]
        picks = torch.randint(len(found), (len(rows),), generator=generator).to(found.device)
        quantizer.embedding.weight[rows] = found[picks].to(quantizer.embedding.weight.dtype)
    # They count as used until the averages say otherwise.
    quantizer.ema_vocab_hit_SV[:, dead] = quantizer.ema_vocab_hit_SV.mean(1, keepdim=True)
