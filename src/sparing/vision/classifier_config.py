"""What goes into the training of a classifier, and what comes out beside the weights."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sparing.runs.precision import Precision

__all__ = ["ClassifierTrainingConfig", "EpochResult", "TrainingResult", "learning_rate_at"]


class ClassifierTrainingConfig(BaseModel):
    """How a classifier is trained; frozen, printable, remembered by its checkpoints.

    Attributes:
        epochs: passes over the images.
        batch_size: images a step; an epoch's last partial batch is dropped.
        learning_rate: at the peak of the cycle.
        warmup: share of the steps in which the rate rises to its peak, linearly from a 25th of it; then it falls to 0
            along a cosine.
        momentum: of SGD with Nesterov's look-ahead.
        weight_decay: on the weights of convolutions and linear layers, not on biases and norms.
        label_smoothing: share of the target spread over all classes.
        flip: mirror every second image, by chance.
        crop_padding: pixels by which an image is shifted at most; 0 switches shifting off.
        crop_mode: what comes in at the edge: the mirrored image, or black.
        seed: of order, augmentation and dropout. The first weights are the model's own.
        precision: ``"auto"`` computes in bfloat16 (weights stay float32) where the device does so natively.
        checkpoint_steps: steps between checkpoints; None: one an epoch. It does not change what is computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 30
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.15
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    flip: bool = True
    crop_padding: Annotated[int, Field(ge=0, le=1024)] = 4
    crop_mode: Literal["reflect", "zero"] = "reflect"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Precision = "auto"
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True)
class EpochResult:
    """One pass over the images.

    Attributes:
        epoch: counted from 0.
        train_loss: mean loss over the epoch's augmented images, in nats.
        validation_accuracy: 0 to 1, or None without validation images.
    """

    epoch: int
    train_loss: float
    validation_accuracy: float | None


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave, apart from the weights.

    Attributes:
        steps: steps done, over all sessions.
        resumed_step: the step at which this session began; 0 for a training in one go.
        precision: the arithmetic that was used.
        history: every epoch.
    """

    steps: int
    resumed_step: int
    precision: Literal["float32", "bfloat16"]
    history: tuple[EpochResult, ...]

    @property
    def validation_accuracy(self) -> float | None:
        """Accuracy after the last epoch, 0 to 1, or None without validation images."""
        return self.history[-1].validation_accuracy


def learning_rate_at(config: ClassifierTrainingConfig, step: int, total: int) -> float:
    """Gives the rate of a step: it rises from a 25th of the peak, and then falls towards 0.

    Args:
        config: the settings.
        step: 0 to `total` − 1.
        total: steps of the whole training.

    Returns:
        The rate, above 0; step `total` would have 0.
    """
    rise = config.warmup * total
    if step < rise:
        return config.learning_rate * (1 + 24 * step / rise) / 25
    return config.learning_rate * (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2
