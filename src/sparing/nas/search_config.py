"""Settings of an architecture search, with the published ones as defaults, and smaller ones for two cores.

====================  ==============================================================
paper's symbol        name
====================  ==============================================================
α_l                   ``supernet.loss_share``, part of the training loss under faults
α_r                   ``evaluation.reward_share``, part of the reward under faults
C                     ``channels``
====================  ==============================================================

Source: X. Ning et al., *FTT-NAS*, arXiv 2003.10375, 2020, and the public code. Where neither says a number (draws and
images of an evaluation, sizes of the evolution), it is ours.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from sparing.errors import ArgumentError
from sparing.explore import EvolutionConfig
from sparing.faults import AnyFault, BitBias, FaultModel
from sparing.runs.documents import Settings
from sparing.vision._settings import Precision

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "ControllerConfig",
    "EvaluationConfig",
    "Objective",
    "PRESETS",
    "SearchConfig",
    "SupernetTrainingConfig",
    "preset_config",
]

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=1)]
Objective: TypeAlias = Literal["clean", "faulty", "macs", "parameters"]
Mode: TypeAlias = Literal["evolution", "policy-gradient"]

PUBLISHED_REWARD_SHARE = {"features": 0.5, "weights": 0.2}
"""α_r of the published searches, by what the fault hits."""


class SupernetTrainingConfig(Settings):
    """How the shared weights are trained: SGD on a cosine from `learning_rate` to 0, one architecture a step.

    Attributes:
        epochs: passes over the images for weights.
        batch_size: images a step.
        learning_rate: at the first step.
        momentum: of SGD.
        weight_decay: on all weights of the architecture at hand.
        clip: norm that gradients are scaled down to.
        dropout: before the classifier.
        loss_share: α_l, 0 to 1: (1 − α_l)·loss + α_l·loss under one draw of faults. 0 trains without faults (FT-NAS).
        flip: mirror every second image, by chance.
        crop_padding: pixels by which an image is shifted at most.
    """

    epochs: _Count = 100
    batch_size: _Count = 64
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    clip: Annotated[float, Field(gt=0)] = 5.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    loss_share: _Share = 0.5
    flip: bool = True
    crop_padding: Annotated[int, Field(ge=0, le=1024)] = 4


class EvaluationConfig(Settings):
    """How an architecture is judged, with the shared weights, always on the same images under the same draws.

    Attributes:
        images: held-out images; fewer if there are fewer.
        calibration_images: of those for weights, from which the architecture's batch norms and ranges of features are
            taken anew; one batch.
        draws: of faults.
        batch_size: images at a time.
        reward_share: α_r, 0 to 1: reward = (1 − α_r)·clean accuracy + α_r·mean accuracy under faults.
    """

    images: _Count = 2000
    calibration_images: _Count = 256
    draws: _Count = 4
    batch_size: _Count = 250
    reward_share: _Share = 0.5


class ControllerConfig(Settings):
    """The policy that draws architectures, and how it learns.

    Attributes:
        hidden: width of the LSTM.
        temperature: that logits are divided by.
        learning_rate: of Adam.
        baseline_decay: of the moving mean of rewards.
        entropy: weight of the entropy in the loss.
        batch_size: held-out images of one reward.
        steps: architectures drawn after each epoch of the supernet; None: one for each batch of held-out images.
        samples: architectures drawn from the trained policy in the end, to choose from.
    """

    hidden: _Count = 100
    temperature: Annotated[float, Field(gt=0)] = 5.0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    baseline_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    entropy: Annotated[float, Field(ge=0)] = 0.01
    batch_size: _Count = 64
    steps: _Count | None = None
    samples: _Count = 100


class SearchConfig(Settings):
    """Everything that decides what a search finds; frozen, printable, remembered by its folder.

    Attributes:
        space: ``"feature"`` (8 primitives, light preprocessing) or ``"weight"`` (11 primitives).
        channels: C of the first cells.
        num_cells: cells in a row.
        image_size: side in pixels; images of a multiple of it are averaged down.
        fault: what architectures must bear. Networks compute with 8-bit weights and features, which faults count in.
        mode: ``"evolution"`` on a supernet trained with random architectures, or the paper's ``"policy-gradient"``.
        weight_images: share of the images for weights; the others are held out.
        max_macs: multiply-accumulates of the final network for one image, at most; None: any.
        max_parameters: of the final network, at most; None: any.
        objectives: of the evolution.
        evaluations: architectures that evolution evaluates.
        finalists: those of the best reward that are judged once more in the end, by `final_images` held-out images and
            `final_draws` draws that the search has not seen; 1 takes the best as it is.
        final_images: held-out images, for finalists; fewer if there are fewer.
        final_draws: of faults, for finalists.
        supernet, evaluation, controller, evolution: see there.
        seed: 0 or more.
        precision: of arithmetic in training; evaluations are in float32.

    Raises:
        ConfigError: a field out of range (:meth:`of`; the constructor itself raises pydantic's error).
    """

    space: Literal["feature", "weight"] = "feature"
    channels: Annotated[int, Field(ge=2, le=4096)] = 20
    num_cells: Annotated[int, Field(ge=3, le=256)] = 8
    image_size: Annotated[int, Field(ge=4)] = 32
    fault: AnyFault = BitBias(p_m=1e-4)
    mode: Mode = "evolution"
    weight_images: Annotated[float, Field(gt=0, lt=1)] = 0.8
    max_macs: _Count | None = None
    max_parameters: _Count | None = None
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("clean", "faulty", "macs", "parameters")
    evaluations: _Count = 1000
    finalists: _Count = 5
    final_images: _Count = 10_000
    final_draws: _Count = 20
    supernet: SupernetTrainingConfig = SupernetTrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    controller: ControllerConfig = ControllerConfig()
    evolution: EvolutionConfig = EvolutionConfig(population=50)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.objectives)) != len(self.objectives):
            raise ValueError(f"objectives: expected each once, got {self.objectives}")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "cpu": {
        "channels": 8,
        "num_cells": 5,
        "image_size": 16,
        "evaluations": 200,
        "supernet": {"epochs": 4, "crop_padding": 2},
        "evaluation": {"images": 500, "draws": 3},
        "final_images": 2000,
        "final_draws": 10,
        "controller": {"steps": 30, "samples": 30, "batch_size": 250},
        "evolution": {"population": 20},
    },
    "demo": {
        "channels": 4,
        "num_cells": 3,
        "image_size": 8,
        "evaluations": 16,
        "supernet": {"epochs": 3, "batch_size": 32, "crop_padding": 0, "flip": False},
        "evaluation": {"images": 200, "draws": 2, "calibration_images": 128},
        "finalists": 2,
        "final_draws": 4,
        "controller": {"steps": 8, "samples": 8, "batch_size": 200},
        "evolution": {"population": 8},
    },
}
"""What differs from the defaults: ``"published"`` for an accelerator, ``"cpu"`` for two cores, ``"demo"``: seconds."""


def preset_config(preset: str, **overrides: Any) -> SearchConfig:
    """Settings by name, and what is to be other than there.

    Args:
        preset: of :data:`PRESETS`.
        **overrides: fields of :class:`SearchConfig`; a mapping for `supernet`, `evaluation`, `controller` or
            `evolution` changes only the fields that it names. The reward's share of faults is the published one for
            faults of features or of weights unless given.

    Raises:
        ArgumentError: no such preset.
        ConfigError: a field that is unknown or out of range.

    Example:
        >>> preset_config("cpu", supernet={"epochs": 5}).supernet.batch_size
        64
    """
    if preset not in PRESETS:
        raise ArgumentError(f"preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    fields = {**PRESETS[preset]}
    fault = overrides.get("fault")
    if isinstance(fault, FaultModel):
        place = "features" if any(part.place == "features" for part in fault.parts) else "weights"
        share = {"reward_share": PUBLISHED_REWARD_SHARE[place]}
        fields["evaluation"] = {**fields.get("evaluation", {}), **share}
    for name, value in overrides.items():
        both = isinstance(value, Mapping) and isinstance(fields.get(name, {}), Mapping)
        fields[name] = {**fields.get(name, {}), **value} if both and name != "fault" else value
    # Nested settings whose default differs from their class's.
    fields["evolution"] = {**SearchConfig().evolution.model_dump(), **dict(fields.get("evolution", {}))}
    return SearchConfig.of(**fields)
