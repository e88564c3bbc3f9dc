"""Which primitives bear which faults: networks of one primitive each, with as many parameters, trained alike.

Residual networks of three stages; the width is the one that comes nearest to the parameters asked for. A primitive with
few weights of its own is therefore wide, one with many narrow: what is compared is how weights are spent.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.jobs import Job, known_results, run_jobs, slug
from benchmarks.nas.studies import SHARE, STUDIES, Bench, Study, open_bench, trained
from benchmarks.stages import result_file
from sparing.nas import network_cost
from sparing.nas.primitives import make_primitive

PRIMITIVES = ("sep3", "sep5", "dil3", "rcb3", "rcb5")
PARAMETERS, WIDEST = 120_000, 80
NUM_STAGES, NUM_BLOCKS = 3, 2
STUDY_NAMES = ("features", "weights, bit form")


class OnePrimitive(nn.Module):
    """A residual network of one primitive: a stem, stages of doubling width and halving size, a linear classifier.

    Args:
        primitive: of the space that has all of them.
        width: channels of the first stage.
        seed: of the initial weights.
    """

    def __init__(self, primitive: str, width: int, *, seed: int = 0) -> None:
        super().__init__()
        widths = [width << stage for stage in range(NUM_STAGES)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            self.stages = nn.ModuleList(
                nn.ModuleList(make_primitive(primitive, own, 1) for _ in range(NUM_BLOCKS)) for own in widths
            )
            self.between = nn.ModuleList(
                nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(own, 2 * own, 1, bias=False), nn.BatchNorm2d(2 * own))
                for own in widths[:-1]
            )
            self.classifier = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to logits."""
        x = self.stem(x)
        for number, blocks in enumerate(self.stages):
            if number:
                x = self.between[number - 1](x)
            for block in cast("nn.ModuleList", blocks):
                x = x + block(x)
        logits: Tensor = self.classifier(torch.relu(x).mean((2, 3)))
        return logits


def matched_width(primitive: str, parameters: int) -> int:
    """The width whose network has the number of parameters nearest to the one given."""

    def miss(width: int) -> int:
        with torch.device("meta"):
            model = OnePrimitive(primitive, width)
        return abs(sum(p.numel() for p in model.parameters()) - parameters)

    return min(range(2, WIDEST), key=miss)


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the jobs that have no result yet.

    Returns:
        What there is, and what was read.
    """
    bench = open_bench(options)
    settings = {
        "parameters": PARAMETERS,
        "stages": NUM_STAGES,
        "blocks": NUM_BLOCKS,
        "image_size": bench.image_size,
        "share": SHARE,
        "training": bench.training(0).model_dump(mode="json"),
        "images": options.images,
        "draws": options.draws,  # None: as each study says
    }
    names = PRIMITIVES[::3] if options.tiny else PRIMITIVES
    wanted = [(study, seed, name) for seed in options.seeds for study in STUDY_NAMES for name in names]
    todo = []
    for study, seed, name in wanted:
        folder = options.work / "primitives" / slug(study) / f"seed{seed}-{name}"
        run = partial(_run, bench, STUDIES[study], seed, name, folder)
        todo.append(Job({"study": study, "seed": seed, "job": name}, folder, run))
    known = known_results(result_file("primitives", options), settings)
    rows = run_jobs(todo, most=options.jobs, only=options.only, known=known)
    results = {**settings, "jobs_open": len(wanted) - len(rows), "jobs": rows}
    return results, {"name": bench.small_train.name, "train": len(bench.train), "test": len(bench.test)}


def _run(bench: Bench, study: Study, seed: int, primitive: str, folder: Path) -> dict[str, Any]:
    width = matched_width(primitive, PARAMETERS)
    model = OnePrimitive(primitive, width, seed=seed)
    cost = network_cost(model, image_size=bench.image_size)
    told = {"width": width, "num_parameters": cost.num_parameters, "num_macs": cost.num_macs}
    return told | trained(bench, study, model, seed, folder)
