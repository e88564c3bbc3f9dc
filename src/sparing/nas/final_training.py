"""Training of a found architecture from scratch, under faults, in 8 bits; and what it is worth on images for tests."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from sparing.errors import ArgumentError
from sparing.faults import AnyFault, BitBias, fixed_point_
from sparing.faults.training import FaultTolerantStep, WeightClippingStep
from sparing.nas.cost import network_cost
from sparing.nas.evaluation import batches_of, measure
from sparing.nas.export import check_onnx, export_module, export_onnx
from sparing.nas.genotype import Genotype, save_genotype
from sparing.nas.images import downscaled
from sparing.nas.network import CellNetwork
from sparing.nas.search_config import WeightLimit
from sparing.runs import Progress
from sparing.runs.atomic import replace_file
from sparing.runs.documents import Settings
from sparing.vision import (
    ClassifierTrainingConfig,
    EpochResult,
    ImageDataset,
    TrainingResult,
    stream_generator,
    to_float,
    train_classifier_,
)

__all__ = [
    "FINAL_PRESETS",
    "FinalTrainingConfig",
    "TrainedGenotype",
    "final_config",
    "train_genotype",
    "trained_network",
]

_RESULT_FILE = "result.json"
_FAULTS = 3
"""Stream of chance, as in supernet_training.py."""
_PUBLISHED = ClassifierTrainingConfig(epochs=100, batch_size=128, learning_rate=0.1, weight_decay=4e-5)

_Share = Annotated[float, Field(ge=0, le=1)]


class FinalTrainingConfig(Settings):
    """How a genotype's network is built, trained and judged; frozen, printable, remembered by its checkpoints.

    Attributes:
        channels: C.
        num_cells: 3 or more.
        image_size: side in pixels; images of a multiple of it are averaged down.
        dropout: before the classifier.
        fault: what the network must bear.
        loss_share: α_l, 0 to 1: (1 − α_l)·loss + α_l·loss under one draw of faults a step. 0: no faults in training.
        weight_limit: largest weight of convolutions and classifier, above 0; None: any. See
            :class:`~sparing.faults.WeightClippingStep`.
        calibration_images: of the training images, for the first ranges of features.
        draws: of faults, to judge by.
        training: how it is trained. The published rate falls by steps; here it follows one cosine cycle.
    """

    channels: Annotated[int, Field(ge=2, le=4096)] = 20
    num_cells: Annotated[int, Field(ge=3, le=256)] = 8
    image_size: Annotated[int, Field(ge=4)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    fault: AnyFault = BitBias(p_m=1e-4)
    loss_share: _Share = 0.7
    weight_limit: WeightLimit = None
    calibration_images: Annotated[int, Field(ge=1)] = 256
    draws: Annotated[int, Field(ge=1)] = 20
    training: ClassifierTrainingConfig = _PUBLISHED


FINAL_PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "cpu": {"channels": 8, "num_cells": 5, "image_size": 16, "draws": 10, "training": {"epochs": 6, "crop_padding": 2}},
    "demo": {
        "channels": 4,
        "num_cells": 3,
        "image_size": 8,
        "draws": 4,
        "training": {"epochs": 4, "batch_size": 64, "crop_padding": 0, "flip": False},
    },
}
"""What differs from the defaults, by the names of the searches' presets."""


def final_config(preset: str, **overrides: Any) -> FinalTrainingConfig:
    """Settings by name, and what is to be other than there.

    Args:
        preset: of :data:`FINAL_PRESETS`.
        **overrides: fields; a mapping for `training` changes only the fields that it names.

    Raises:
        ArgumentError: no such preset.
        ConfigError: a field that is unknown or out of range.
    """
    if preset not in FINAL_PRESETS:
        raise ArgumentError(f"preset: expected one of {', '.join(FINAL_PRESETS)}, got {preset!r}")
    fields = {**FINAL_PRESETS[preset], **overrides}
    training = overrides.get("training", {})
    if isinstance(training, Mapping):
        fields["training"] = {**_PUBLISHED.model_dump(), **FINAL_PRESETS[preset].get("training", {}), **training}
    return FinalTrainingConfig.of(**fields)


class TrainedGenotype(Settings):
    """What became of a genotype.

    Attributes:
        num_parameters: of the network.
        num_macs: of it for one image.
        clean_accuracy: on the images for tests, in 8 bits without faults, 0 to 1.
        faulty_accuracies: of each draw of faults.
        history: every epoch.
        files: that were written, by name in the folder.
    """

    num_parameters: int
    num_macs: int
    clean_accuracy: _Share
    faulty_accuracies: tuple[_Share, ...]
    history: tuple[EpochResult, ...]
    files: tuple[str, ...]

    @property
    def faulty_accuracy(self) -> float:
        """Mean of the draws."""
        return sum(self.faulty_accuracies) / len(self.faulty_accuracies)


def train_genotype(
    genotype: Genotype,
    train: ImageDataset,
    test: ImageDataset,
    *,
    config: FinalTrainingConfig,
    folder: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    onnx: bool = False,
    progress: Progress | None = None,
) -> TrainedGenotype:
    """Trains a genotype's network under faults, judges it, and exports it without any trace of faults.

    A training that was interrupted goes on when the same call is made again, see
    :func:`~sparing.vision.train_classifier_`.

    Args:
        genotype: the architecture.
        train: images to train on.
        test: images to judge by, of the same classes.
        config: the settings.
        folder: gets ``genotype.json``, ``network.py`` and its weights, ``result.json``, and the checkpoints.
        device: where to train.
        onnx: also ``network.onnx``; needs the extra ``onnx``.
        progress: called with ``"training"`` after each step; may raise to stop.

    Raises:
        ArgumentError: images that do not fit the settings or each other.
        ConfigError: the folder holds a training with other settings, data or architecture.
        BusyError, FormatError, NonFiniteError, OSError: as :func:`~sparing.vision.train_classifier_`.
        MissingExtraError: `onnx` without its extra.
    """
    if onnx:
        check_onnx()
    train, test = downscaled(train, config.image_size), downscaled(test, config.image_size)
    if train.class_names != test.class_names:
        raise ArgumentError(f"test: expected the classes of train {train.class_names}, got {test.class_names}")
    target, out = torch.device(device), Path(folder)
    model, result = trained_network(
        genotype, train, config=config, device=target, checkpoint_folder=out / "checkpoints", progress=progress
    )
    found = measure(
        model,
        batches_of(test, range(len(test)), 250, target),
        config.fault,
        seed=config.training.seed,
        draws=range(config.draws),
    )
    cost = network_cost(
        genotype,
        image_size=config.image_size,
        channels=config.channels,
        num_cells=config.num_cells,
        num_classes=train.num_classes,
    )
    trained = TrainedGenotype(
        num_parameters=cost.num_parameters,
        num_macs=cost.num_macs,
        clean_accuracy=found.clean_accuracy,
        faulty_accuracies=found.faulty_accuracies,
        history=result.history,
        files=_export(out, model, genotype, config, onnx=onnx),
    )
    with replace_file(out / _RESULT_FILE) as file:
        file.write(trained.model_dump_json(indent=1).encode() + b"\n")
    return trained


def trained_network(
    genotype: Genotype,
    images: ImageDataset,
    *,
    config: FinalTrainingConfig,
    device: torch.device,
    checkpoint_folder: str | os.PathLike[str],
    progress: Progress | None = None,
) -> tuple[CellNetwork, TrainingResult]:
    """Builds a genotype's network and trains it under faults.

    Args:
        genotype: the architecture.
        images: to train on, of the size that the settings say.
        config: the settings.
        device: where to train.
        checkpoint_folder: from which a training that was interrupted goes on.
        progress: called with ``"training"`` after each step; may raise to stop.

    Returns:
        The network in 8 bits and in evaluation mode, and what each epoch gave.

    Raises:
        ArgumentError, ConfigError, BusyError, FormatError, NonFiniteError, OSError: as
            :func:`~sparing.vision.train_classifier_`.
    """
    training = config.training
    if training.precision == "auto" and device.type == "cpu":
        # Gradients of depthwise convolutions take several times longer in bfloat16 on a CPU.
        training = training.model_copy(update={"precision": "float32"})
    model = CellNetwork(
        genotype,
        images.num_classes,
        channels=config.channels,
        num_cells=config.num_cells,
        dropout=config.dropout,
        seed=training.seed,
    ).to(device)
    fixed_point_(model, to_float(images.images[: config.calibration_images], device))
    step = _Step(genotype, config)
    result = train_classifier_(
        model,
        images,
        config=training,
        checkpoint_folder=checkpoint_folder,
        device=device,
        step=step if config.weight_limit is None else WeightClippingStep(config.weight_limit, step=step),
        progress=progress,
    )
    return model, result


class _Step(FaultTolerantStep):
    """Says which network it is, too: others may have weights of the same shapes.

    Its faults are other ones than those that the network is judged by.
    """

    def __init__(self, genotype: Genotype, config: FinalTrainingConfig) -> None:
        seed = stream_generator(config.training.seed, _FAULTS).initial_seed()
        super().__init__(config.fault, share=config.loss_share, seed=seed)
        self._network = {
            "genotype": genotype.model_dump(mode="json"),
            **config.model_dump(mode="json", include={"dropout", "calibration_images"}),
        }

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **self._network}


def _export(
    out: Path, model: CellNetwork, genotype: Genotype, config: FinalTrainingConfig, *, onnx: bool
) -> tuple[str, ...]:
    save_genotype(out / "genotype.json", genotype)
    weights = export_module(out / "network.py", model)
    files = ["genotype.json", "network.py", weights.name, _RESULT_FILE]
    if onnx:
        export_onnx(out / "network.onnx", model, image_size=config.image_size)
        files.append("network.onnx")
    return tuple(files)
