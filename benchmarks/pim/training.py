"""Accuracy of 3-bit networks at equal crossbars on CIFAR-10; each training is a job that goes on where it was stopped.

Every 3-bit network is fine-tuned from its own float training by the same schedule, with its float self as teacher. All
jobs of a seed share its dense float network; the narrower rivals have their own.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.images import open_images
from benchmarks.jobs import Job, known_results, run_jobs, slug
from benchmarks.pim import contestants
from benchmarks.pim.contestants import BITS, CROSSBAR
from benchmarks.pim.stuck import stuck_accuracies
from benchmarks.stages import result_file
from sparing.pim import (
    NetworkDesign,
    convert_,
    dense_design,
    hardware_report,
    load_hardware,
    num_crossbars,
    num_planes,
    quantize_,
)
from sparing.pim.block_ranges import RangeRule
from sparing.vision import (
    ClassifierTrainingConfig,
    DistillationStep,
    ImageDataset,
    evaluate_classifier,
    resnet20,
    to_float,
    train_classifier_,
)

_NARROW = {"narrow float": False, "shallow float": True}
# The most telling first, over their seeds: at equal crossbars, then the range rules, then each of the rest.
EQUAL_CROSSBARS = ("float", "designed", "epitome", "narrow float", "narrow", "pruned")
RANGE_RULES = ("float", "epitome", "epitome, max")
_RULES: dict[str, RangeRule] = {"epitome, max": "max", "epitome, overlap": "overlap"}  # of all others weighted_mse
OTHERS = ("dense", "shallow float", "shallow", "wrapped", "broad", "epitome, overlap")
# Networks of other jobs whose normalizations are measured anew on each chip.
RECALIBRATED = {f"{job}, recalibrated": job for job in ("designed", "epitome", "narrow", "pruned")}
RECALIBRATION_IMAGES = 256
WHOLE_SEEDS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What all jobs share."""

    options: argparse.Namespace
    train: ImageDataset
    test: ImageDataset
    folder: Path

    def config(self, seed: int, *, fine: bool) -> ClassifierTrainingConfig:
        """Settings of a float training or of a fine-tuning."""
        options = self.options
        batch_size = min(128, len(self.train))
        if fine:
            return ClassifierTrainingConfig(
                epochs=options.fine_tune_epochs,
                learning_rate=options.fine_tune_rate,
                seed=1000 + seed,
                batch_size=batch_size,
            )
        return ClassifierTrainingConfig(epochs=options.epochs, seed=seed, batch_size=batch_size)

    def trained(
        self, model: nn.Module, job: str, seed: int, *, fine: bool, teacher: nn.Module | None = None
    ) -> dict[str, Any]:
        """Trains a model, or takes what its folder holds; measures it in float32."""
        start = time.perf_counter()
        result = train_classifier_(
            model,
            self.train,
            config=self.config(seed, fine=fine),
            checkpoint_folder=self.folder_of(job, seed) / "checkpoints",
            validation=self.test,
            step=None if teacher is None else DistillationStep(teacher),
        )
        seconds = time.perf_counter() - start
        return {
            "accuracy": evaluate_classifier(model, self.test),
            "train_loss": result.history[-1].train_loss,
            "accuracy_by_epoch": [epoch.validation_accuracy for epoch in result.history],
            "precision_of_training": result.precision,
            "steps": result.steps,
            "seconds_of_last_session": seconds,
            "steps_of_last_session": result.steps - result.resumed_step,
        }

    def folder_of(self, job: str, seed: int) -> Path:
        """Where a job keeps its checkpoints and its result."""
        return self.folder / f"seed{seed}-{slug(job)}"

    def float_model(self, job: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """A trained float network: ResNet-20, or a rival within the budget."""
        model: nn.Module
        if job == "float":
            model = resnet20(seed=seed)
        else:
            model = contestants.largest_within(contestants.budget(), shallow=_NARROW[job], seed=seed)
        return model, self.trained(model, job, seed, fine=False)


def jobs(seeds: list[int]) -> list[tuple[int, str]]:
    """All jobs in their order; the first seeds run all, the others what the range rules need."""
    whole = seeds[:WHOLE_SEEDS]
    found = [(seed, job) for seed in whole for job in EQUAL_CROSSBARS]
    found += [(seed, job) for seed in seeds for job in RANGE_RULES]
    found += [(seed, job) for job in RECALIBRATED for seed in whole]
    found += [(seed, job) for job in OTHERS for seed in whole]
    return list(dict.fromkeys(found))


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the jobs that have no result yet.

    Returns:
        What there is, and what was read.
    """
    train, test = open_images(options)
    fine = f"f{options.fine_tune_epochs}-r{options.fine_tune_rate:g}-taught"
    bench = Bench(options, train, test, options.work / f"e{options.epochs}-{fine}")
    wanted = jobs(options.seeds[:1] if options.tiny else options.seeds)

    settings = {
        "network": "ResNet-20",
        "crossbar": str(CROSSBAR),
        "weight_bits": BITS,
        "activation_bits": contestants.ACTIVATION_BITS,
        "budget": contestants.budget(),
        "float_training": bench.config(0, fine=False).model_dump(mode="json"),
        "fine_tuning": bench.config(0, fine=True).model_dump(mode="json"),
        "stuck_draws": options.stuck_draws,
        "stuck_images": options.stuck_images,
        "recalibration_images": RECALIBRATION_IMAGES,
    }
    todo = [
        Job({"seed": seed, "job": job}, bench.folder_of(job, seed), partial(_run, bench, job, seed))
        for seed, job in wanted
    ]
    known = known_results(result_file("training", options), settings)
    rows = run_jobs(todo, most=options.jobs, only=options.only, known=known)
    results = {
        **settings,
        "jobs_open": len(wanted) - len(rows),
        "jobs": rows,
    }
    return results, {"name": train.name, "train": len(train), "test": len(test)}


def _run(bench: Bench, job: str, seed: int) -> dict[str, Any]:
    if job in RECALIBRATED:
        return {"stuck_cells": _compressed(bench, RECALIBRATED[job], seed, recalibrate=True)["stuck_cells"]}
    if job.endswith("float"):
        model, trained = bench.float_model(job, seed)
        network = contestants.shape_of(model)
        return {"parameters": _parameters(model), **_chip(model, dense_design(network)), **trained}
    return _compressed(bench, job, seed)


def _compressed(bench: Bench, job: str, seed: int, *, recalibrate: bool = False) -> dict[str, Any]:
    narrow = f"{job} float"
    model, before = bench.float_model(narrow if narrow in _NARROW else "float", seed)
    teacher = copy.deepcopy(model)
    told: dict[str, Any] = {"accuracy_in_float": before["accuracy"]}
    network, most = contestants.shape_of(model), contestants.budget()
    kind, rule = job.removesuffix(", max").removesuffix(", overlap"), _RULES.get(job, "weighted_mse")
    masks = None
    if kind == "pruned":
        told["pruning_rule"], masks = contestants.pruned_masks(model, bench.train, most)
    designs: dict[str, Callable[[], NetworkDesign]] = {
        "epitome": lambda: contestants.uniform_within(network, most),
        "broad": lambda: contestants.broad_epitome(network),
        "wrapped": lambda: contestants.uniform_within(network, most, wrapped=True),
        "designed": lambda: contestants.designed_within(model, bench.train, most),
    }
    design = designs.get(kind, lambda: contestants.dense_at_bits(network))()
    told |= _chip(model, design) | {"parameters": _parameters(model), "rule": rule}
    if masks is not None:
        contestants.mask_(model, masks)
        count = contestants.kept_blocks(network, masks) * num_planes(BITS)
        dense = told["crossbars"]
        told |= {"crossbars": count, "ratio": _ratio(told["crossbars_float"], dense, count)}
        told.pop("modelled")  # the hardware model knows no missing blocks
    told["residuals"] = {layer.name: layer.residual for layer in convert_(model, design)}
    quantize_(model, design, crossbar=CROSSBAR, rule=rule)
    told |= bench.trained(model, job, seed, fine=True, teacher=teacher)
    if masks is not None:
        told["pruned_weights_not_0"] = _revived(model, masks)
    some = bench.test.subset(range(min(len(bench.test), bench.options.stuck_images)))
    images = to_float(torch.from_numpy(bench.train.images[:RECALIBRATION_IMAGES])) if recalibrate else None
    draws = bench.options.stuck_draws
    told["stuck_cells"] = stuck_accuracies(model, network, design, some, draws=draws, masks=masks, recalibration=images)
    return told | {"design": design.model_dump(mode="json", exclude_none=True)}


def _chip(model: nn.Module, design: NetworkDesign) -> dict[str, Any]:
    """Crossbars, and of a network in few bits what the model of the chip says."""
    network = contestants.shape_of(model)
    # Against ResNet-20 in floats, which the rivals are smaller versions of.
    whole = contestants.shape_of(resnet20())
    floats = num_crossbars(whole, dense_design(whole), CROSSBAR)
    count = num_crossbars(network, design, CROSSBAR)
    bits = {layer.bits for layer in design.layers.values()}
    dense = num_crossbars(whole, dense_design(whole, bits=min(bits)), CROSSBAR)
    told: dict[str, Any] = {"crossbars": count, "crossbars_float": floats, "ratio": _ratio(floats, dense, count)}
    if bits == {BITS}:
        cost = hardware_report(network, design, load_hardware("mnsim").with_crossbar(CROSSBAR)).design
        told["modelled"] = {
            "latency_s": cost.latency_s,
            "energy_j": cost.energy_j,
            "area_m2": cost.area_m2,
            "num_rounds": cost.num_rounds,
            "adc_conversions": cost.adc_conversions,
        }
    return told


def _ratio(floats: int, dense: int, count: int) -> dict[str, float]:
    """By bits, by what is stored, and in all."""
    return {"bits": floats / dense, "form": dense / count, "total": floats / count}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _revived(model: nn.Module, masks: contestants.Masks) -> int:
    """Weights of pruned blocks that are not 0 after all."""
    modules = dict(model.named_modules())
    return sum(int((modules[name].weight.detach()[mask == 0] != 0).sum()) for name, mask in masks.items())


def paired(rows: list[dict[str, Any]], first: str, second: str) -> list[float]:
    """Differences in accuracy of two jobs, in points, over the seeds that have both."""
    found = {(row["seed"], row["job"]): row["accuracy"] for row in rows}
    seeds = sorted({seed for seed, _ in found})
    return [
        100 * (found[seed, first] - found[seed, second])
        for seed in seeds
        if (seed, first) in found and (seed, second) in found
    ]
