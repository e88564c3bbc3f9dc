"""Training a classifier of images: SGD on one cosine cycle, which an interruption leaves no trace in."""

import dataclasses
import hashlib
import logging
import math
import os
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, FormatError, NonFiniteError, ShapeError
from sparing.runs import Checkpoint, CheckpointFolder, Progress, load_optimizer_, optimizer_tensors
from sparing.runs.precision import resolve_precision
from sparing.vision.augment import EpochSampler, random_crop, random_flip, stream_generator, to_float
from sparing.vision.classifier_config import (
    ClassifierTrainingConfig,
    EpochResult,
    TrainingResult,
    learning_rate_at,
)
from sparing.vision.datasets import ImageDataset
from sparing.vision.inference import evaluate_classifier
from sparing.vision.steps import TrainingStep

__all__ = ["train_classifier_"]

_KIND = "sparing.vision.classifier-training"
# What the numbered streams of chance are for; 0 is the order of the images, in augment.py.
_AUGMENTATION, _MODEL = 1, 2
_CHECK_EVERY = 50

_log = logging.getLogger(__name__)


def train_classifier_(
    model: nn.Module,
    dataset: ImageDataset,
    *,
    config: ClassifierTrainingConfig,
    checkpoint_folder: str | os.PathLike[str] | None = None,
    validation: ImageDataset | None = None,
    device: torch.device | str | None = None,
    step: TrainingStep | None = None,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains a classifier in place.

    With a folder, a training that was interrupted (by an error, by the callback, by kill -9) goes on from its newest
    checkpoint when the same call is made again; on the CPU, with the same number of threads, the weights end up bit for
    bit those of a training in one go. The checkpoint's weights then replace the model's.

    Args:
        model: maps `n × 3 × h × w` floats in [−1, 1] to `n` rows of logits, one a class; at most floating-point
            parameters and buffers change. It ends on `device`, in channels_last and in evaluation mode.
        dataset: the training images.
        config: the settings.
        checkpoint_folder: where checkpoints are kept; None keeps none.
        validation: images to measure accuracy on after each epoch.
        device: where to train; None: where the model is.
        step: what a step computes, for example under faults; None: the gradients of the batch's loss.
        progress: called after each step with the steps done; may raise to stop.

    Returns:
        What each epoch gave.

    Raises:
        ArgumentError: fewer images than `batch_size`, padding too large for the images, or other validation classes.
        ShapeError: the model has another number of classes.
        NonFiniteError: the loss or a weight became NaN or infinite; the message names step and rate. The newest
            checkpoint is from before that.
        ConfigError: the folder holds the checkpoint of a training with other settings, data or model.
        FormatError: the checkpoint is damaged, or of another kind of training.
        BusyError: another process writes in the folder.
        OSError: a checkpoint cannot be written.

    Source:
        L. Smith and N. Topin, Super-Convergence, 2018 (one cycle); K. He et al., 2016, section 4.2 (augmentation).
    """
    if validation is not None and validation.class_names != dataset.class_names:
        raise ArgumentError(
            f"validation: expected the classes of dataset {dataset.class_names}, got {validation.class_names}"
        )
    training = _Training(model, dataset, config, device, checkpoint_folder, step)
    cuda = [training.device] if training.device.type == "cuda" else []
    # Dropout draws from torch's global generator: it is seeded for each step here, and left as it was.
    with torch.random.fork_rng(devices=cuda):
        return training.run(validation, progress)


class _Training:
    """One session of a training: the model, where it stands, and its checkpoints."""

    def __init__(
        self,
        model: nn.Module,
        dataset: ImageDataset,
        config: ClassifierTrainingConfig,
        device: torch.device | str | None,
        folder: str | os.PathLike[str] | None,
        rule: TrainingStep | None,
    ) -> None:
        self.dataset, self.config, self.rule = dataset, config, rule
        self.sampler = EpochSampler(len(dataset), config.batch_size, seed=config.seed)
        if (
            config.crop_padding
            and config.crop_mode == "reflect"
            and config.crop_padding >= min(dataset.images.shape[2:])
        ):
            raise ArgumentError(
                f"config.crop_padding: expected less than the {min(dataset.images.shape[2:])} pixels of the images, "
                f"got {config.crop_padding}"
            )
        first = next(model.parameters(), None)
        if first is None:
            raise ArgumentError("model: expected a model with parameters to train, got one without")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ArgumentError("model: expected a model with parameters to train, got one whose are all frozen")
        self.device = first.device if device is None else torch.device(device)
        self.precision = resolve_precision(config.precision, self.device)
        self.checkpoints = None
        found: Checkpoint | None = None
        if folder is not None:
            identity = _identity(model, dataset, config, self.precision)
            if rule is not None:
                identity["step"] = rule.describe()
            self.checkpoints = CheckpointFolder(folder, kind=_KIND, config=identity)
            found = self.checkpoints.latest()
        # Only now, with nothing left to refuse, the model changes.
        self.model = model.to(device=self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(self.model, config)
        self.step, self.loss_sum = 0, 0.0
        self.history: list[EpochResult] = []
        if found is not None:
            self._load(found)
        self.resumed_step = self.step

    def run(self, validation: ImageDataset | None, progress: Progress | None) -> TrainingResult:
        per_epoch = self.sampler.steps_per_epoch
        total = self.config.epochs * per_epoch
        pending: list[Tensor] = []
        self.model.train()
        while self.step < total:
            pending.append(self._train_step(total))
            self.step += 1
            ends_epoch = self.step % per_epoch == 0
            saves = self.step % (self.config.checkpoint_steps or per_epoch) == 0 or self.step == total
            # Looking at a loss waits for a GPU, so that it is done now and then.
            if self.device.type == "cpu" or len(pending) >= _CHECK_EVERY or ends_epoch or saves:
                self._collect(pending)
            if ends_epoch:
                self._end_epoch(validation, per_epoch)
            if saves and self.checkpoints is not None:
                self._save(self.checkpoints)
            if progress is not None:
                progress("training", self.step, total)
        self.model.eval()
        return TrainingResult(self.step, self.resumed_step, self.precision, tuple(self.history))

    def _train_step(self, total: int) -> Tensor:
        config = self.config
        torch.manual_seed(stream_generator(config.seed, _MODEL, self.step).initial_seed())
        rate = learning_rate_at(config, self.step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        chosen = self.sampler.indices(self.step).numpy()
        images = torch.from_numpy(self.dataset.images[chosen])
        generator = stream_generator(config.seed, _AUGMENTATION, self.step)
        if config.crop_padding:
            images = random_crop(images, generator, padding=config.crop_padding, mode=config.crop_mode)
        if config.flip:
            images = random_flip(images, generator)
        x = to_float(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(self.dataset.labels[chosen]).to(self.device)

        def loss_of() -> Tensor:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = self.model(x)
            if logits.shape != (len(x), self.dataset.num_classes):
                raise ShapeError(
                    f"model: expected logits of shape {(len(x), self.dataset.num_classes)} for {self.dataset.name!r}, "
                    f"got {tuple(logits.shape)}"
                )
            return nn.functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)

        self.optimizer.zero_grad(set_to_none=True)
        if self.rule is None:
            loss = loss_of()
            loss.backward()
        else:
            loss = self.rule(loss_of, self.model, self.step)
        self.optimizer.step()
        after_update_ = getattr(self.rule, "after_update_", None)
        if after_update_ is not None:
            after_update_(self.model)
        return loss.detach()

    def _collect(self, pending: list[Tensor]) -> None:
        losses = [float(loss) for loss in pending]
        # One by one, so that the sum does not depend on how often it is taken.
        for step, loss in enumerate(losses, self.step - len(losses)):
            if not math.isfinite(loss):
                self._refuse(f"the loss is {loss} at step {step}")
            self.loss_sum += loss
        pending.clear()

    def _refuse(self, what: str) -> None:
        raise NonFiniteError(
            f"{what} (seed {self.config.seed}): lower learning_rate, {self.config.learning_rate} now, or lengthen "
            "warmup; checkpoints from before are unchanged"
        )

    def _end_epoch(self, validation: ImageDataset | None, per_epoch: int) -> None:
        accuracy = None
        if validation is not None:
            accuracy = evaluate_classifier(self.model, validation, precision=self.precision)
        self.history.append(EpochResult(len(self.history), self.loss_sum / per_epoch, accuracy))
        self.loss_sum = 0.0
        _log.info("%s", self.history[-1])

    def _save(self, checkpoints: CheckpointFolder) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                self._refuse(f"{name.removeprefix('model.')} is not finite after step {self.step - 1}")
        held, state = optimizer_tensors(self.optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in held.items()}
        history = [dataclasses.asdict(epoch) for epoch in self.history]
        checkpoints.save(self.step, tensors, {"optimizer": state, "loss_sum": self.loss_sum, "history": history})

    def _load(self, found: Checkpoint) -> None:
        weights = {n.removeprefix("model."): t for n, t in found.tensors.items() if n.startswith("model.")}
        held = {n.removeprefix("optimizer."): t for n, t in found.tensors.items() if n.startswith("optimizer.")}
        try:
            history = [EpochResult(**epoch) for epoch in found.state["history"]]
            load_optimizer_(self.optimizer, held, found.state["optimizer"])
            self.model.load_state_dict(weights)
            self.loss_sum = float(found.state["loss_sum"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise FormatError(f"checkpoint: does not fit this training: {error}") from error
        self.step, self.history = found.step, history


def _optimizer(model: nn.Module, config: ClassifierTrainingConfig) -> torch.optim.SGD:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    return torch.optim.SGD([g for g in groups if g["params"]], lr=rate, momentum=config.momentum, nesterov=True)


def _identity(
    model: nn.Module, dataset: ImageDataset, config: ClassifierTrainingConfig, precision: str
) -> dict[str, Any]:
    """What must be the same for a training to go on."""
    layout = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in model.state_dict().items()]
    return {
        "training": {**config.model_dump(mode="json", exclude={"checkpoint_steps"}), "precision": precision},
        "dataset": {
            "name": dataset.name,
            "shape": list(dataset.images.shape),
            "images_crc32": zlib.crc32(np.ascontiguousarray(dataset.images).data),
            "labels_crc32": zlib.crc32(np.ascontiguousarray(dataset.labels).data),
            "class_names": list(dataset.class_names),
        },
        "model": {
            "class": type(model).__name__,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "layout_sha256": hashlib.sha256("\n".join(layout).encode()).hexdigest(),
        },
    }
