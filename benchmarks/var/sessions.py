"""The quality stage: opens the model, the judge and the data, and runs every variant."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.stages import result_file
from benchmarks.var import quality, variants
from sparing.errors import ArgumentError
from sparing.var.pipeline import VARPipeline
from sparing.var.training.transformer import encode_dataset
from sparing.vision import load_cifar10, load_classifier

SEED = 0


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
        pipe=pipe,
        exact=exact,
        shipped=shipped,
        classifier=classifier,
        test=test,
        tokens=torch.from_numpy(tokens.tokens[0].astype("int64")),
        calibration=(torch.from_numpy(seen.tokens[0].astype("int64")), torch.from_numpy(seen.labels)),
        samples=options.samples,
        seed=SEED,
        work=options.work,
        known=quality.known_figures(json.loads(file.read_text(encoding="utf-8"))["results"]) if file.is_file() else {},
        jobs=options.jobs,
    )
    results: dict[str, Any] = {"reconstruction": quality.reconstruction(bench)}
    results["guidance"] = bench.rows(variants.guidance(bench))
    if not results["guidance"]:
        raise ArgumentError("--jobs: expected at least 1 where nothing is known yet")
    bench.guidance = min(results["guidance"], key=lambda row: row["frechet"])["guidance_scale"]
    agreeing = max(results["guidance"], key=lambda row: row["class_agreement"])["guidance_scale"]
    bench.strengths = tuple(dict.fromkeys((bench.guidance, agreeing)))
    results["best_guidance"] = bench.guidance
    for section in variants.SECTIONS:
        results[section.__name__] = bench.rows(section(bench))
    results["jobs_open"] = bench.jobs_open
    return results, {"name": test.name, "samples": options.samples, "features": bench.features}
