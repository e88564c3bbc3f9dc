"""How good drawn images are: Fréchet distance on named features, class agreement, precision and recall, cross-entropy.

The Fréchet distance is that of M. Heusel et al., 2017, but on features of a classifier of the images' own kind; the
numbers are not FIDs and compare only with others on the same features. Precision and recall: T. Kynkäänniemi et al.,
2019.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sparing.errors import ArgumentError, NonFiniteError, ShapeError
from sparing.runs.progress import Progress
from sparing.var.divergence import checked_data
from sparing.var.pipeline import VARPipeline

__all__ = [
    "QualityReport",
    "Samples",
    "cross_entropy",
    "draw_samples",
    "frechet_distance",
    "measure_quality",
    "precision_recall",
]

Features = npt.NDArray[np.float32]


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features.

    Args:
        a: (n, d) float, n ≥ 2.
        b: (m, d) float, m ≥ 2.

    Returns:
        |μa − μb|² + tr(Σa + Σb − 2·(Σa Σb)^½), at least 0.

    Raises:
        ShapeError: other axes, or too few rows.
        NonFiniteError: NaN or infinity.
    """
    _check_features(a=a, b=b)
    mean_a, mean_b = a.mean(0, dtype=np.float64), b.mean(0, dtype=np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ cov_b @ root)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.clip(middle, 0, None)).sum()
    return float(max(np.square(mean_a - mean_b).sum() + trace, 0.0))


def _check_features(**sets: Features) -> None:
    width: int | None = None
    for name, x in sets.items():
        if x.ndim != 2 or len(x) < 2 or x.shape[1] != (width or x.shape[1]):
            raise ShapeError(f"{name}: expected (n ≥ 2, {width or 'd'}), got {x.shape}")
        if not np.isfinite(x).all():
            raise NonFiniteError(f"{name}: features hold NaN or infinity")
        width = x.shape[1]


def precision_recall(real: Features, drawn: Features, *, neighbours: int = 3, chunk: int = 1000) -> tuple[float, float]:
    """Share of drawn images among the real ones, and of real ones among the drawn.

    Args:
        real: (n, d) float.
        drawn: (m, d) float.
        neighbours: an image's surroundings reach to its so-many-th neighbour in its own set.
        chunk: rows compared at once.

    Returns:
        Precision and recall, 0 to 1. O(n·m·d).

    Raises:
        ArgumentError: no neighbours, or no more images than neighbours.
        ShapeError: other axes.
        NonFiniteError: NaN or infinity.
    """
    _check_features(real=real, drawn=drawn)
    if neighbours < 1 or chunk < 1:
        raise ArgumentError(f"neighbours, chunk: expected at least 1, got {neighbours} and {chunk}")
    if min(len(real), len(drawn)) <= neighbours:
        raise ArgumentError(
            f"real, drawn: expected more than {neighbours} images each, got {len(real)} and {len(drawn)}"
        )
    # Squares of features far from zero leave nothing of small distances in float32.
    sets = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)) for x in (real, drawn)]
    radii = [
        torch.cat([torch.cdist(part, x).kthvalue(neighbours + 1, 1).values for part in x.split(chunk)]) for x in sets
    ]

    def share(of: Tensor, among: Tensor, radius: Tensor) -> float:
        inside = [(torch.cdist(part, among) <= radius).any(1) for part in of.split(chunk)]
        return float(torch.cat(inside).float().mean())

    return share(sets[1], sets[0], radii[0]), share(sets[0], sets[1], radii[1])


@dataclass(frozen=True, eq=False)
class Samples:
    """Drawn images.

    Attributes:
        images: (n, 3, side, side) uint8.
        labels: (n,) int64, the classes asked for.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class QualityReport:
    """What was measured of drawn images.

    Attributes:
        num_samples: images drawn.
        features: the name of the features.
        frechet: Fréchet distance to the real images, at least 0; smaller is better.
        class_agreement: share of images that the classifier gives the class asked for.
        precision, recall: 0 to 1.
    """

    num_samples: int
    features: str
    frechet: float
    class_agreement: float
    precision: float
    recall: float


def draw_samples(
    pipe: VARPipeline,
    num_samples: int,
    *,
    guidance_scale: float = 1.5,
    top_k: int = 900,
    top_p: float = 0.96,
    seed: int = 0,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Samples:
    """Draws images with all classes in turn.

    Args:
        pipe: the pipeline, with or without a plan.
        num_samples: how many.
        guidance_scale: strength of the guidance at the last scale.
        top_k: only the most likely codes; 0 for all.
        top_p: only the smallest set of codes with this share.
        seed: 0 or more; batch i is drawn with (seed, i), so that two pipelines are compared on the same seeds.
        batch_size: images at once; part of the seeds' meaning.
        progress: called with ``("drawing", done, num_samples)``.

    Raises:
        ArgumentError: fewer than one image, or settings out of range.
    """
    if num_samples < 1 or batch_size < 1:
        raise ArgumentError(f"num_samples, batch_size: expected at least 1, got {num_samples} and {batch_size}")
    if seed < 0:
        raise ArgumentError(f"seed: expected 0 or more, got {seed}")
    num_classes = pipe.transformer.config.num_classes
    labels = np.arange(num_samples) % num_classes
    images = []
    for i, begin in enumerate(range(0, num_samples, batch_size)):
        part = labels[begin : begin + batch_size]
        (state,) = np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)
        out = pipe(
            torch.from_numpy(part),
            guidance_scale=guidance_scale,
            top_k=top_k,
            top_p=top_p,
            seed=int(state) >> 1,
        )
        images.append(out.images.numpy())
        if progress is not None:
            progress("drawing", begin + len(part), num_samples)
    return Samples(np.concatenate(images), labels.astype(np.int64))


def measure_quality(
    samples: Samples,
    real_features: Features,
    *,
    classify: Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.floating], Features]],
    features: str,
    num_neighbours_images: int = 5000,
) -> QualityReport:
    """Measures drawn images against real ones.

    Args:
        samples: what was drawn.
        real_features: (n, d) features of real images.
        classify: gives (n, classes) logits and (n, d) features of (n, 3, side, side) uint8 images.
        features: their name, for the report.
        num_neighbours_images: at most so many images of each kind for precision and recall.
    """
    logits, drawn = classify(samples.images)
    agreement = float((logits.argmax(1) == samples.labels).mean())
    # Spread evenly: the images of a folder may come class by class.
    few = [
        x[np.linspace(0, len(x) - 1, min(len(x), num_neighbours_images)).astype(int)] for x in (real_features, drawn)
    ]
    precision, recall = precision_recall(*few)
    return QualityReport(
        len(samples.labels), features, frechet_distance(real_features, drawn), agreement, precision, recall
    )


@torch.inference_mode()
def cross_entropy(
    pipe: VARPipeline, tokens: Tensor, labels: Tensor, *, batch_size: int = 50
) -> npt.NDArray[np.float64]:
    """Mean cross-entropy of known tokens at each scale, in nats, without guidance.

    Args:
        pipe: the pipeline, with or without a plan.
        tokens: (n, L) int64.
        labels: (n,) int64.
        batch_size: images at once.

    Returns:
        (scales,). What is shared across guidance does not show: it is the other rows that take it.

    Raises:
        ShapeError, DtypeError, ArgumentError: tokens or labels that do not fit the model.
    """
    config = pipe.transformer.config
    tokens, labels = checked_data(tokens, labels, config)
    if batch_size < 1:
        raise ArgumentError(f"batch_size: expected at least 1, got {batch_size}")
    total = np.zeros(len(config.patch_nums))
    for rows in torch.arange(len(tokens)).split(batch_size):
        parts = tokens[rows].to(pipe.device).long().split(config.scale_sizes, 1)
        inputs = pipe.tokenizer.quantize.next_inputs(parts)
        for scale, logits in enumerate(pipe.engine.teach(labels[rows].to(pipe.device), inputs, guided=False)):
            total[scale] += F.cross_entropy(logits.flatten(0, 1), parts[scale].flatten()).item() * len(rows)
    return total / len(tokens)
