"""What every contestant offers: build into a folder, open, prepare queries (not timed), search (timed)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from benchmarks.hybrid.data import Collection

Params = dict[str, Any]


@dataclass(frozen=True)
class Queries:
    """A batch of queries with one pair of weights; `scale` is the alignment factor on sparse scores."""

    dense: np.ndarray  # (m, d) float32
    sparse: sp.csr_matrix  # (m, vocabulary) float32
    weights: tuple[float, float]
    scale: float

    def __len__(self) -> int:
        return len(self.dense)


@dataclass(frozen=True)
class Answer:
    """Ids, best first, −1 pads; `routes_s` is the libraries' own share of the time, where a contestant can tell."""

    ids: np.ndarray  # (m, k) int64
    routes_s: float | None = None


class Engine(Protocol):
    """An opened index, set to one search thread."""

    def prepare(self, queries: Queries, params: Params) -> Any:
        """Brings queries into the library's form; not timed."""

    def search(self, prepared: Any, k: int, params: Params) -> Answer:
        """Answers the batch; timed as a whole."""


class Contestant(Protocol):
    """A library, or a pair of libraries, with its grids."""

    name: str
    family: str  # "two routes", "database", "one sparse graph", "dense only", "ours"
    version: str  # part of the place where indexes are kept; empty for pinned libraries

    def builds(self) -> list[Params]:
        """The grid of build settings."""

    def searches(self, build: Params) -> list[Params]:
        """The grid of search settings for an index of these build settings."""

    def build(self, data: Collection, scale: float, build: Params, folder: Path, threads: int) -> float:
        """Builds into the folder; seconds of building alone, without loading the data or writing the file."""

    def open(self, data: Collection, scale: float, build: Params, folder: Path) -> Engine:
        """Opens what `build` left in the folder."""


def label(params: Params) -> str:
    """Settings as a short stable name, fit for a folder."""
    return "_".join(f"{key}-{value}" for key, value in sorted(params.items())) or "default"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def rows_of(matrix: sp.csr_matrix) -> list[tuple[np.ndarray, np.ndarray]]:
    """(terms, values) of every row."""
    spans = zip(matrix.indptr, matrix.indptr[1:], strict=False)
    return [(matrix.indices[a:b], matrix.data[a:b]) for a, b in spans]
