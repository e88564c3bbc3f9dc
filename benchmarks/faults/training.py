"""What fault-tolerant training gains on ResNet-20 and CIFAR-10, and what the cheaper ways of hardening do.

Every training is a job that goes on where it was stopped: fixed point from the first step, the same epochs for all.
Accuracy under faults: paired draws on test images; ranges are frozen after training.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.images import open_images
from benchmarks.jobs import Job, known_results, run_jobs, slug
from benchmarks.stages import result_file
from sparing.faults import BitBias, BitFlip, FaultModel, StuckAt, calibrate_, fixed_point_, sweep
from sparing.faults.campaign_result import CampaignConfig, CampaignResult, compare
from sparing.faults.hardening import clip_ranges_
from sparing.faults.training import FaultTolerantStep, WeightClippingStep
from sparing.vision import (
    ClassifierTrainingConfig,
    ImageDataset,
    TrainingResult,
    TrainingStep,
    evaluate_classifier,
    resnet20,
    to_float,
    train_classifier_,
)

MIBB, STUCK_BIT, STUCK_CELL = BitBias(p_m=3e-4), StuckAt(rate=0.08, form="bit"), StuckAt(rate=0.08, form="cell")
TESTS: dict[str, tuple[FaultModel, tuple[float, ...]]] = {
    "MiBB": (MIBB, (1e-5, 3e-5, 1e-4, 3e-4)),
    "adSAF, bit form": (STUCK_BIT, (0.01, 0.02, 0.04, 0.08)),
    "adSAF, cell form": (STUCK_CELL, (0.01, 0.02, 0.04, 0.08)),
    "iBF of weights": (BitFlip(p=1e-3), (1e-4, 1e-3, 1e-2)),
}
SHARE = 0.7  # the published setting of the final training
# The most telling first; the first pass over them is for each seed, the rest afterwards.
FIRST = ("plain", "MiBB", "adSAF, bit form")
OTHERS = ("adSAF, cell form", "RandBET")
# The same trainings with all weights kept within WEIGHT_LIMIT.
CLIPPED = {f"{job}, weights clipped": job for job in ("adSAF, bit form", "plain")}
# Networks of other jobs whose normalizations are measured anew on each chip, that is under each draw.
RECALIBRATED = {f"{job}, recalibrated": job for job in ("plain", "adSAF, bit form")}
STUCK = ("adSAF, bit form", "adSAF, cell form")
OF_CHIPS = (*STUCK, "iBF of weights")
CALIBRATION_IMAGES, CLIP_QUANTILE, WEIGHT_LIMIT = 1000, 1.0, 0.125
RECALIBRATION_IMAGES = 256


def _step(job: str, seed: int) -> TrainingStep | None:
    if job == "plain":
        return None
    if job in CLIPPED:
        return WeightClippingStep(WEIGHT_LIMIT, step=_step(CLIPPED[job], seed))
    if job == "RandBET":
        bits = FaultTolerantStep(BitFlip(p=1e-2), share=0.5, seed=seed)
        return WeightClippingStep(WEIGHT_LIMIT, step=bits)
    return FaultTolerantStep(TESTS[job][0], share=SHARE, seed=seed)


def jobs(seeds: list[int]) -> list[tuple[int, str]]:
    """All jobs in their order."""
    return [(seed, job) for part in (FIRST, CLIPPED, RECALIBRATED, OTHERS) for seed in seeds for job in part]


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the jobs that have no result yet.

    Returns:
        What there is, and what was read.
    """
    train, test = open_images(options)
    test = test.subset(range(min(len(test), options.images)))
    config = CampaignConfig(min_draws=options.draws, max_draws=options.draws, half_width=None, seed=0)
    wanted = jobs(options.seeds)
    root = options.work / f"e{options.epochs}"

    settings = {
        "network": "ResNet-20, 8-bit fixed point",
        "share": SHARE,
        "training": _config(options, 0).model_dump(mode="json"),
        "draws": options.draws,
        "images": len(test),
        "recalibration_images": RECALIBRATION_IMAGES,
        "weight_limit": WEIGHT_LIMIT,
    }
    todo = []
    for seed, job in wanted:
        folder = root / f"seed{seed}-{slug(job)}"
        run = partial(_run, job, seed, train, test, options, folder, config)
        todo.append(Job({"seed": seed, "job": job}, folder, run))
    known = known_results(result_file("training", options), settings)
    rows = run_jobs(todo, most=options.jobs, only=options.only, known=known)
    results = {
        **settings,
        "jobs_open": len(wanted) - len(rows),
        "jobs": rows,
        "gains": gains(rows),
    }
    return results, {"name": train.name, "train": len(train), "test": len(test)}


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points gained against plain training under a fault, at its last rate, by seed.

    Of what was trained under the fault (its own), and of what was clipped or measured anew on each chip.
    """
    found = {(row["seed"], row["job"]): row for row in rows}
    out = []
    for (seed, job), row in found.items():
        plain = found.get((seed, "plain"))
        for fault in STUCK if job in CLIPPED or job in RECALIBRATED else [job] if job in TESTS else []:
            if plain is not None:
                a, b = (CampaignResult.model_validate(r["under_faults"][fault]) for r in (row, plain))
                difference = compare(a, b)[-1]
                own = fault == CLIPPED.get(job, job)
                out.append({"seed": seed, "job": job, "fault": fault, "own": own, **dataclasses.asdict(difference)})
    return out


def _config(options: argparse.Namespace, seed: int) -> ClassifierTrainingConfig:
    return ClassifierTrainingConfig(epochs=options.epochs, seed=seed, batch_size=options.batch_size)


def _run(
    job: str,
    seed: int,
    train: ImageDataset,
    test: ImageDataset,
    options: argparse.Namespace,
    folder: Path,
    config: CampaignConfig,
) -> dict[str, Any]:
    some = to_float(torch.from_numpy(train.images[:CALIBRATION_IMAGES]))
    if job in RECALIBRATED:
        trained = RECALIBRATED[job]
        model, _ = _trained(trained, seed, train, options, folder.parent / f"seed{seed}-{slug(trained)}", some)
        tests = {name: TESTS[name] for name in OF_CHIPS}
        return {"under_faults": _tests(model, test, config, tests, recalibration=some[:RECALIBRATION_IMAGES])}
    model, result = _trained(job, seed, train, options, folder, some)
    told: dict[str, Any] = {
        "accuracy": evaluate_classifier(model, test),
        "train_loss": [epoch.train_loss for epoch in result.history],
        "under_faults": _tests(model, test, config, TESTS),
    }
    if job == "plain":
        clipped = copy.deepcopy(model)
        clip_ranges_(clipped, some, quantile=CLIP_QUANTILE)
        told["clipped"] = _tests(clipped, test, config, {"MiBB": TESTS["MiBB"]})
    return told


def _trained(
    job: str, seed: int, train: ImageDataset, options: argparse.Namespace, folder: Path, some: Tensor
) -> tuple[nn.Module, TrainingResult]:
    model = resnet20(seed=seed)
    fixed_point_(model, some)
    result = train_classifier_(
        model,
        train,
        config=_config(options, seed),
        checkpoint_folder=folder / "checkpoints",
        step=_step(job, seed),
    )
    calibrate_(model, some)
    return model, result


def _tests(
    model: nn.Module,
    test: ImageDataset,
    config: CampaignConfig,
    tests: dict[str, tuple[FaultModel, tuple[float, ...]]],
    *,
    recalibration: Tensor | None = None,
) -> dict[str, Any]:
    images = to_float(torch.from_numpy(test.images)).contiguous(memory_format=torch.channels_last)
    labels = torch.from_numpy(test.labels)
    batches = list(zip(images.split(250), labels.split(250), strict=True))
    return {
        name: sweep(model, batches, fault, rates, config=config, recalibration=recalibration).model_dump(mode="json")
        for name, (fault, rates) in tests.items()
    }
