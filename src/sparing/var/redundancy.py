"""What is redundant in a model before anything is removed: attention's reach, what guidance repeats, how numbers lie.

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024, section 3: the three observations that the method rests on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparing.runs.documents import validated
from sparing.runs.progress import Progress
from sparing.var.divergence import CalibrationConfig, calibration_images, checked_data, plain_engine, teacher_inputs
from sparing.var.engine import Engine
from sparing.var.pipeline import VARPipeline
from sparing.var.windows import band

__all__ = ["ActivationSummary", "RedundancyReport", "measure_redundancy"]

_LINEARS = ("qkv", "proj", "fc1", "fc2")
_QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
_HISTOGRAM_BINS = 80
_VALUES_A_CALL = 512


@dataclass(frozen=True)
class ActivationSummary:
    """How the inputs of one kind of linear layer lie.

    Attributes:
        kind: qkv, proj, fc1 or fc2.
        quantiles: share to value.
        skewness: third standardised moment; 0 for symmetric numbers.
        used_range: half of max − min over the largest magnitude: 1 where a symmetric range is used well, ½ where one of
            its two sides stays empty.
        histogram: counts and edges over all layers.
    """

    kind: str
    quantiles: dict[float, float]
    skewness: float
    used_range: float
    histogram: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class RedundancyReport:
    """What was seen on calibration images.

    Attributes:
        locality: (layers, heads, scales, segments) share of the attention that scale s pays to segment k which lies in
            the narrow band around the query's own place; NaN where k > s.
        segment_mass: (layers, heads, scales, segments) share of scale s's attention paid to segment k; NaN where k > s.
        guidance_similarity: (layers, scales) mean cosine of the attention's outputs with and without the class.
        guidance_error: (layers, scales) norm of their difference over the norm of the output without the class, all
            images together.
        activations: one for each kind of linear layer.
        num_images: images looked at.
    """

    locality: npt.NDArray[np.float64]
    segment_mass: npt.NDArray[np.float64]
    guidance_similarity: npt.NDArray[np.float64]
    guidance_error: npt.NDArray[np.float64]
    activations: tuple[ActivationSummary, ...]
    num_images: int


@torch.inference_mode()
def measure_redundancy(
    pipe: VARPipeline,
    *,
    data: tuple[Tensor, Tensor] | None = None,
    num_images: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> RedundancyReport:
    """Looks at a model at work, with the right tokens of earlier scales given.

    Args:
        pipe: the model; a plan in force is left aside.
        data: tokens (n, L) int64 and labels (n,) of real images; None draws images with the model itself.
        num_images: images to draw, where no data is given.
        batch_size: images at once.
        seed: of the drawn images.
        progress: called with ``("analyzing", done, images)``.

    Returns:
        The three observations.

    Raises:
        ShapeError, DtypeError, ArgumentError: tokens or labels that do not fit the model.
        ConfigError: numbers out of range, or the model's original weights were freed.
    """
    config = validated(CalibrationConfig, {"num_images": num_images, "batch_size": batch_size, "seed": seed})
    engine = plain_engine(pipe)
    tokens, labels = calibration_images(pipe, config) if data is None else data
    tokens, labels = checked_data(tokens, labels, engine.config)
    watch = _Watch(engine)
    engine.watch(watch.see)
    hooks = [
        layer.get_submodule(kind).register_forward_pre_hook(watch.inputs(kind))
        for layer in engine.layers
        for kind in _LINEARS
    ]
    try:
        for rows in torch.arange(len(tokens)).split(batch_size):
            for _ in engine.teach(labels[rows].to(pipe.device), teacher_inputs(pipe, tokens[rows])):
                pass
            if progress is not None:
                progress("analyzing", int(rows[-1]) + 1, len(tokens))
    finally:
        engine.watch(None)
        for hook in hooks:
            hook.remove()
    return watch.report(len(tokens))


class _Watch:
    """Adds up what the engine shows."""

    def __init__(self, engine: Engine) -> None:
        config = engine.config
        scales = len(config.patch_nums)
        self.config = config
        shape = (config.depth, config.num_heads, scales, scales)
        self.local, self.mass = np.full(shape, np.nan), np.full(shape, np.nan)
        self.similarity, self.difference, self.norm = np.zeros((3, config.depth, scales))
        self.generator = torch.Generator().manual_seed(0)
        self.bands: dict[tuple[int, int, torch.device], Tensor] = {}
        self.values: dict[str, list[Tensor]] = {kind: [] for kind in _LINEARS}

    def see(self, layer: int, scale: int, seen: dict[str, Tensor]) -> None:
        if "output" in seen:
            cond, uncond = seen["output"].float().chunk(2)
            self.similarity[layer, scale] += float(F.cosine_similarity(cond, uncond, dim=-1).mean(1).sum())
            self.difference[layer, scale] += float((cond - uncond).square().sum())
            self.norm[layer, scale] += float(uncond.square().sum())
            return
        rows = seen["map"].sum(0)
        starts = self.config.scale_starts
        for segment in range(scale + 1):
            block = rows[:, :, starts[segment] : starts[segment + 1]]
            near = (block * self._band(scale, segment, rows.device)).sum(-1).mean(1)
            total = block.sum(-1).mean(1)
            for sums, value in ((self.local, near), (self.mass, total)):
                place = sums[layer, :, scale, segment]
                sums[layer, :, scale, segment] = np.nan_to_num(place) + value.double().cpu().numpy()

    def _band(self, scale: int, segment: int, device: torch.device) -> Tensor:
        """The keys less than a row and one key of the segment's map away: a window, as plans have them."""
        key = scale, segment, device
        if key not in self.bands:
            sides = self.config.patch_nums
            inside = band(sides[scale] ** 2, sides[segment] ** 2, sides[segment] + 1)
            self.bands[key] = torch.from_numpy(inside).float().to(device)
        return self.bands[key]

    def inputs(self, kind: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            flat = args[0].detach().flatten()
            # Drawn, the same ones each time; a fixed stride would meet only a few of the channels.
            if len(flat) > _VALUES_A_CALL:
                places = torch.randint(len(flat), (_VALUES_A_CALL,), generator=self.generator)
                flat = flat[places.to(flat.device)]
            self.values[kind].append(flat.float().cpu())

        return hook

    def report(self, num_images: int) -> RedundancyReport:
        with np.errstate(invalid="ignore", divide="ignore"):
            local = self.local / self.mass
            error = np.sqrt(self.difference / self.norm)
        return RedundancyReport(
            local,
            self.mass / (2 * num_images),
            self.similarity / num_images,
            error,
            tuple(_summary(kind, torch.cat(values).double().numpy()) for kind, values in self.values.items()),
            num_images,
        )


def _summary(kind: str, values: npt.NDArray[np.float64]) -> ActivationSummary:
    quantiles = dict(zip(_QUANTILES, (float(q) for q in np.quantile(values, _QUANTILES)), strict=True))
    centred = values - values.mean()
    spread = max(float(np.sqrt(np.square(centred).mean())), np.finfo(np.float64).tiny)
    low, high = quantiles[0.001], quantiles[0.999]
    counts, edges = np.histogram(np.clip(values, low, high), bins=_HISTOGRAM_BINS)
    largest = max(abs(quantiles[0.0]), abs(quantiles[1.0]), np.finfo(np.float64).tiny)
    return ActivationSummary(
        kind,
        quantiles,
        float(((centred / spread) ** 3).mean()),
        (quantiles[1.0] - quantiles[0.0]) / (2 * largest),
        (counts.astype(np.int64), edges),
    )
