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

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from sparing.errors import ArgumentError
from sparing.explore import EvolutionConfig
from sparing.faults import AnyFault, BitBias, FaultModel
from sparing.runs.documents import Settings
from sparing.runs.precision import Precision
from sparing.vision import ClassifierTrainingConfig

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "ControllerConfig",
    "EvaluationConfig",
    "HalvingConfig",
    "Objective",
    "PRESETS",
    "SearchConfig",
    "SupernetTrainingConfig",
    "preset_config",
]

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=1)]
WeightLimit: TypeAlias = Annotated[float, Field(gt=0)] | None
Objective: TypeAlias = Literal["clean", "faulty", "macs", "parameters"]
Mode: TypeAlias = Literal["halving", "evolution", "policy-gradient"]

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


class HalvingConfig(Settings):
    """Rounds in which architectures are trained alone, ever fewer for ever longer, each time from new weights.

    Attributes:
        candidates: architectures of each round: the first ones are drawn by chance, then the best of the round before.
        epochs: of each round, over the images for weights: whole numbers, or below 1 a part of the images.
        num_cells: cells in a row to draw from, each with the same chance; None: the search's.
        images: held-out images to judge by, always the same; fewer if there are fewer.
        draws: of faults, always the same.
        loss_share: α_l, 0 to 1: (1 − α_l)·loss + α_l·loss under one draw of faults.
        weight_limit: largest weight of convolutions and classifier, above 0; None: any. See
            :class:`~sparing.faults.WeightClippingStep`.
        training: of each network; its epochs, seed and precision are the rounds' and the search's.
    """

    candidates: Annotated[tuple[_Count, ...], Field(min_length=1)] = (64, 16, 4)
    epochs: Annotated[tuple[Annotated[float, Field(gt=0, le=100_000)], ...], Field(min_length=1)] = (2, 8, 32)
    num_cells: Annotated[tuple[Annotated[int, Field(ge=3, le=256)], ...], Field(min_length=1)] | None = None
    images: _Count = 10_000
    draws: _Count = 4
    loss_share: _Share = 0.7
    weight_limit: WeightLimit = None
    training: ClassifierTrainingConfig = ClassifierTrainingConfig(batch_size=128, learning_rate=0.1, weight_decay=4e-5)

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if len(self.candidates) != len(self.epochs):
            raise ValueError(f"candidates, epochs: expected as many, got {self.candidates} and {self.epochs}")
        if any(later > sooner for sooner, later in itertools.pairwise(self.candidates)):
            raise ValueError(f"candidates: expected ever fewer, got {self.candidates}")
        if any(later <= sooner for sooner, later in itertools.pairwise(self.epochs)):
            raise ValueError(f"epochs: expected ever more, got {self.epochs}")
        if any(epochs > 1 and epochs != round(epochs) for epochs in self.epochs):
            raise ValueError(f"epochs: expected whole numbers, or below 1, got {self.epochs}")
        return self


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
        channels: C of the first cells. Halving makes each network as wide as the budget allows, if there is one.
        num_cells: cells in a row.
        image_size: side in pixels; images of a multiple of it are averaged down.
        fault: what architectures must bear. Networks compute with 8-bit weights and features, which faults count in.
        mode: ``"evolution"`` on a supernet trained with random architectures, the paper's ``"policy-gradient"``, or
            ``"halving"``, without a supernet.
        weight_images: share of the images for weights; the others are held out.
        max_macs: multiply-accumulates of the final network for one image, at most; None: any.
        max_parameters: of the final network, at most; None: any.
        objectives: of the evolution.
        evaluations: architectures that evolution evaluates.
        finalists: those of the best reward that are judged once more in the end, by `final_images` held-out images and
            `final_draws` draws that the search has not seen; 1 takes the best as it is. Halving has none.
        final_images: held-out images, for finalists; fewer if there are fewer.
        final_draws: of faults, for finalists.
        supernet, evaluation, controller, evolution, halving: see there.
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
    halving: HalvingConfig = HalvingConfig()
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
        "halving": {
            "candidates": (24, 8, 2),
            "epochs": (0.25, 1, 3),
            "num_cells": (3, 4, 5),
            "images": 2000,
            "training": {"batch_size": 64, "learning_rate": 0.05, "crop_padding": 2},
        },
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
        "halving": {
            "candidates": (8, 2),
            "epochs": (1, 3),
            "draws": 2,
            "training": {"batch_size": 32, "crop_padding": 0, "flip": False},
        },
    },
}
"""What differs from the defaults: ``"published"`` for an accelerator, ``"cpu"`` for two cores, ``"demo"``: seconds."""


def preset_config(preset: str, **overrides: Any) -> SearchConfig:
    """Settings by name, and what is to be other than there.

    Args:
        preset: of :data:`PRESETS`.
        **overrides: fields of :class:`SearchConfig`; a mapping for `supernet`, `evaluation`, `controller`, `evolution`
            or `halving` changes only the fields that it names. The reward's share of faults is the published one for
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
    # Nested settings whose defaults differ from their class's.
    defaults = SearchConfig().model_dump(include={"evolution", "halving"})
    fields = _merged(defaults, PRESETS[preset])
    fault = overrides.get("fault")
    if isinstance(fault, FaultModel):
        place = "features" if any(part.place == "features" for part in fault.parts) else "weights"
        fields = _merged(fields, {"evaluation": {"reward_share": PUBLISHED_REWARD_SHARE[place]}})
    if "num_cells" in overrides:
        fields = _merged(fields, {"halving": {"num_cells": None}})  # one depth was asked for
    return SearchConfig.of(**_merged(fields, overrides))


def _merged(fields: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with others in their place, and of those that are mappings on both sides the fields of both."""
    found = dict(fields)
    for name, value in others.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = _merged(found[name], value) if both else value
    return found
