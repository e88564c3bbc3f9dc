"""
Compiled core of sparing; use sparing.hybrid.HybridIndex and sparing.var.VARPipeline.
"""

from collections.abc import Callable
import enum
from typing import Annotated

import numpy
from numpy.typing import NDArray

def available_attention() -> list[str]:
    """Levels of windowed attention, slowest first."""

def attend(
    q: Annotated[NDArray[numpy.uint16], dict(shape=(None, None, None, None), device="cpu", writable=False)],
    k: Annotated[NDArray[numpy.uint16], dict(shape=(None, None, None, None), device="cpu", writable=False)],
    v: Annotated[NDArray[numpy.uint16], dict(shape=(None, None, None, None), device="cpu", writable=False)],
    out: Annotated[NDArray[numpy.uint16], dict(shape=(None, None, None, None), device="cpu")],
    segments: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    widths: Annotated[NDArray[numpy.int32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    sink: int,
    scale: float,
    level: str,
    num_threads: int,
) -> None:
    """Windowed attention of bfloat16 bits into `out`."""

def available_int8() -> list[str]:
    """Levels of rounding to bytes, slowest first."""

def quantize_rows(
    x: Annotated[NDArray, dict(shape=(None, None), order="C", device="cpu", writable=False)],
    codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order="C", device="cpu")],
    steps: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu")],
    level: str,
    num_threads: int,
) -> None:
    """
    Codes around 128 and a step for each row, of float32 or of bfloat16 bits.
    """

def finish_rows(
    sums: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    steps: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
    gelu: bool,
    out: Annotated[NDArray, dict(shape=(None, None), order="C", device="cpu")],
    level: str,
    num_threads: int,
) -> None:
    """
    Sums times each row's step, plus the bias, through GELU if wanted, into `out`.
    """

def quantize_image(
    x: Annotated[NDArray, dict(shape=(None, None), order="C", device="cpu", writable=False)],
    codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order="C", device="cpu")],
    groups: int,
    weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
    bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
    eps: float,
    silu: bool,
    level: str,
    num_threads: int,
) -> tuple[float, int]:
    """
    Codes, step and zero point of one image (pixels, channels), after group norm and SiLU if wanted.
    """

class DenseCode(enum.Enum):
    INT4 = 0

    INT8 = 1

    FLOAT32 = 2

class Similarity(enum.Enum):
    INNER_PRODUCT = 0

    L2 = 1

    COSINE = 2

class Config:
    def __init__(self) -> None: ...
    @property
    def dim(self) -> int: ...
    @dim.setter
    def dim(self, arg: int, /) -> None: ...
    @property
    def dense_code(self) -> DenseCode: ...
    @dense_code.setter
    def dense_code(self, arg: DenseCode, /) -> None: ...
    @property
    def doc_terms(self) -> int: ...
    @doc_terms.setter
    def doc_terms(self, arg: int, /) -> None: ...
    @property
    def query_terms(self) -> int: ...
    @query_terms.setter
    def query_terms(self, arg: int, /) -> None: ...
    @property
    def degree(self) -> int: ...
    @degree.setter
    def degree(self, arg: int, /) -> None: ...
    @property
    def build_beam(self) -> int: ...
    @build_beam.setter
    def build_beam(self, arg: int, /) -> None: ...
    @property
    def similarity(self) -> Similarity: ...
    @similarity.setter
    def similarity(self, arg: Similarity, /) -> None: ...
    @property
    def dense_weight(self) -> float: ...
    @dense_weight.setter
    def dense_weight(self, arg: float, /) -> None: ...
    @property
    def sparse_weight(self) -> float: ...
    @sparse_weight.setter
    def sparse_weight(self, arg: float, /) -> None: ...
    @property
    def scale(self) -> float: ...
    @scale.setter
    def scale(self, arg: float, /) -> None: ...
    @property
    def num_entries(self) -> int: ...
    @num_entries.setter
    def num_entries(self, arg: int, /) -> None: ...
    @property
    def seeds_per_term(self) -> int: ...
    @seeds_per_term.setter
    def seeds_per_term(self, arg: int, /) -> None: ...
    @property
    def seed_terms(self) -> int: ...
    @seed_terms.setter
    def seed_terms(self, arg: int, /) -> None: ...
    @property
    def two_stage(self) -> bool: ...
    @two_stage.setter
    def two_stage(self, arg: bool, /) -> None: ...
    @property
    def seed(self) -> int: ...
    @seed.setter
    def seed(self, arg: int, /) -> None: ...

class Index:
    def __init__(self, config: Config) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, arg: int, /) -> bool: ...
    @property
    def num_deleted(self) -> int: ...
    @property
    def record_bytes(self) -> int: ...
    def add(
        self,
        ids: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)],
        dense: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)]
        | None,
        row_begin: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        terms: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
        values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
        num_threads: int,
        progress: Callable | None,
    ) -> None: ...
    def update(
        self,
        ids: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)],
        dense: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)]
        | None,
        row_begin: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        terms: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
        values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
        num_threads: int,
    ) -> None: ...
    def delete(
        self, ids: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)]
    ) -> None: ...
    def compact(self, num_threads: int) -> None: ...
    def search(
        self,
        count: int,
        dense: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)]
        | None,
        row_begin: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        terms: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
        values: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
        weights: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
        k: int,
        beam: int,
        query_terms: int,
        filter: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)] | None,
        exact: bool,
        num_threads: int,
    ) -> tuple: ...
    def arrays(self) -> dict: ...
    def sizes(self) -> dict: ...
    @staticmethod
    def open(config: Config, arrays: dict, borrow: bool) -> Index: ...

def simd_levels() -> list[str]: ...
def simd_level() -> str: ...
