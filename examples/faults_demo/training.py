"""A small network of digits, trained plainly and under faults, and its accuracy under faults."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparing.cli.nas_options import open_images
from sparing.faults import (
    BitBias,
    CampaignConfig,
    CampaignResult,
    FaultModel,
    FaultTolerantStep,
    PairedDifference,
    StuckAt,
    compare,
    fixed_point_,
    sweep,
)
from sparing.runs.progress import Progress
from sparing.vision import ClassifierTrainingConfig, ImageDataset, to_float, train_classifier_

SIDE, WIDTH, EPOCHS, SEED, DRAWS, CALIBRATION = 8, 6, 30, 0, 40, 256
STUCK = StuckAt(rate=0.08, form="bit")


@dataclass(frozen=True)
class Kind:
    """A kind of fault of the demo.

    Attributes:
        title: above its curves.
        fault: with the rate that the training sees.
        rates: that are measured.
        axis: what the rate is, for people.
        scale: that the rate is shown in.
        unit: of the shown rate.
        what: is hit, after the unit.
    """

    title: str
    fault: FaultModel
    rates: tuple[float, ...]
    axis: str
    scale: float
    unit: str
    what: str


KINDS = (
    Kind(
        "faults of weights: bits of stored numbers are stuck",
        STUCK,
        (0.0, 0.01, 0.02, 0.04, 0.06, 0.08),
        "stuck bits, %",
        1e2,
        "%",
        "of bits stuck",
    ),
    Kind(
        "faults of features: multipliers are upset",
        BitBias(p_m=3e-3),
        (0.0, 3e-4, 7.5e-4, 1.5e-3, 2.25e-3, 3e-3),
        "upset multiply-adds (p_m), ‰",
        1e3,
        "‰",
        "of multiply-adds upset",
    ),
)


@dataclass(frozen=True)
class Hardened:
    """What was measured of one kind of fault, before fault-tolerant training and after.

    Attributes:
        kind: of the faults.
        plain: of the network trained without faults.
        tolerant: of the one trained under them.
        recalibrated: of both, their normalizations measured anew on each chip; empty where faults do not last.
        gains: tolerant less plain, rate by rate, over common draws.
        step_s: seconds a step of the plain training, and of the other; measured.
    """

    kind: Kind
    plain: CampaignResult
    tolerant: CampaignResult
    recalibrated: tuple[CampaignResult, ...]
    gains: tuple[PairedDifference, ...]
    step_s: tuple[float, float]

    @property
    def last(self) -> PairedDifference:
        """The gain at the highest rate."""
        return self.gains[-1]


def digits(progress: Progress) -> tuple[ImageDataset, ImageDataset]:
    """Training images and test images, 8×8."""
    return open_images(argparse.Namespace(data="digits", images=None), SIDE, progress)


def network(seed: int) -> nn.Sequential:
    """Four convolutions and a linear layer, with its first weights."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = 3
        for wide, stride in ((WIDTH, 1), (2 * WIDTH, 2), (2 * WIDTH, 1), (4 * WIDTH, 2)):
            convolution = nn.Conv2d(channels, wide, 3, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def trained(
    train: ImageDataset, fault: FaultModel | None, *, seed: int, label: str, progress: Progress
) -> tuple[nn.Module, float]:
    """Trains the network in 8 bits, under faults or without; the same first weights, order and steps.

    Returns:
        The network, and seconds a step.
    """
    model = network(seed)
    fixed_point_(model, to_float(train.images[:CALIBRATION]))
    config = ClassifierTrainingConfig(
        epochs=EPOCHS, batch_size=64, flip=False, crop_padding=0, seed=seed, precision="float32"
    )
    step = None if fault is None else FaultTolerantStep(fault, share=0.7, seed=seed)
    begin = time.perf_counter()
    result = train_classifier_(
        model, train, config=config, step=step, progress=lambda _, done, total: progress(label, done, total)
    )
    return model, (time.perf_counter() - begin) / result.steps


def batches_of(dataset: ImageDataset) -> Sequence[tuple[Tensor, Tensor]]:
    """All images as one batch, as networks take them."""
    x = to_float(dataset.images).contiguous(memory_format=torch.channels_last)
    return [(x, torch.from_numpy(dataset.labels))]


def harden(train: ImageDataset, test: ImageDataset, progress: Progress, *, seed: int = SEED) -> list[Hardened]:
    """Trains the network plainly and under each kind of fault, and measures both under the same draws of it.

    Where faults last, once more with normalizations measured anew under each draw.
    """
    plain, plain_s = trained(train, None, seed=seed, label="training plainly", progress=progress)
    batches = batches_of(test)
    config = CampaignConfig(min_draws=DRAWS, max_draws=DRAWS, half_width=None, seed=seed)
    images = to_float(train.images[:CALIBRATION]).contiguous(memory_format=torch.channels_last)

    def measured(kind: Kind, name: str, model: nn.Module, recalibration: Tensor | None = None) -> CampaignResult:
        return sweep(
            model,
            batches,
            kind.fault,
            kind.rates,
            config=config,
            recalibration=recalibration,
            progress=lambda _, done, total: progress(f"measuring, {name}, {kind.fault.place}", done, total),
        )

    found = []
    for kind in KINDS:
        place = kind.fault.place
        tolerant, tolerant_s = trained(
            train, kind.fault, seed=seed, label=f"training under faults of {place}", progress=progress
        )
        networks = {"plain": plain, "tolerant": tolerant}
        before, after = (measured(kind, name, model) for name, model in networks.items())
        lasting = networks if place == "weights" else {}
        again = tuple(measured(kind, f"{name}, recalibrated", model, images) for name, model in lasting.items())
        found.append(Hardened(kind, before, after, again, compare(after, before), (plain_s, tolerant_s)))
    return found
