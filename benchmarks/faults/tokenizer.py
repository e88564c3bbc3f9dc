"""An image tokenizer whose integer weights fail: what is left of the images that its decoder draws.

The small model that comes with the package, its decoder's convolutions in 8 bits; test images through the tokenizer and
back. Judged by the distance to the same images without faults, to the originals, and by a classifier that took no part.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.images import open_images
from sparing.faults import BitFlip, FaultModel, StuckAt, fault_sites, inject
from sparing.quant import Int8Conv2d
from sparing.var.decoder import ImageDecoder
from sparing.var.formats import int8_precision
from sparing.var.pipeline import VARPipeline, weights_fingerprint
from sparing.var.plan import CompressionPlan
from sparing.var.quality import frechet_distance
from sparing.vision import load_classifier, logits_and_features

JUDGE = Path("benchmarks/var/judge.safetensors")
FAULTS: dict[str, tuple[FaultModel, tuple[float, ...]]] = {
    "iBF of weights": (BitFlip(p=0.0), (1e-5, 1e-4, 1e-3, 1e-2)),
    "adSAF, bit form": (StuckAt(rate=0.0, form="bit"), (0.005, 0.01, 0.02, 0.04, 0.08)),
    "adSAF, cell form": (StuckAt(rate=0.0, form="cell"), (0.005, 0.01, 0.02, 0.04, 0.08)),
}
IMAGES = 500


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """All faults, rates and draws.

    Returns:
        What was found, and what was read.
    """
    _, test = open_images(options)
    draws, test = options.draws, test.subset(range(min(len(test), IMAGES)))
    pipe = VARPipeline.from_pretrained("cifar10")
    pipe.use(None)
    model, weights = pipe.transformer.config, weights_fingerprint(pipe.transformer)
    plan = CompressionPlan(model=model, weights=weights, precision=int8_precision(model))
    decoder = ImageDecoder(pipe.tokenizer, plan=plan).eval()
    judge = load_classifier(JUDGE)
    with torch.inference_mode():
        images = torch.from_numpy(test.images)
        parts = [pipe.tokenizer.encode(part / 127.5 - 1) for part in images.split(100)]
        f_hat = torch.cat([pipe.tokenizer.quantize.decode(tokens) for tokens in parts])
    _, real = logits_and_features(judge.model, test.images)
    layers = [name for name, module in decoder.named_modules() if isinstance(module, Int8Conv2d)]
    sound = decoder(f_hat)

    def told(drawn: Tensor) -> dict[str, float]:
        logits, features = logits_and_features(judge.model, drawn.numpy())
        return {
            "psnr_to_original_db": _psnr(drawn, images),
            "judged_right": float((logits.argmax(1) == test.labels).mean()),
            "frechet": frechet_distance(real, features),
        }

    rows = []
    for name, (fault, rates) in FAULTS.items():
        for rate in rates:
            one = fault.with_rate(rate)
            found = []
            for draw in range(draws):
                with inject(decoder, one, seed=0, draw=draw, include=layers):
                    drawn = decoder(f_hat)
                found.append({"psnr_to_sound_db": _psnr(drawn, sound), **told(drawn)})
            mean = {key: statistics.mean(row[key] for row in found) for key in found[0]}
            rows.append({"fault": name, "rate": rate, "mean": mean, "draws": found})
    count = sum(int(np.prod(site.stored_shape)) for site in fault_sites(decoder) if site.name in layers)
    results = {"images": len(test), "draws": draws, "layers": len(layers), "weights": count}
    return {**results, "sound": told(sound), "rows": rows}, {"name": test.name, "test": len(test)}


def _psnr(a: Tensor, b: Tensor) -> float:
    """Mean over images, in dB; of equal images 99."""
    errors = (a.float() - b.float()).square().mean((1, 2, 3)).clamp(min=255**2 / 10**9.9)
    return float((10 * torch.log10(255**2 / errors)).mean())
