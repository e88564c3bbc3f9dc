"""Quality of Model S with all that can be left out, on paired seeds; each variant's figures are kept, so runs go on.

Fréchet distance and class agreement on 10,000 drawn images with the features of a CIFAR-10 (JPEG) classifier that took
no part in training the model; cross-entropy and divergence on the test split's own tokens. Computed in bfloat16, as
the model is deployed; one row shows the model as it is in float32.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sparing.runs.atomic import replace_file
from sparing.var.apply import apply_
from sparing.var.calibrate import FrontPoint, plan_front, uniform_plan
from sparing.var.config import LINEAR_KINDS
from sparing.var.cost import attention_cost, model_cost
from sparing.var.divergence import CalibrationConfig, divergence
from sparing.var.formats import int8_precision, precision_plan
from sparing.var.pipeline import VARPipeline, weights_fingerprint
from sparing.var.plan import CompressionPlan, LinearFormat
from sparing.var.quality import QualityReport, cross_entropy, draw_samples, frechet_distance, measure_quality
from sparing.var.sensitivity import Sensitivity, measure_sensitivity
from sparing.vision import ImageDataset, SavedClassifier, logits_and_features, penultimate_features

GUIDANCES = (0.0, 1.5, 3.0, 4.0, 6.0)
BITS = ((8, 8), (6, 6), (4, 8), (4, 6), (4, 4))
FC2_FORMATS = ("protected", "uniform")
FC2_DUAL_FORMATS = ("dual_range", "dual_sqrt")  # at four bits, where they matter
PUBLISHED_TAUS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
TAUS = (*CalibrationConfig().taus, 0.5, 0.4)
FRONT_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
DIVERGENCE_IMAGES, CALIBRATION_IMAGES = 500, 128
FIGURES = (
    "key",
    "guidance_scale",
    *(field.name for field in dataclasses.fields(QualityReport)),
    "cross_entropy_by_scale",
    "cross_entropy",
    "divergence",
    "attention_removed",
    "windows_removed",
    "macs_removed",
)


def known_figures(value: Any) -> dict[str, dict[str, Any]]:
    """All figures in a stage's results, by their keys."""
    found: dict[str, dict[str, Any]] = {}
    if isinstance(value, dict) and "key" in value:
        found[value["key"]] = {name: value[name] for name in FIGURES if name in value}
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found |= known_figures(part)
    return found


@dataclasses.dataclass
class Bench:
    """The model, the judge and the real images."""

    pipe: VARPipeline
    classifier: SavedClassifier
    test: ImageDataset
    tokens: torch.Tensor
    calibration: tuple[torch.Tensor, torch.Tensor]
    samples: int
    seed: int
    guidance: float
    work: Path
    known: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        self.model = self.pipe.transformer.config
        self.weights = weights_fingerprint(self.pipe.transformer)
        self.labels = torch.from_numpy(self.test.labels)
        self.real = penultimate_features(self.classifier.model, self.test.images)
        self.features = f"penultimate layer of the classifier {self.classifier.meta.get('name', 'given')}"
        self.work.mkdir(parents=True, exist_ok=True)

    def empty(self, **fields: Any) -> CompressionPlan:
        """A plan of this model."""
        return CompressionPlan(model=self.model, weights=self.weights, **fields)

    def config(self) -> CalibrationConfig:
        """What calibration tries."""
        return CalibrationConfig(guidance_scale=self.guidance, taus=TAUS)

    def sensitivity(self, kind: Literal["ours", "published windows", "shared map"] = "ours") -> Sensitivity:
        """What single things cost; measured once."""
        tried: dict[str, Any] = {
            "ours": {},
            "published windows": {"search": "segment", "taus": PUBLISHED_TAUS, "sharing": None},
            "shared map": {"taus": (), "sharing": "map"},
        }[kind]
        config = self.config().model_copy(update=tried)
        cache = self.work / f"sensitivity-{kind.replace(' ', '-')}-{self.weights}.json"
        return measure_sensitivity(self.pipe, config=config, data=self.calibration, cache=cache)

    def measure(self, plan: CompressionPlan, *, guidance: float | None = None, draw: bool = True) -> dict[str, Any]:
        """All figures of a plan; from the work folder where they are there already."""
        guidance = self.guidance if guidance is None else guidance
        about = [guidance, draw, self.samples, self.seed, self.features, str(self.pipe.transformer.head.weight.dtype)]
        fields = [plan.model_dump_json(exclude={"notes"}), *about]
        key = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:20]
        file = self.work / f"quality-{key}.json"
        if file.is_file():
            return {"key": key, **json.loads(file.read_text())}
        if key in self.known:
            return self.known[key]
        apply_(self.pipe, plan)
        result: dict[str, Any] = {"guidance_scale": guidance}
        if draw:
            samples = draw_samples(self.pipe, self.samples, guidance_scale=guidance, seed=self.seed)
            classify = functools.partial(logits_and_features, self.classifier.model)
            report = measure_quality(samples, self.real, classify=classify, features=self.features)
            result |= dataclasses.asdict(report)
        count = DIVERGENCE_IMAGES
        tokens, labels = self.tokens[:count], self.labels[:count]
        entropy = cross_entropy(self.pipe, tokens, labels)
        sizes = np.array(self.model.scale_sizes)
        result["cross_entropy_by_scale"] = entropy.round(5).tolist()
        result["cross_entropy"] = float((entropy * sizes).sum() / sizes.sum())
        result["divergence"] = divergence(self.pipe, [plan], tokens, labels, config=self.config())[0]
        attention, whole = attention_cost(self.model, plan), model_cost(self.model, plan).macs
        result["attention_removed"], result["windows_removed"] = attention.removed, attention.windows_removed
        result["macs_removed"] = 1 - whole / model_cost(self.model).macs
        with replace_file(file) as out:
            out.write(json.dumps(result).encode())
        print(json.dumps({k: v for k, v in result.items() if not isinstance(v, list)}), flush=True)
        return {"key": key, **result}


def guidance_sweep(bench: Bench) -> list[dict[str, Any]]:
    """The baseline at several strengths."""
    return [bench.measure(bench.empty(), guidance=guidance) for guidance in GUIDANCES]


def tau_sweep(bench: Bench) -> list[dict[str, Any]]:
    """Windows alone, found as published: one τ for each segment of each head."""
    found = bench.sensitivity("published windows")
    return [{"tau": tau, **bench.measure(uniform_plan(found, tau=tau, first_shared=None))} for tau in PUBLISHED_TAUS]


def window_rules(bench: Bench) -> list[dict[str, Any]]:
    """Both rules for windows, the same τ in all layers, without drawing: what they remove and what that costs."""
    rows = []
    for rule, kind in (("balanced", "ours"), ("segment", "published windows")):
        found = bench.sensitivity(kind)
        for tau in found.config.taus:
            plan = uniform_plan(found, tau=tau, first_shared=None)
            rows.append({"rule": rule, "tau": tau, **bench.measure(plan, draw=False)})
    return rows


def sharing_variants(bench: Bench) -> list[dict[str, Any]]:
    """Sharing the map or the output from each scale on, in all layers."""
    rows = []
    for variant, kind in (("output", "ours"), ("map", "shared map")):
        found = bench.sensitivity(kind)
        for first in range(0, len(bench.model.patch_nums), 2):
            plan = uniform_plan(found, tau=None, first_shared=first)
            rows.append({"variant": variant, "first_scale": first, **bench.measure(plan)})
    return rows


def front(bench: Bench) -> list[dict[str, Any]]:
    """Plans with balanced windows and sharing chosen layer by layer, and the published form beside them."""
    plans: list[FrontPoint] = plan_front(bench.sensitivity())
    rows = []
    for share in FRONT_SHARES:
        point = next(p for p in plans if p.removed >= share)
        rows.append({"kind": "chosen by layer", "predicted": point.predicted, **bench.measure(point.plan)})
    found = bench.sensitivity("published windows")
    for tau in PUBLISHED_TAUS[::2]:
        plan = uniform_plan(found, tau=tau, first_shared=0)
        rows.append({"kind": "one τ, output shared everywhere", "tau": tau, **bench.measure(plan)})
    return rows


def at_least(bench: Bench, removed: float, *, guidance: float | None = None) -> dict[str, Any]:
    """The plan of least predicted divergence that removes so much, and its figures."""
    meets = [point for point in plan_front(bench.sensitivity()) if point.removed >= removed]
    point = min(meets, key=lambda p: p.predicted)
    return {
        "asked": removed,
        "plan": point.plan.model_dump(mode="json"),
        **bench.measure(point.plan, guidance=guidance),
    }


def bit_table(bench: Bench) -> list[dict[str, Any]]:
    """Weights and activations in few bits, fc2 protected or in one of three formats; simulated."""
    rows = []
    for weight_bits, activation_bits in BITS:
        for name in (*FC2_FORMATS, *(FC2_DUAL_FORMATS if (weight_bits, activation_bits) == (4, 4) else ())):
            form = None
            if name != "protected":
                form = LinearFormat(weight_bits=weight_bits, activation_bits=activation_bits, input_format=name)
            precision = precision_plan(
                bench.model, weight_bits=weight_bits, activation_bits=activation_bits, fc2=form, attention_bits=8
            )
            figures = bench.measure(bench.empty(precision=precision))
            rows.append({"weight_bits": weight_bits, "activation_bits": activation_bits, "fc2": name, **figures})
    return rows


def seven_layers(bench: Bench) -> list[dict[str, Any]]:
    """Four bits in one kind of linear layer at a time; simulated."""
    rows = []
    for kind in LINEAR_KINDS:
        form = LinearFormat(weight_bits=4, activation_bits=4) if kind == "fc2" else None
        precision = precision_plan(bench.model, weight_bits=4, activation_bits=4, kinds=(kind,), fc2=form)
        if not precision.linears:
            continue
        rows.append({"kind": kind, **bench.measure(bench.empty(precision=precision), draw=False)})
    return rows


def reconstruction(bench: Bench) -> dict[str, Any]:
    """The test images through the tokenizer and back: no drawn image can be expected to be nearer."""
    tokenizer, images = bench.pipe.tokenizer, torch.from_numpy(bench.test.images)
    rebuilt = []
    for part in images.split(100):
        with torch.inference_mode():
            out = tokenizer.decode_tokens(tokenizer.encode(part / 127.5 - 1))
        rebuilt.append(((out.float() + 1) * 127.5).round().to(torch.uint8))
    again = torch.cat(rebuilt)
    errors = (again.float() - images.float()).square().mean((1, 2, 3)).clamp(min=1e-9)
    features = penultimate_features(bench.classifier.model, again.numpy())
    return {
        "psnr_db": float((10 * torch.log10(255**2 / errors)).mean()),
        "frechet": frechet_distance(bench.real, features),
    }


def real_int8(bench: Bench) -> dict[str, Any]:
    """Integer products, an eight-bit cache and an eight-bit decoder, as they are run."""
    return bench.measure(bench.empty(precision=int8_precision(bench.model)))
