"""What each thing that could be left out would cost in quality, one at a time; measured once and kept in a file.

The measure is the divergence of the guided distributions of the next token, in nats, with the right tokens of earlier
scales given: images drawn with the same seed part ways after one flipped token, so comparing those would measure luck.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from sparing.errors import ArgumentError, ConfigError, DtypeError, FormatError, ShapeError
from sparing.runs.atomic import replace_file
from sparing.runs.progress import Progress
from sparing.var.config import VARConfig
from sparing.var.engine import Engine
from sparing.var.pipeline import VARPipeline, weights_fingerprint
from sparing.var.plan import CompressionPlan, SharingPlan
from sparing.var.sampling import SamplingSettings, guide
from sparing.var.transformer import check_labels
from sparing.var.windows import DENSE, WindowSearch, first_windowed, search_windows

__all__ = [
    "CalibrationConfig",
    "Sensitivity",
    "calibration_images",
    "check_data",
    "divergence",
    "load_sensitivity",
    "measure_sensitivity",
    "plain_engine",
    "with_options",
]

_Divergence = Annotated[float, Field(ge=0)]
_WindowsOfLayer = tuple[tuple[tuple[Annotated[int, Field(ge=DENSE)], ...], ...] | None, ...]


class CalibrationConfig(BaseModel):
    """What is tried, and on how much.

    Attributes:
        taus: shares of attention that windows may keep, each tried in every layer; empty for no windows.
        maps: windows are found on the highest (``"union"``) or the mean (``"average"``) of the images' maps.
        threshold, floors: as in :class:`~sparing.var.windows.WindowSearch`.
        sharing: what is shared across guidance, or None for nothing.
        guidance_scale: at which the distributions are compared.
        num_images: images drawn for calibration, where none are given.
        batch_size: images at once.
        seed: of the drawn images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    taus: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
    maps: Literal["union", "average"] = "average"
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.003
    floors: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)] = (
        0.03,
        0.03,
        0.03,
        0.03,
        0.04,
        0.05,
        0.06,
        0.08,
        0.09,
        0.1,
    )
    sharing: Literal["output", "map"] | None = "output"
    guidance_scale: Annotated[float, Field(ge=0)] = 1.5
    num_images: Annotated[int, Field(ge=1)] = 64
    batch_size: Annotated[int, Field(ge=1)] = 16
    seed: Annotated[int, Field(ge=0)] = 0


class Sensitivity(BaseModel):
    """What leaving things out costs, one at a time.

    Attributes:
        model, weights: of which model.
        config: what was tried.
        images: fingerprint of what it was measured on; "" where a file does not say.
        windows: for each layer and each τ the windows of all scales.
        window_divergence: (layers, τ) nats a token.
        share_divergence: (layers, scales) nats a token when the layer shares from that scale on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_name: Literal["sparing.var.sensitivity"] = "sparing.var.sensitivity"
    version: Literal[1] = 1
    model: VARConfig
    weights: str
    config: CalibrationConfig
    images: str = ""
    windows: tuple[tuple[_WindowsOfLayer, ...], ...]
    window_divergence: tuple[tuple[_Divergence, ...], ...]
    share_divergence: tuple[tuple[_Divergence, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        depth, taus, scales = self.model.depth, len(self.config.taus), len(self.model.patch_nums)
        shared = 0 if self.config.sharing is None else scales
        for name, length in (("windows", taus), ("window_divergence", taus), ("share_divergence", shared)):
            rows = getattr(self, name)
            if len(rows) != depth or any(len(row) != length for row in rows):
                raise ValueError(f"{name}: expected {depth} layers of {length}")
        for layer in (of_tau for of_layer in self.windows for of_tau in of_layer):
            if len(layer) != scales:
                raise ValueError(f"windows: expected {scales} scales")
            for scale, widths in enumerate(layer):
                segments = scale + 1 - first_windowed(scale)
                heads = self.model.num_heads
                if widths is not None and (len(widths) != segments or any(len(row) != heads for row in widths)):
                    raise ValueError(f"windows: expected ({segments}, {heads}) widths at scale {scale}")
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, replacing the file as a whole."""
        with replace_file(path) as file:
            file.write(self.model_dump_json().encode() + b"\n")


def load_sensitivity(path: str | os.PathLike[str]) -> Sensitivity:
    """Reads what :meth:`Sensitivity.save` wrote.

    Raises:
        FormatError: another file, or an altered one.
        OSError: the file cannot be read.
    """
    try:
        return Sensitivity.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        raise FormatError(f"{Path(path).name}: not a saved sensitivity: {place}: {first['msg']}") from None


def measure_sensitivity(
    pipe: VARPipeline,
    *,
    config: CalibrationConfig | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Tries windows and sharing layer by layer.

    Args:
        pipe: the model; a plan in force on it is left aside.
        config: what to try; None for the defaults.
        data: tokens (n, L) int64 and labels (n,) of real images; None draws images with the model itself.
        cache: a file that keeps the result: read if it fits this model, these settings and this data, else written.
        progress: called with ``("calibrating", done, passes)``.

    Returns:
        The divergences. Cost: about layers · (len(taus) + scales) teacher-forced passes over the images.

    Raises:
        ShapeError, DtypeError, ArgumentError: tokens or labels that do not fit the model; or no folder for the cache.
        FormatError: the cache is another file, or an altered one; it is not overwritten.
        ConfigError: the model's original weights were freed.
    """
    config, model = config or CalibrationConfig(), pipe.transformer.config
    engine = plain_engine(pipe)
    if data is not None:
        check_data(*data, model)
    weights, images = weights_fingerprint(pipe.transformer), _images_fingerprint(pipe, data)
    if cache is not None and not Path(cache).absolute().parent.is_dir():
        raise ArgumentError(f"cache: no folder {os.fspath(Path(cache).parent)!r} to keep it in")
    if cache is not None and Path(cache).is_file():
        found = load_sensitivity(cache)
        if (found.model, found.weights, found.config, found.images) == (model, weights, config, images):
            return found
    tokens, labels = calibration_images(pipe, config) if data is None else data
    windows = _find_windows(pipe, engine, tokens, labels, config)
    plain = CompressionPlan(model=model, weights=weights)
    tried = [with_options(plain, windows=windows, tau_of={layer: t}) for layer, t in _layers_times(model, config.taus)]
    if config.sharing is not None:
        tried += [
            with_options(plain, variant=config.sharing, first_of={layer: scale})
            for layer, scale in _layers_times(model, model.patch_nums)
        ]
    errors = np.array(divergence(pipe, tried, tokens, labels, config=config, progress=progress)).reshape(-1)
    split = model.depth * len(config.taus)
    result = Sensitivity(
        model=model,
        weights=weights,
        config=config,
        images=images,
        windows=windows,
        window_divergence=_rows(errors[:split].reshape(model.depth, -1)),
        share_divergence=_rows(errors[split:].reshape(model.depth, -1)) if config.sharing else ((),) * model.depth,
    )
    if cache is not None:
        result.save(cache)
    return result


def _layers_times(model: VARConfig, things: Sequence[object]) -> Iterator[tuple[int, int]]:
    return ((layer, i) for layer in range(model.depth) for i in range(len(things)))


def _rows(values: npt.NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in row) for row in values)


def check_data(tokens: Tensor, labels: Tensor, model: VARConfig) -> None:
    """Refuses images that do not fit a model.

    Args:
        tokens: (n, L) integers.
        labels: (n,) integers.
        model: settings of the model.

    Raises:
        ShapeError: other axes, another length, or no images.
        DtypeError: not integers.
        ArgumentError: a code or a class that the model does not have.
    """
    if tokens.ndim != 2 or tokens.shape[1] != model.num_tokens or not len(tokens) or len(tokens) != len(labels):
        raise ShapeError(
            f"data: expected tokens (n, {model.num_tokens}) and n labels, n ≥ 1; "
            f"got {tuple(tokens.shape)} and {tuple(labels.shape)}"
        )
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise DtypeError(f"data: expected tokens that are integers, got {tokens.dtype}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.vocab_size:
        raise ArgumentError(f"data: expected tokens in 0..{model.vocab_size - 1}, got {low} to {high}")
    check_labels(labels, model.num_classes)


def plain_engine(pipe: VARPipeline) -> Engine:
    """Returns an engine of its own for a pipeline's model, without the plan in force.

    Raises:
        ConfigError: the model's original weights were freed.
    """
    if any(not p.numel() for p in pipe.transformer.parameters()):
        raise ConfigError("pipe: its original weights were freed when a plan was applied; load the model again")
    return Engine(pipe.transformer)


def _images_fingerprint(pipe: VARPipeline, data: tuple[Tensor, Tensor] | None) -> str:
    """16 hexadecimal digits of the images, and of the codes by which the model reads them."""
    digest = hashlib.sha256(b"drawn" if data is None else b"given")
    for t in (*pipe.tokenizer.quantize.parameters(), *(data or ())):
        digest.update((t.detach().float() if t.is_floating_point() else t.long()).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def calibration_images(pipe: VARPipeline, config: CalibrationConfig) -> tuple[Tensor, Tensor]:
    """Draws images to calibrate on, all classes in turn.

    Args:
        pipe: the model; a plan in force on it is left aside.
        config: how many, and their seed.

    Returns:
        Tokens (n, L) int64 and labels (n,) int64.

    Raises:
        ConfigError: the model's original weights were freed.
    """
    engine = plain_engine(pipe)
    settings = SamplingSettings(config.guidance_scale, min(900, engine.config.vocab_size), 0.96)
    labels = torch.arange(config.num_images, device=pipe.device) % engine.config.num_classes
    generator = torch.Generator(pipe.device).manual_seed(config.seed)
    drawn = [
        torch.cat(engine.generate(part, pipe.tokenizer.quantize, settings, generator)[0], 1)
        for part in labels.split(config.batch_size)
    ]
    return torch.cat(drawn), labels


def _find_windows(
    pipe: VARPipeline, engine: Engine, tokens: Tensor, labels: Tensor, config: CalibrationConfig
) -> tuple[tuple[_WindowsOfLayer, ...], ...]:
    """Windows for each layer and τ, on the maps of both branches."""
    model = engine.config
    if not config.taus:
        return ((),) * model.depth
    maps: dict[tuple[int, int], Tensor] = {}

    def collect(layer: int, scale: int, seen: dict[str, Tensor]) -> None:
        if "map" not in seen or first_windowed(scale) > scale:
            return
        one = seen["map"].amax(0) if config.maps == "union" else seen["map"].sum(0)
        key = layer, scale
        if key not in maps:
            maps[key] = one
        else:
            maps[key] = torch.maximum(maps[key], one) if config.maps == "union" else maps[key].add_(one)

    engine.watch(collect)
    try:
        for part in torch.arange(len(tokens)).split(config.batch_size):
            for _ in engine.teach(labels[part].to(pipe.device), _inputs(pipe, tokens[part])):
                pass
    finally:
        engine.watch(None)
    rows = 1 if config.maps == "union" else 2 * len(tokens)

    def of_scale(layer: int, scale: int, tau: float) -> tuple[tuple[int, ...], ...] | None:
        if (layer, scale) not in maps:
            return None
        search = WindowSearch(tau, config.threshold, config.floors)
        found = search_windows(maps[layer, scale] / rows, model.patch_nums, scale, search)
        return tuple(tuple(int(w) for w in row) for row in found)

    return tuple(
        tuple(tuple(of_scale(layer, s, tau) for s in range(len(model.patch_nums))) for tau in config.taus)
        for layer in range(model.depth)
    )


def with_options(
    plan: CompressionPlan,
    *,
    windows: tuple[tuple[_WindowsOfLayer, ...], ...] = (),
    tau_of: dict[int, int] | None = None,
    variant: Literal["output", "map"] = "output",
    first_of: dict[int, int] | None = None,
) -> CompressionPlan:
    """Returns a plan with windows and sharing in some layers.

    Args:
        plan: what else it says.
        windows: for each layer and τ those of all scales.
        tau_of: from layer to index of τ; layers not named stay dense.
        variant: what is shared.
        first_of: from layer to the first scale that shares; layers not named share nothing.
    """
    depth, scales = plan.model.depth, len(plan.model.patch_nums)
    changes: dict[str, Any] = {}
    if tau_of:
        dense: _WindowsOfLayer = (None,) * scales
        changes["windows"] = tuple(windows[i][tau_of[i]] if i in tau_of else dense for i in range(depth))
    if first_of:
        first = tuple(first_of.get(i) for i in range(depth))
        changes["sharing"] = SharingPlan(variant=variant, first_scale=first)
    return plan.model_copy(update=changes)


def _inputs(pipe: VARPipeline, tokens: Tensor) -> Tensor:
    parts = tokens.to(pipe.device).split(pipe.transformer.config.scale_sizes, 1)
    with torch.inference_mode():
        return pipe.tokenizer.quantize.next_inputs(parts)


@torch.inference_mode()
def divergence(
    pipe: VARPipeline,
    plans: Sequence[CompressionPlan],
    tokens: Tensor,
    labels: Tensor,
    *,
    config: CalibrationConfig,
    per_scale: bool = False,
    progress: Progress | None = None,
) -> list[Any]:
    """Measures how far plans move the guided distributions of the next token.

    Args:
        pipe: the model.
        plans: what is left out, each on its own.
        tokens: (n, L) int64, the right tokens.
        labels: (n,) int64.
        config: guidance and batch size.
        per_scale: give a value for each scale.
        progress: called with ``("calibrating", done, passes)``.

    Returns:
        For each plan the mean of KL(without plan ‖ with plan), in nats a token, at least 0; or (scales,) of them.

    Raises:
        ShapeError, DtypeError, ArgumentError: tokens or labels that do not fit the model.
        ConfigError: plans of another model, or the model's original weights were freed.
    """
    model, plain = pipe.transformer.config, plain_engine(pipe)
    check_data(tokens, labels, model)
    if any(plan.model != model for plan in plans):
        raise ConfigError("plans: expected plans of this model")
    totals = np.zeros((len(plans), len(model.patch_nums)))
    batches, done = torch.arange(len(tokens)).split(config.batch_size), 0
    for part in batches:
        inputs, rows = _inputs(pipe, tokens[part]), labels[part].to(pipe.device)
        reference = list(_guided(plain, rows, inputs, config.guidance_scale))
        for i, plan in enumerate(plans):
            # One at a time: what engines keep for their windows would add up.
            engine = Engine(pipe.transformer, plan=plan)
            for scale, logits in enumerate(_guided(engine, rows, inputs, config.guidance_scale)):
                true = reference[scale]
                totals[i, scale] += float((true.exp() * (true - logits)).sum(-1).clamp_min(0).sum())
            done += 1
            if progress is not None:
                progress("calibrating", done, len(plans) * len(batches))
    if per_scale:
        return [row / (len(tokens) * np.array(model.scale_sizes)) for row in totals]
    return [float(row.sum()) / (len(tokens) * model.num_tokens) for row in totals]


def _guided(engine: Engine, labels: Tensor, inputs: Tensor, guidance_scale: float) -> Iterator[Tensor]:
    """For each scale (B, n, V) log-probabilities under guidance."""
    scales, settings = len(engine.config.patch_nums), SamplingSettings(guidance_scale)
    for scale, logits in enumerate(engine.teach(labels, inputs)):
        cond, uncond = logits.chunk(2)
        yield guide(cond, uncond, settings.strength(scale, scales)).log_softmax(-1)
