"""FaultMap: the faults of one device, drawn once, saved, and put into the same network as often as wanted."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from sparing.errors import ConfigError, FormatError
from sparing.faults.hits import Hits
from sparing.faults.models import AnyFault, FaultModel, SingleFault
from sparing.faults.sampling import check_seed
from sparing.faults.sites import check_model, fault_sites, sharing_layers
from sparing.faults.targets import Target, find_targets
from sparing.runs.artifact import read_artifact, write_artifact

__all__ = ["FaultMap", "MapEntry", "load_fault_map", "sample_map"]

_SCHEMA, _VERSION = "sparing.faults.map", 1


@dataclass(frozen=True, eq=False)
class MapEntry:
    """What one fault of the sum does to one layer.

    Attributes:
        site: name of the layer.
        part: place of the fault in its sum.
        shape: of what is hit: the stored weight, or the features (C, H, W) of every image.
        output: module behind which features are hit; None for weights.
        exponent: S of the features' format, for a model that is no fixed-point model; None for weights.
        hits: where, and what.
    """

    site: str
    part: int
    shape: tuple[int, ...]
    output: str | None
    exponent: int | None
    hits: Hits


@dataclass(frozen=True, eq=False)
class FaultMap:
    """The faults of one device: positions, and what happens there; of features the same for every image.

    Attributes:
        fault: the model they were drawn from.
        seed, draw: of the drawing.
        fingerprint: of the network: its layers' names and shapes, and which share their weights.
        entries: layer by layer for each fault of the sum.
    """

    fault: FaultModel
    seed: int
    draw: int
    fingerprint: str
    entries: tuple[MapEntry, ...]

    @property
    def hits(self) -> dict[str, int]:
        """Hits by layer; of features, in one image."""
        found: dict[str, int] = {}
        for entry in self.entries:
            found[entry.site] = found.get(entry.site, 0) + len(entry.hits)
        return found

    def check(self, model: nn.Module) -> None:
        """Refuses another network than the one it was made for; weights may have changed, and their rounding.

        Raises:
            ArgumentError, DtypeError: as :func:`~sparing.faults.fault_sites`.
            ConfigError: other layers, other shapes, or other layers that share a weight.
        """
        if self.fingerprint != _fingerprint(model):
            raise ConfigError(
                "fault map: it was made for a network whose layers have other names or shapes than this model's, or "
                "share their weights otherwise; sample one for it"
            )
        modules = {name for name, _ in model.named_modules()}
        missing = next((entry for entry in self.entries if entry.output not in {None, *modules}), None)
        if missing is not None:
            raise ConfigError(
                f"fault map: it hits the features of {missing.site!r} behind {missing.output!r}, which this model does "
                "not have; sample one for it"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one checked file, replacing it as a whole.

        Raises:
            OSError: the disk is full, or the folder missing; an older file is unchanged.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for number, entry in enumerate(self.entries):
            if entry.hits.positions is not None:
                arrays[f"{number}.positions"] = entry.hits.positions.numpy()
            arrays[f"{number}.effects"] = entry.hits.effects.numpy()
        meta = {
            "fault": self.fault.model_dump(mode="json"),
            "seed": self.seed,
            "draw": self.draw,
            "fingerprint": self.fingerprint,
            "entries": [
                {
                    "site": entry.site,
                    "part": entry.part,
                    "shape": list(entry.shape),
                    "output": entry.output,
                    "exponent": entry.exponent,
                }
                for entry in self.entries
            ],
        }
        write_artifact(path, schema=_SCHEMA, version=_VERSION, arrays=arrays, meta=meta)


def sample_map(
    model: nn.Module,
    fault: FaultModel,
    *,
    seed: int,
    draw: int = 0,
    example: Tensor | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> FaultMap:
    """Draws the faults of one device; ``fault.sample(model, …)`` is the same.

    Args:
        model: not changed.
        fault: what goes wrong.
        seed: 0 or more.
        draw: number of the device, 0 or more.
        example: images n × c × h × w for the ranges of features; not needed for weights, or a fixed-point model.
        include: names of layers or patterns; None: all.
        exclude: the same, left out.

    Returns:
        The map. Its faults of weights are those of :func:`~sparing.faults.inject` with this seed and draw.

    Raises:
        ArgumentError: a negative seed, an unknown layer, no layer, or no example where one is needed.
        DtypeError, NonFiniteError, ShapeError: as :func:`~sparing.faults.fault_sites`.
    """
    check_seed("seed", seed)
    check_seed("draw", draw)
    targets = find_targets(model, fault, example=example, include=include, exclude=exclude)
    entries = tuple(_entry(target, target.draw(math.prod(target.shape), seed, draw, 0)) for target in targets)
    return FaultMap(fault, seed, draw, _fingerprint(model), entries)


def load_fault_map(path: str | os.PathLike[str]) -> FaultMap:
    """Reads a file of :meth:`FaultMap.save`.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: truncated, altered, or something else than a fault map.
        VersionError: in a version that this release does not read.
    """
    artifact = read_artifact(path, schema=_SCHEMA, versions={_VERSION})
    try:
        meta = _Meta.model_validate(artifact.meta)
    except (ValidationError, ConfigError) as error:
        raise FormatError(f"{path}: not a fault map: {error}") from None
    entries = []
    for number, entry in enumerate(meta.entries):
        positions = artifact.arrays.get(f"{number}.positions")
        effects = artifact.arrays.get(f"{number}.effects", np.empty(0))
        fault = meta.fault.parts[entry.part] if entry.part < len(meta.fault.parts) else None
        if fault is None or not _fit(positions, effects, math.prod(entry.shape), fault):
            raise FormatError(
                f"{path}: not a fault map: hits of {entry.site!r} that do not fit its {entry.shape} numbers"
            )
        hits = Hits(None if positions is None else torch.from_numpy(positions), torch.from_numpy(effects))
        entries.append(MapEntry(entry.site, entry.part, entry.shape, entry.output, entry.exponent, hits))
    return FaultMap(meta.fault, meta.seed, meta.draw, meta.fingerprint, tuple(entries))


class _EntryMeta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str
    part: int = Field(ge=0)
    shape: tuple[int, ...]
    output: str | None
    exponent: int | None


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: AnyFault
    seed: int
    draw: int
    fingerprint: str
    entries: tuple[_EntryMeta, ...]


def _entry(target: Target, hits: Hits) -> MapEntry:
    site = target.site
    is_weight = target.fault.place == "weights"
    return MapEntry(
        site.name,
        target.part,
        target.shape,
        None if is_weight else site.output,
        None if is_weight else site.exponent,
        hits,
    )


def _fit(positions: NDArray[Any] | None, effects: NDArray[Any], num: int, fault: SingleFault) -> bool:
    """Whether hits can be those of a fault among `num` numbers."""
    kind = fault.draw_effects(0, np.random.default_rng(0)).dtype
    if effects.ndim != 1 or effects.dtype != kind:
        return False
    if positions is None:
        return len(effects) == num
    if positions.dtype != np.int64 or positions.shape != effects.shape:
        return False
    return not len(positions) or bool(positions[0] >= 0 and positions[-1] < num and (np.diff(positions) > 0).all())


def _fingerprint(model: nn.Module) -> str:
    check_model(model)
    sites = fault_sites(model)
    sharing = sharing_layers(model, sites)
    described = [
        # A weight that layers share is hit once.
        [site.name, list(site.weight_shape), list(site.stored_shape), *sharing[site.name][1:]]
        for site in sites
    ]
    return hashlib.sha256(json.dumps(sorted(described)).encode()).hexdigest()
