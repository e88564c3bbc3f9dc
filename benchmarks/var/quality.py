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

from benchmarks.var.variants import PUBLISHED_TAUS, Variant
from sparing.runs.atomic import replace_file
from sparing.var.apply import apply_
from sparing.var.cost import attention_cost, model_cost
from sparing.var.divergence import CalibrationConfig, divergence
from sparing.var.pipeline import VARPipeline, weights_fingerprint
from sparing.var.plan import CompressionPlan
from sparing.var.quality import QualityReport, cross_entropy, draw_samples, frechet_distance, measure_quality
from sparing.var.sensitivity import Sensitivity, measure_sensitivity
from sparing.vision import ImageDataset, SavedClassifier, logits_and_features, penultimate_features

TAUS = (*CalibrationConfig().taus, 0.5, 0.4)
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
    exact: VARPipeline
    shipped: CompressionPlan | None
    classifier: SavedClassifier
    test: ImageDataset
    tokens: torch.Tensor
    calibration: tuple[torch.Tensor, torch.Tensor]
    samples: int
    seed: int
    work: Path
    known: dict[str, dict[str, Any]]
    jobs: int | None
    guidance: float = 1.5
    strengths: tuple[float, ...] = ()
    jobs_open: int = 0

    def __post_init__(self) -> None:
        self.model = self.pipe.transformer.config
        self.weights = weights_fingerprint(self.pipe.transformer)
        self.labels = torch.from_numpy(self.test.labels[: len(self.tokens)])
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
        kinds: dict[str, dict[str, Any]] = {
            "ours": {},
            "published windows": {"search": "segment", "taus": PUBLISHED_TAUS, "sharing": None},
            "shared map": {"taus": (), "sharing": "map"},
        }
        config = self.config().model_copy(update=kinds[kind])
        cache = self.work / f"sensitivity-{kind.replace(' ', '-')}-{self.weights}.json"
        return measure_sensitivity(self.pipe, config=config, data=self.calibration, cache=cache)

    def rows(self, variants: list[Variant]) -> list[dict[str, Any]]:
        """Measures variants; those that are not known, as long as jobs are left."""
        found = []
        for variant in variants:
            figures = self._known(variant)
            if figures is None and self.jobs == 0:
                self.jobs_open += 1
                continue
            if figures is None:
                self.jobs = None if self.jobs is None else self.jobs - 1
                figures = self._measure(variant)
            found.append({**variant.about, **figures})
        return found

    def _key(self, variant: Variant) -> str:
        pipe = self.exact if variant.exact else self.pipe
        dtype = str(pipe.transformer.head.weight.dtype)
        about = [self._strength(variant), variant.draw, self.samples, self.seed, self.features, dtype]
        fields = [variant.plan.model_dump_json(exclude={"notes"}), *about]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:20]

    def _strength(self, variant: Variant) -> float:
        return self.guidance if variant.guidance is None else variant.guidance

    def _file(self, variant: Variant) -> Path:
        return self.work / f"quality-{self._key(variant)}.json"

    def _known(self, variant: Variant) -> dict[str, Any] | None:
        """Figures in the work folder or in the result file."""
        key, file = self._key(variant), self._file(variant)
        if file.is_file():
            return {"key": key, **json.loads(file.read_text())}
        return self.known.get(key)

    def _measure(self, variant: Variant) -> dict[str, Any]:
        plan, strength, pipe = variant.plan, self._strength(variant), self.exact if variant.exact else self.pipe
        apply_(pipe, plan)
        result: dict[str, Any] = {"guidance_scale": strength}
        if variant.draw:
            samples = draw_samples(pipe, self.samples, guidance_scale=strength, seed=self.seed)
            classify = functools.partial(logits_and_features, self.classifier.model)
            report = measure_quality(samples, self.real, classify=classify, features=self.features)
            result |= dataclasses.asdict(report)
        entropy = cross_entropy(pipe, self.tokens, self.labels)
        sizes = np.array(self.model.scale_sizes)
        result["cross_entropy_by_scale"] = entropy.round(5).tolist()
        result["cross_entropy"] = float((entropy * sizes).sum() / sizes.sum())
        result["divergence"] = divergence(pipe, [plan], self.tokens, self.labels, config=self.config())[0]
        attention, whole = attention_cost(self.model, plan), model_cost(self.model, plan).macs
        result["attention_removed"], result["windows_removed"] = attention.removed, attention.windows_removed
        result["macs_removed"] = 1 - whole / model_cost(self.model).macs
        with replace_file(self._file(variant)) as out:
            out.write(json.dumps(result).encode())
        print(json.dumps({k: v for k, v in result.items() if not isinstance(v, list)}), flush=True)
        return {"key": self._key(variant), **result}


def reconstruction(bench: Bench) -> dict[str, Any]:
    """The test images through the tokenizer and back: no drawn image can be expected to be nearer. Measured once."""
    file = bench.work / "reconstruction.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    tokenizer, images = bench.exact.tokenizer, torch.from_numpy(bench.test.images)
    rebuilt = []
    for part in images.split(100):
        with torch.inference_mode():
            out = tokenizer.decode_tokens(tokenizer.encode(part / 127.5 - 1))
        rebuilt.append(((out.float() + 1) * 127.5).round().to(torch.uint8))
    again = torch.cat(rebuilt)
    errors = (again.float() - images.float()).square().mean((1, 2, 3)).clamp(min=1e-9)
    features = penultimate_features(bench.classifier.model, again.numpy())
    found = {
        "psnr_db": float((10 * torch.log10(255**2 / errors)).mean()),
        "frechet": frechet_distance(bench.real, features),
    }
    with replace_file(file) as target:
        target.write(json.dumps(found).encode())
    return found
