"""How far plans move what a model says next, measured on known images; and the images, drawn by the model itself.

The measure is the divergence of the guided distributions of the next token, in nats, with the right tokens of earlier
scales given: images drawn with the same seed part ways after one flipped token, so comparing those would measure luck.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sparing.errors import ArgumentError, ConfigError, DtypeError, ShapeError
from sparing.runs.progress import Progress
from sparing.var.config import VARConfig
from sparing.var.engine import Engine
from sparing.var.pipeline import VARPipeline
from sparing.var.plan import CompressionPlan
from sparing.var.sampling import MAX_GUIDANCE, SamplingSettings, guide
from sparing.var.transformer import check_labels, is_integer

__all__ = ["CalibrationConfig", "calibration_images", "checked_data", "divergence", "plain_engine", "teacher_inputs"]


class CalibrationConfig(BaseModel):
    """What is tried, and on how much.

    Attributes:
        taus: shares of attention that windows hold, each tried in every layer; empty for no windows.
        search: ``"balanced"``: τ of all the attention of a layer is held, with the fewest pairs of query and key.
            ``"segment"``, as published: each segment of each head holds τ of its own.
        maps: windows are found on the highest (``"union"``) or the mean (``"average"``) of the images' maps.
        threshold, floors: of ``"segment"``, as in :class:`~sparing.var.window_search.WindowSearch`.
        sharing: what is shared across guidance, or None for nothing.
        guidance_scale: at which the distributions are compared.
        num_images: images drawn for calibration, where none are given.
        batch_size: images at once.
        seed: of the drawn images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    taus: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
    search: Literal["balanced", "segment"] = "balanced"
    maps: Literal["union", "average"] = "average"
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.003
    floors: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)] = (
        0.03,
        0.03,
        0.03,
        0.03,
        0.04,
        0.05,
        0.06,
        0.08,
        0.09,
        0.1,
    )
    sharing: Literal["output", "map"] | None = "output"
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] = 1.5
    num_images: Annotated[int, Field(ge=1)] = 64
    batch_size: Annotated[int, Field(ge=1)] = 16
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0


def checked_data(tokens: Tensor, labels: Tensor, model: VARConfig) -> tuple[Tensor, Tensor]:
    """Gives images as a model takes them, and refuses those that do not fit it.

    Args:
        tokens: (n, L) integers.
        labels: (n,) integers.
        model: settings of the model.

    Returns:
        Both as int64.

    Raises:
        ShapeError: other axes, another length, or no images.
        DtypeError: not integers.
        ArgumentError: a code or a class that the model does not have.
    """
    if tokens.ndim != 2 or tokens.shape[1] != model.num_tokens or not len(tokens) or len(tokens) != len(labels):
        raise ShapeError(
            f"data: expected tokens (n, {model.num_tokens}) and n labels, n ≥ 1; "
            f"got {tuple(tokens.shape)} and {tuple(labels.shape)}"
        )
    if not is_integer(tokens):
        raise DtypeError(f"data: expected tokens that are integers, got {tokens.dtype}")
    tokens, labels = tokens.long(), labels.long() if is_integer(labels) else labels
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.vocab_size:
        raise ArgumentError(f"data: expected tokens in 0..{model.vocab_size - 1}, got {low} to {high}")
    check_labels(labels, model.num_classes)
    return tokens, labels


def plain_engine(pipe: VARPipeline) -> Engine:
    """Returns an engine of its own for a pipeline's model, without the plan in force.

    Raises:
        ConfigError: the model's original weights were freed.
    """
    pipe.check_original()
    return Engine(pipe.transformer)


def calibration_images(pipe: VARPipeline, config: CalibrationConfig) -> tuple[Tensor, Tensor]:
    """Draws images to calibrate on, all classes in turn.

    Args:
        pipe: the model; a plan in force on it is left aside.
        config: how many, and their seed.

    Returns:
        Tokens (n, L) int64 and labels (n,) int64.

    Raises:
        ConfigError: the model's original weights were freed.
    """
    engine = plain_engine(pipe)
    settings = SamplingSettings(config.guidance_scale, min(900, engine.config.vocab_size), 0.96)
    labels = torch.arange(config.num_images, device=pipe.device) % engine.config.num_classes
    generator = torch.Generator(pipe.device).manual_seed(config.seed)
    drawn = [
        torch.cat(engine.generate(part, pipe.tokenizer.quantize, settings, generator)[0], 1)
        for part in labels.split(config.batch_size)
    ]
    return torch.cat(drawn), labels


def teacher_inputs(pipe: VARPipeline, tokens: Tensor) -> Tensor:
    """Turns tokens (n, L) into what an engine's ``teach`` takes: (n, L − patch_nums[0]², z), on the model's device."""
    parts = tokens.to(pipe.device).split(pipe.transformer.config.scale_sizes, 1)
    with torch.inference_mode():
        return pipe.tokenizer.quantize.next_inputs(parts)


@torch.inference_mode()
def divergence(
    pipe: VARPipeline,
    plans: Sequence[CompressionPlan],
    tokens: Tensor,
    labels: Tensor,
    *,
    config: CalibrationConfig,
    per_scale: bool = False,
    progress: Progress | None = None,
) -> list[Any]:
    """Measures how far plans move the guided distributions of the next token.

    Args:
        pipe: the model.
        plans: what is left out, each on its own.
        tokens: (n, L) int64, the right tokens.
        labels: (n,) int64.
        config: guidance and batch size.
        per_scale: give a value for each scale.
        progress: called with ``("calibrating", done, passes)``.

    Returns:
        For each plan the mean of KL(without plan ‖ with plan), in nats a token, at least 0; or (scales,) of them.

    Raises:
        ShapeError, DtypeError, ArgumentError: tokens or labels that do not fit the model.
        ConfigError: plans of another model, or the model's original weights were freed.
    """
    model, plain = pipe.transformer.config, plain_engine(pipe)
    tokens, labels = checked_data(tokens, labels, model)
    if any(plan.model != model for plan in plans):
        raise ConfigError("plans: expected plans of this model")
    totals = np.zeros((len(plans), len(model.patch_nums)))
    batches, done = torch.arange(len(tokens)).split(config.batch_size), 0
    for part in batches:
        inputs, rows = teacher_inputs(pipe, tokens[part]), labels[part].to(pipe.device)
        reference = list(_guided(plain, rows, inputs, config.guidance_scale))
        for i, plan in enumerate(plans):
            # One at a time: what engines keep for their windows would add up.
            engine = Engine(pipe.transformer, plan=plan)
            for scale, logits in enumerate(_guided(engine, rows, inputs, config.guidance_scale)):
                true = reference[scale]
                totals[i, scale] += float((true.exp() * (true - logits)).sum(-1).clamp_min(0).sum())
            done += 1
            if progress is not None:
                progress("calibrating", done, len(plans) * len(batches))
    if per_scale:
        return [row / (len(tokens) * np.array(model.scale_sizes)) for row in totals]
    return [float(row.sum()) / (len(tokens) * model.num_tokens) for row in totals]


def _guided(engine: Engine, labels: Tensor, inputs: Tensor, guidance_scale: float) -> Iterator[Tensor]:
    """For each scale (B, n, V) log-probabilities under guidance."""
    scales, settings = len(engine.config.patch_nums), SamplingSettings(guidance_scale)
    for scale, logits in enumerate(engine.teach(labels, inputs)):
        cond, uncond = logits.chunk(2)
        yield guide(cond, uncond, settings.strength(scale, scales)).log_softmax(-1)
