"""The quality stage: opens the model, the judge and the data, and runs every variant."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import torch

from benchmarks.stages import result_file
from benchmarks.var import quality
from sparing.errors import ArgumentError
from sparing.var.pipeline import VARPipeline
from sparing.var.training.transformer import encode_dataset
from sparing.vision import load_cifar10, load_classifier

SEED, BEST_GUIDANCE = 0, 1.5
FLOOR_REMOVED, GOAL_REMOVED = 0.852, 0.92


def quality_session(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """All variants of one model: results, and what the run read."""
    if options.data is None:
        raise ArgumentError("--data: expected CIFAR-10's folder, or SPARING_DATA in the environment")
    exact = VARPipeline.from_pretrained(options.pipeline)
    pipe = VARPipeline.from_pretrained(options.pipeline, dtype=torch.bfloat16)
    shipped, classifier = pipe.plan, load_classifier(options.classifier)
    exact.use(None)
    pipe.use(None)
    test, train = load_cifar10(options.data, split="test"), load_cifar10(options.data, split="train")
    seen = encode_dataset(exact.tokenizer, train.subset(range(quality.CALIBRATION_IMAGES)))
    tokens = encode_dataset(exact.tokenizer, test.subset(range(quality.DIVERGENCE_IMAGES)))
    file = result_file("quality", options)
    bench = quality.Bench(
        pipe,
        classifier,
        test,
        torch.from_numpy(tokens.tokens[0].astype("int64")),
        (torch.from_numpy(seen.tokens[0].astype("int64")), torch.from_numpy(seen.labels)),
        options.samples,
        SEED,
        BEST_GUIDANCE,
        options.work,
        quality.known_figures(json.loads(file.read_text(encoding="utf-8"))["results"]) if file.is_file() else {},
    )
    whole = dataclasses.replace(bench, pipe=exact)
    results: dict[str, Any] = {"reconstruction": quality.reconstruction(whole)}
    results["guidance"] = quality.guidance_sweep(bench)
    best = min(results["guidance"], key=lambda row: row["frechet"])
    results["best_guidance"] = bench.guidance = best["guidance_scale"]
    agreeing = max(results["guidance"], key=lambda row: row["class_agreement"])["guidance_scale"]
    results["float32"] = whole.measure(bench.empty(), guidance=bench.guidance)
    if shipped is not None:
        results["shipped_plan"] = bench.measure(shipped)
    results["real_int8"] = quality.real_int8(bench)
    results["floor"] = quality.at_least(bench, FLOOR_REMOVED)
    results["floor_at_agreement"] = quality.at_least(bench, FLOOR_REMOVED, guidance=agreeing)
    for name in ("tau_sweep", "window_rules", "sharing_variants", "front", "bit_table", "seven_layers"):
        results[name] = getattr(quality, name)(bench)
    return results, {"name": test.name, "samples": options.samples, "features": bench.features}
