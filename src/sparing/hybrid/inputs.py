"""Vectors from callers to the arrays that the core takes: checked, converted once, on purpose."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError, SparseFormatError

__all__ = ["Rows", "SparseInput", "VectorInput", "as_ids", "as_rows", "as_weights", "check_count", "is_single"]

VectorInput = Any
"""float32, float16 or float64 array of shape (n, dim) or (dim,), or a CPU torch tensor of those."""
SparseInput = Any
"""SciPy CSR array or matrix of shape (n, vocabulary), a list of ``{term: weight}``; one dict, or array of one axis."""

MAX_TERM = 2**32 - 1
MAX_DIM = 65_536
MAX_THREADS = 1024
MAX_WEIGHT = 1e30


@dataclass(frozen=True)
class Rows:
    """Items or queries as the core reads them.

    Attributes:
        count: number of rows.
        dense: float32 `(count, dim)`, C-contiguous, or None.
        row_begin: uint64 `(count + 1,)`, or None where the sparse part is absent.
        terms: uint32 `(nonzeros,)`; values: float32 `(nonzeros,)`.
    """

    count: int
    dense: npt.NDArray[np.float32] | None
    row_begin: npt.NDArray[np.uint64] | None
    terms: npt.NDArray[np.uint32] | None
    values: npt.NDArray[np.float32] | None


def is_single(dense: VectorInput, sparse: SparseInput) -> bool:
    """Whether the arguments name one query (a vector, a dict) rather than a batch."""
    if dense is not None:
        return len(getattr(dense, "shape", np.shape(dense))) == 1
    return isinstance(sparse, Mapping) or (sp.issparse(sparse) and getattr(sparse, "ndim", 2) == 1)


def as_rows(
    dense: VectorInput, sparse: SparseInput, *, dim: int | None = None, cosine: bool = False, single: bool = False
) -> Rows:
    """Converts and checks both parts.

    Args:
        dense: see `VectorInput`; None where absent. An all-zero row counts as absent.
        sparse: see `SparseInput`; None where absent. Empty rows count as absent.
        dim: expected dense dimension; None takes any.
        cosine: divide dense rows by their norm.
        single: `dense` is one vector and `sparse` one dict or one-row matrix.

    Raises:
        ShapeError, DtypeError, NonFiniteError, SparseFormatError, ArgumentError: saying which argument, what was
            expected, what came and what to do.
    """
    if dense is None and sparse is None:
        raise ArgumentError("dense, sparse: expected at least one of them, got None twice; pass vectors of one kind")
    vectors = None if dense is None else _as_dense(dense, dim, cosine, single)
    if vectors is not None and sparse is None:
        return Rows(len(vectors), vectors, None, None, None)
    row_begin, terms, values = _as_sparse(sparse, single)
    count = len(row_begin) - 1
    if vectors is not None and len(vectors) != count:
        raise ShapeError(f"sparse: expected {len(vectors)} rows, one for each row of dense, got {count}")
    return Rows(count, vectors, row_begin, terms, values)


def _as_dense(dense: VectorInput, dim: int | None, cosine: bool, single: bool) -> npt.NDArray[np.float32]:
    if hasattr(dense, "detach"):
        dense = dense.detach()
        if str(dense.device) != "cpu":
            raise ArgumentError(f"dense: expected a tensor on the CPU, got one on {dense.device}; call .cpu() first")
        dense = (dense.float() if str(dense.dtype) == "torch.bfloat16" else dense).numpy()
    try:
        array = np.asarray(dense)
    except ValueError:
        raise ShapeError("dense: expected rows of equal length, got ragged ones; pass one (n, dim) array") from None
    if array.dtype.kind != "f":
        raise DtypeError(
            f"dense: expected float32, float16 or float64, got {array.dtype}; convert it with astype(np.float32)"
        )
    if array.ndim != (1 if single else 2):
        raise ShapeError(f"dense: expected shape {'(dim,)' if single else '(n, dim)'}, got {array.shape}")
    array = np.atleast_2d(array)
    if dim == 0:
        raise ShapeError("dense: this index has no dense part, leave it out; an index built with dense vectors has one")
    if dim is not None and array.shape[1] != dim:
        raise ShapeError(
            f"dense: this index expects vectors with {dim} dimensions, got {array.shape[1]} (shape {array.shape}); "
            "encode with the model that the index was built with"
        )
    if array.shape[1] > MAX_DIM:
        raise ShapeError(f"dense: expected at most {MAX_DIM} dimensions, got {array.shape[1]}")
    vectors = _as_float32(array, "dense")
    if cosine and vectors.size:
        with np.errstate(invalid="ignore"):  # the core names the row that is not finite
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            vectors = np.where(np.isfinite(vectors), vectors / np.where(norms > 0, norms, 1), vectors).astype(
                np.float32
            )
    return vectors


def _as_sparse(
    sparse: SparseInput, single: bool
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    if isinstance(sparse, Mapping):
        sparse = [sparse]
    if sp.issparse(sparse):
        matrix: Any = sparse
        if matrix.ndim == 1:  # what indexing a row of an array gives
            matrix = matrix.reshape(1, -1).tocsr()
        if matrix.format != "csr":
            raise DtypeError(f"sparse: expected CSR, got {matrix.format.upper()}; convert it with .tocsr()")
        row_begin, indices, data = np.asarray(matrix.indptr), np.asarray(matrix.indices), np.asarray(matrix.data)
    elif isinstance(sparse, Sequence) and all(isinstance(row, Mapping) for row in sparse):
        row_begin, indices, data = _from_dicts(sparse)
    else:
        raise DtypeError(
            f"sparse: expected a SciPy CSR matrix or a list of {{term: weight}} dicts, got {type(sparse).__name__}"
        )
    if single and len(row_begin) != 2:
        raise ShapeError(f"sparse: expected one row for one query, got {len(row_begin) - 1}")
    if data.dtype.kind not in "fiu":
        raise DtypeError(f"sparse: expected real weights, got {data.dtype}; convert them with astype(np.float32)")
    if row_begin[0] != 0 or row_begin[-1] > len(indices) or len(indices) != len(data) or np.any(np.diff(row_begin) < 0):
        raise SparseFormatError(
            "sparse: indptr does not describe indices and data; build the matrix anew with scipy.sparse"
        )
    indices, data = indices[: row_begin[-1]], data[: row_begin[-1]]
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high > MAX_TERM:
            bad = low if low < 0 else high
            raise SparseFormatError(
                f"sparse: expected term ids from 0 to {MAX_TERM}, got {bad}; renumber the vocabulary"
            )
    return (
        np.ascontiguousarray(row_begin, dtype=np.uint64),
        np.ascontiguousarray(indices, dtype=np.uint32),
        _as_float32(data, "sparse"),
    )


def _as_float32(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        values: npt.NDArray[np.float32] = np.ascontiguousarray(array, dtype=np.float32)
    if array.dtype != np.float32 and np.any(np.isfinite(array) & ~np.isfinite(values)):
        kind = "values" if name == "dense" else "weights"
        raise NonFiniteError(f"{name}: expected {kind} that fit float32, got larger ones; rescale them")
    return values


def _from_dicts(rows: Sequence[Mapping[int, float]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    terms: list[int] = []
    weights: list[float] = []
    row_begin = [0]
    for number, row in enumerate(rows):
        for term in row:
            if isinstance(term, bool) or not isinstance(term, int | np.integer):
                raise DtypeError(f"sparse: row {number}: expected int term ids, got {term!r} ({type(term).__name__})")
            if not 0 <= term <= MAX_TERM:
                raise SparseFormatError(f"sparse: row {number}: expected term ids from 0 to {MAX_TERM}, got {term}")
        for term in sorted(row):
            terms.append(int(term))
            weights.append(row[term])
        row_begin.append(len(terms))
    try:
        if any(isinstance(weight, str | bytes) for weight in weights):
            raise TypeError
        values = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DtypeError("sparse: expected numbers as weights of the dicts") from None
    if values.ndim != 1:
        raise DtypeError("sparse: expected numbers as weights of the dicts, got sequences")
    return np.asarray(row_begin, dtype=np.int64), np.asarray(terms, dtype=np.int64), values


def as_ids(ids: Any, count: int | None, name: str = "ids") -> npt.NDArray[np.int64]:
    """Item ids as int64 `(count,)`.

    Raises:
        DtypeError: not integers. ShapeError: not one axis of `count`. ArgumentError: a value outside int64.
    """
    array = np.asarray(ids)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        hint = {
            "b": "take the ids where the mask is true",
            "O": "pass a list or an array, such as list(ids)",
        }.get(array.dtype.kind, "keep other keys beside the index (TextIndex does)")
        raise DtypeError(f"{name}: expected integer ids, got {array.dtype}; {hint}")
    if array.ndim != 1 or (count is not None and len(array) != count):
        raise ShapeError(f"{name}: expected shape ({'n' if count is None else count},), got {array.shape}")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ArgumentError(f"{name}: expected ids below 2**63, got {array.max()}")
    return np.ascontiguousarray(array, dtype=np.int64)


def as_weights(weights: Any, count: int) -> npt.NDArray[np.float32]:
    """Query weights as float32 `(count, 2)`, from one (dense, sparse) pair or an `(n, 2)` array.

    Raises:
        ShapeError: another shape. NonFiniteError: NaN or infinity. ArgumentError: below 0 or above 1e30.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(weights, dtype=np.float32)
    except (TypeError, ValueError):
        raise DtypeError(
            f"weights: expected numbers, a pair (dense, sparse) or shape (n, 2), got {weights!r}"
        ) from None
    if array.shape == (2,):
        array = np.tile(array, (count, 1))
    if array.shape != (count, 2):
        raise ShapeError(f"weights: expected a pair (dense, sparse) or shape ({count}, 2), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"weights: expected finite numbers, got {weights!r}")
    if (array < 0).any():
        raise ArgumentError(f"weights: expected numbers >= 0, got {weights!r}; negate the query vector instead")
    if (array > MAX_WEIGHT).any():
        raise ArgumentError(f"weights: expected numbers up to {MAX_WEIGHT:g}, got {weights!r}")
    return np.ascontiguousarray(array)


def check_count(name: str, value: Any, low: int, high: float = math.inf) -> int:
    """An int between `low` and `high`, or ArgumentError / DtypeError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise DtypeError(f"{name}: expected an int, got {value!r} ({type(value).__name__})")
    if not low <= value <= high:
        raise ArgumentError(
            f"{name}: expected {low} or more{'' if high == math.inf else f', at most {high}'}, got {value}"
        )
    return int(value)
