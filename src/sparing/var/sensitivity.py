"""What each thing that could be left out would cost in quality, one at a time; measured once and kept in a file."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from sparing.errors import ArgumentError
from sparing.runs.atomic import replace_file
from sparing.runs.documents import parse_document
from sparing.runs.progress import Progress
from sparing.var.config import VARConfig
from sparing.var.divergence import (
    CalibrationConfig,
    calibration_images,
    checked_data,
    divergence,
    plain_engine,
    teacher_inputs,
)
from sparing.var.engine import Engine
from sparing.var.pipeline import VARPipeline, weights_fingerprint
from sparing.var.plan import CompressionPlan, LayerWindows, with_options
from sparing.var.window_search import WindowSearch, balance_windows, search_windows
from sparing.var.windows import Widths, first_windowed

__all__ = ["Sensitivity", "load_sensitivity", "measure_sensitivity"]

_SCHEMA: Literal["sparing.var.sensitivity"] = "sparing.var.sensitivity"
_VERSION: Literal[2] = 2  # 1: first; 2: the rule of the search
_Divergence = Annotated[float, Field(ge=0)]


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

    schema_name: Literal["sparing.var.sensitivity"] = _SCHEMA
    version: Literal[2] = _VERSION
    model: VARConfig
    weights: str
    config: CalibrationConfig
    images: str = ""
    windows: tuple[tuple[LayerWindows, ...], ...]
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
        FormatError: another file, or an altered one; names the field.
        VersionError: a version that this release does not read.
        OSError: the file cannot be read.
    """
    file = Path(path)
    return parse_document(
        file.read_bytes(), Sensitivity, schema=_SCHEMA, version=_VERSION, name=file.name, what="a saved sensitivity"
    )


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
        data = checked_data(*data, model)
    weights, images = weights_fingerprint(pipe.transformer), _images_fingerprint(pipe, data)
    if cache is not None and not Path(cache).absolute().parent.is_dir():
        raise ArgumentError(f"cache: no folder {os.fspath(Path(cache).parent)!r} to keep it in")
    if cache is not None and Path(cache).is_dir():
        raise ArgumentError(f"cache: expected a file, got the folder {os.fspath(cache)!r}")
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


def _images_fingerprint(pipe: VARPipeline, data: tuple[Tensor, Tensor] | None) -> str:
    """16 hexadecimal digits of the images, and of the codes by which the model reads them."""
    digest = hashlib.sha256(b"drawn" if data is None else b"given")
    for t in (*pipe.tokenizer.quantize.parameters(), *(data or ())):
        digest.update((t.detach().float() if t.is_floating_point() else t.long()).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _find_windows(
    pipe: VARPipeline, engine: Engine, tokens: Tensor, labels: Tensor, config: CalibrationConfig
) -> tuple[tuple[LayerWindows, ...], ...]:
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
            for _ in engine.teach(labels[part].to(pipe.device), teacher_inputs(pipe, tokens[part])):
                pass
    finally:
        engine.watch(None)
    rows = 1 if config.maps == "union" else 2 * len(tokens)

    def of_layer(layer: int, tau: float) -> LayerWindows:
        own = {scale: found / rows for (of, scale), found in maps.items() if of == layer}
        if config.search == "balanced":
            windows: Mapping[int, Widths] = balance_windows(own, model.patch_nums, tau)
        else:
            search = WindowSearch(tau, config.threshold, config.floors)
            windows = {scale: search_windows(found, model.patch_nums, scale, search) for scale, found in own.items()}
        return tuple(
            tuple(tuple(int(w) for w in row) for row in windows[scale]) if scale in windows else None
            for scale in range(len(model.patch_nums))
        )

    return tuple(tuple(of_layer(layer, tau) for tau in config.taus) for layer in range(model.depth))
