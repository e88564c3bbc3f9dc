"""Searched networks against hand-made ones, all trained under the same faults for the same epochs.

Images are CIFAR-10's, averaged to 16 × 16: networks of two cores' size. Each rival sets the budget of the search that
it is compared with: the searched network has no more products and no more parameters. Jobs go on when run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.images import open_images
from benchmarks.jobs import RESULT, Job, known_results, run_jobs, slug
from benchmarks.stages import result_file
from sparing.faults import BitBias, FaultModel, FaultTolerantStep, StuckAt, calibrate_, compare, fixed_point_, sweep
from sparing.faults.campaign_result import CampaignConfig, CampaignResult
from sparing.nas import CellNetwork, network_cost
from sparing.nas.archive import read_archive
from sparing.nas.derive import SearchResult
from sparing.nas.images import downscaled
from sparing.nas.search import run_search
from sparing.nas.search_config import SearchConfig, preset_config
from sparing.vision import (
    ClassifierTrainingConfig,
    ImageDataset,
    MobileNetV2,
    MobileNetV2Config,
    evaluate_classifier,
    resnet20,
    to_float,
    train_classifier_,
)

SHARE = 0.7
MOBILENET_WIDTH = 0.25
CALIBRATION_IMAGES = 1000


@dataclasses.dataclass(frozen=True)
class Study:
    """One comparison.

    Attributes:
        name: of the study.
        space: that is searched.
        fault: that is searched under, and that networks are trained and measured under.
        rates: to measure at, the last is the one claimed for.
        rival: its name and how it is made, from a seed.
        draws: of faults for each network and rate.
    """

    name: str
    space: str
    fault: FaultModel
    rates: tuple[float, ...]
    rival: tuple[str, Callable[[int], nn.Module]]
    draws: int


def _mobilenet(seed: int) -> nn.Module:
    config = MobileNetV2Config(width_multiplier=MOBILENET_WIDTH, num_classes=10, stem="cifar")
    return MobileNetV2(config, seed=seed)


def _resnet(seed: int) -> nn.Module:
    return resnet20(seed=seed)


BITS, CELLS = StuckAt(rate=0.08, form="bit"), StuckAt(rate=0.08, form="cell")
STUDIES = {
    study.name: study
    for study in (
        Study(
            "features",
            "feature",
            BitBias(p_m=3e-4),
            (1e-5, 3e-5, 1e-4, 3e-4),
            ("MobileNetV2", _mobilenet),
            20,
        ),
        Study("weights, bit form", "weight", BITS, (0.02, 0.04, 0.08), ("ResNet-20", _resnet), 100),
        Study("weights, cell form", "weight", CELLS, (0.02, 0.04, 0.08), ("ResNet-20", _resnet), 100),
    )
}


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all jobs share."""

    options: argparse.Namespace
    train: ImageDataset
    test: ImageDataset
    small_train: ImageDataset
    small_test: ImageDataset

    @property
    def image_size(self) -> int:
        """Side of the small images."""
        return int(self.small_train.images.shape[-1])

    def search_config(self, study: Study, seed: int, *, fault_tolerant: bool) -> SearchConfig:
        """Of a search within the rival's budget."""
        most = network_cost(study.rival[1](0), image_size=self.image_size)
        share = {} if fault_tolerant else {"loss_share": 0.0}
        return preset_config(
            self.options.preset,
            space=study.space,
            fault=study.fault,
            mode=self.options.mode,
            max_macs=most.num_macs,
            max_parameters=most.num_parameters,
            objectives=("clean", "faulty"),  # the budget bounds the rest
            seed=seed,
            supernet=share,
            halving=share,
        )

    def training(self, seed: int) -> ClassifierTrainingConfig:
        """Of every final network."""
        return ClassifierTrainingConfig(
            epochs=self.options.epochs,
            batch_size=self.options.batch_size,
            learning_rate=0.1,
            weight_decay=4e-5,
            crop_padding=2,
            seed=seed,
            precision="float32",
        )


# Of each study: (job, seed). The search is one; its network and the rival are trained with each seed.
JOBS = ("search", "searched", "rival")
ABLATION = ("search, no faults in training", "searched, no faults in training")


def jobs(options: argparse.Namespace) -> list[tuple[str, int, str]]:
    """All jobs in their order: study, seed, job."""
    found: list[tuple[str, int, str]] = []
    for kinds in (JOBS, ABLATION):
        for study in options.studies:
            for seed in options.seeds:
                found += [
                    (study, seed, job) for job in kinds if seed == options.seeds[0] or not job.startswith("search,")
                ]
    # One search a study: the others' seeds train what it found.
    return [(study, seed, job) for study, seed, job in found if job != "search" or seed == options.seeds[0]]


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the jobs that have no result yet.

    Returns:
        What there is, and what was read.
    """
    bench = open_bench(options)
    wanted = jobs(options)
    root = options.work / f"{options.preset}-e{options.epochs}"

    settings = {
        "preset": options.preset,
        "mode": options.mode,
        "image_size": bench.image_size,
        "share": SHARE,
        "training": bench.training(0).model_dump(mode="json"),
        "images": options.images,
        "draws": options.draws,  # None: as each study says
    }
    todo = []
    for name, seed, job in wanted:
        folder = root / slug(name) / f"seed{seed}-{slug(job)}"
        run = partial(_timed, bench, STUDIES[name], seed, job, folder)
        todo.append(Job({"study": name, "seed": seed, "job": job}, folder, run))
    known = known_results(result_file("studies", options), settings)
    rows = run_jobs(todo, most=options.jobs, only=options.only, known=known)
    results = {
        **settings,
        "jobs_open": len(wanted) - len(rows),
        "jobs": rows,
        "differences": differences(rows),
    }
    return results, {"name": bench.small_train.name, "train": len(bench.train), "test": len(bench.test)}


def differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Searched network less rival, paired draws, at the last rate, seed by seed."""
    found = {(row["study"], row["seed"], row["job"]): row for row in rows}
    out = []
    for (study, seed, job), row in found.items():
        if job not in ("searched", ABLATION[1]):
            continue
        for other in ("rival",) if job == "searched" else ("rival", "searched"):
            if (study, seed, other) in found:
                a, b = (CampaignResult.model_validate(r["under_faults"]) for r in (row, found[study, seed, other]))
                out.append({"study": study, "seed": seed, "first": job, "second": other, **_last(a, b)})
    return out


def _last(a: CampaignResult, b: CampaignResult) -> dict[str, Any]:
    return dataclasses.asdict(compare(a, b)[-1])


def _timed(bench: Bench, study: Study, seed: int, job: str, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    return {**_run(bench, study, seed, job, folder), "seconds_of_last_session": time.perf_counter() - start}


def _run(bench: Bench, study: Study, seed: int, job: str, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    if job.startswith("search") and not job.startswith("searched"):
        config = bench.search_config(study, seed, fault_tolerant=job == "search")
        found = run_search(bench.train, config=config, folder=folder / "search", workers=bench.options.workers)
        chosen = read_archive(folder / "search")[found.chosen]
        return {"result": found.model_dump(mode="json"), "chosen": chosen.model_dump(mode="json")}
    model: nn.Module
    told: dict[str, Any] = {}
    if job == "rival":
        model = study.rival[1](seed)
        told["network"] = study.rival[0]
    else:
        found = _found(bench, folder, job)
        channels, cells = found.channels, found.num_cells
        model = CellNetwork(found.genotype, 10, channels=channels, num_cells=cells, dropout=0.1, seed=seed)
        told |= {
            "network": "searched",
            "channels": channels,
            "num_cells": cells,
            "genotype": found.genotype.model_dump(mode="json"),
        }
    cost = network_cost(model, image_size=bench.image_size)
    told |= {"num_parameters": cost.num_parameters, "num_macs": cost.num_macs}
    return told | trained(bench, study, model, seed, folder)


def _found(bench: Bench, folder: Path, job: str) -> SearchResult:
    first = bench.options.seeds[0]
    search = folder.parent / f"seed{first}-{slug(job.replace('searched', 'search'))}"
    row = json.loads((search / RESULT).read_text(encoding="utf-8"))
    return SearchResult.model_validate(row["result"])


def trained(bench: Bench, study: Study, model: nn.Module, seed: int, folder: Path) -> dict[str, Any]:
    """Trains a network under a study's fault, with checkpoints in a folder, and measures it."""
    some = to_float(torch.from_numpy(bench.small_train.images[:CALIBRATION_IMAGES]))
    fixed_point_(model, some)
    result = train_classifier_(
        model,
        bench.small_train,
        config=bench.training(seed),
        checkpoint_folder=folder / "checkpoints",
        step=FaultTolerantStep(study.fault, share=SHARE, seed=seed),
    )
    calibrate_(model, some)
    test = bench.small_test.subset(range(min(len(bench.small_test), bench.options.images)))
    images = to_float(torch.from_numpy(test.images)).contiguous(memory_format=torch.channels_last)
    batches = list(zip(images.split(250), torch.from_numpy(test.labels).split(250), strict=True))
    draws = min(study.draws, bench.options.draws or study.draws)
    config = CampaignConfig(min_draws=draws, max_draws=draws, half_width=None, seed=0)
    return {
        "accuracy": evaluate_classifier(model, bench.small_test),
        "train_loss": [epoch.train_loss for epoch in result.history],
        "under_faults": sweep(model, batches, study.fault, study.rates, config=config).model_dump(mode="json"),
    }


def open_bench(options: argparse.Namespace) -> Bench:
    """Reads the images."""
    train, test = open_images(options, tiny=160)
    size = preset_config(options.preset).image_size
    return Bench(options, train, test, downscaled(train, size), downscaled(test, size))
