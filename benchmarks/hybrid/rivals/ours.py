"""This project's index: at its settings, and with its levers off one by one."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hybrid.data import Collection
from benchmarks.hybrid.rivals.protocol import Answer, Engine, Params, Queries
from sparing import _core
from sparing.hybrid import HybridConfig, HybridIndex

BEAMS = [10, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256]
OFF = {"dense_code": "float32", "doc_terms": None, "two_stage": False}
# The same grid of graph shapes for every step of the ladder, so that each is tuned as carefully as the others.
SHAPES = [{"degree": 28, "build_beam": 128}, {"degree": 48, "build_beam": 128}]


def _core_version() -> str:
    """Changes with the compiled core and the default settings, so that no index of older code is measured."""
    digest = hashlib.sha256(Path(_core.__file__).read_bytes())
    digest.update(HybridConfig().model_dump_json().encode())
    return digest.hexdigest()[:8]


class Ours:
    """`levers` are the settings that make a step of the ladder; `shapes` the grid of graph shapes to tune over."""

    family = "ours"

    def __init__(self, name: str, levers: Params, shapes: list[Params]) -> None:
        self.name = name
        self._levers = levers
        self._shapes = shapes
        self.version = _core_version()

    def builds(self) -> list[Params]:
        return [self._levers | shape for shape in self._shapes]

    def searches(self, build: Params) -> list[Params]:
        return [{"beam": beam} for beam in BEAMS]

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        config = HybridConfig(scale=scale, **build)
        start = time.perf_counter()
        index = HybridIndex.build(data.dense, data.sparse, config=config, num_threads=threads)
        seconds = time.perf_counter() - start
        index.save(folder / "index.sparing")
        return seconds

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        return OursEngine(HybridIndex.open(folder / "index.sparing"))


class OursEngine:
    """A batch call of `HybridIndex.search` with one thread."""

    def __init__(self, index: HybridIndex) -> None:
        self.index = index

    def prepare(self, queries: Queries, params: Params) -> Any:
        dense = np.ascontiguousarray(queries.dense) if queries.weights[0] > 0 else None
        sparse = queries.sparse if queries.weights[1] > 0 else None
        return dense, sparse, queries.weights

    def search(self, prepared: Any, k: int, params: Params) -> Answer:
        dense, sparse, weights = prepared
        beam = params.get("beam")
        return Answer(self.index.search(dense, sparse, k=k, beam=beam, weights=weights, num_threads=1).ids)


def ladder() -> list[Ours]:
    """Naive, each lever added to it alone and together, and the default."""
    terms = {"doc_terms": HybridConfig().doc_terms}
    steps: dict[str, Params] = {
        "naive": OFF,
        "naive + pruning": OFF | terms,
        "naive + two-stage": OFF | {"two_stage": True},
        "naive + int8": OFF | {"dense_code": "int8"},
        "naive + pruning + two-stage": OFF | terms | {"two_stage": True},
        "naive + pruning + int8": OFF | terms | {"dense_code": "int8"},
        "naive + pruning + two-stage + int8": OFF | terms | {"two_stage": True, "dense_code": "int8"},
        "naive + pruning + int4": OFF | terms | {"dense_code": "int4"},
    }
    return [Ours(name, levers, SHAPES) for name, levers in steps.items()]


def default() -> Ours:
    """The index as users get it, with the same grid of graph shapes."""
    return Ours("ours", {}, SHAPES)
