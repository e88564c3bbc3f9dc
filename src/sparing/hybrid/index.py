"""HybridIndex: one graph over dense + sparse vectors, weights chosen per query.

Score, higher is better: ``S(q, x) = w_dense * <q_dense, x_dense> + w_sparse * scale * <q_sparse, x_sparse>``.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError, DuplicateIdError, FormatError, ReadOnlyError
from sparing.hybrid._native import core
from sparing.hybrid.alignment import Alignment, align
from sparing.hybrid.config import HybridConfig, make_config
from sparing.hybrid.inputs import (
    MAX_DIM,
    MAX_THREADS,
    Rows,
    SparseInput,
    VectorInput,
    as_ids,
    as_rows,
    as_weights,
    check_count,
    is_single,
)
from sparing.hybrid.pruning import kept_terms
from sparing.hybrid.results import IndexStats, SearchResult, SearchStats
from sparing.runs import Progress, read_artifact, verify_artifact, write_artifact

__all__ = ["HybridIndex"]

SCHEMA = "sparing.hybrid.index"
VERSION = 3  # of 1 and 2 the records are made anew from the vectors
RECORDS = ("center", "heads", "tails")
DTYPES = {
    "ids": "int64",
    **dict.fromkeys(("deleted", "heads", "tails"), "uint8"),
    **dict.fromkeys(("dense", "values"), "float16 float32"),  # 16 bits where every number fits them exactly
    "terms": "uint16 uint32",
    **dict.fromkeys(("center", "norms"), "float32"),
    **dict.fromkeys(("links", "entries", "seeds"), "uint32"),
    "row_begin": "uint64",
}
SETTLED = 1000  # items; what is measured on so many is kept
FLOATS = ("dense", "values")  # the core hands out and takes their float16 form as bits


@dataclass(frozen=True)
class _State:
    """What changes as a whole: the graph, and what was measured on its first items."""

    native: Any
    alignment: Alignment
    doc_terms: int | None
    measured: int  # items


class HybridIndex:
    """A graph index over items that carry an int64 id, a dense vector and a sparse vector (either may be absent).

    Build with `build`, then `search`. Thread-safe: any number of threads may search while one adds, deletes, updates or
    compacts; a search sees the items of the moment it began. Same seed and input give the same index and answers
    for any number of threads.

    Example:
        >>> import numpy as np
        >>> dense = np.eye(3, dtype=np.float32)
        >>> index = HybridIndex.build(dense, [{7: 1.0}, {7: 2.0}, {9: 1.0}])
        >>> index.search(dense[0], {9: 1.0}, k=2, weights=(1.0, 0.0)).ids.tolist()
        [0, 1]
    """

    def __init__(self, config: HybridConfig, dim: int) -> None:
        """Use `build` or `open`."""
        self._config = config
        self._dim = dim
        self._read_only = False
        self._change = threading.Lock()
        self._state: _State

    @classmethod
    def build(
        cls,
        dense: VectorInput | None,
        sparse: SparseInput | None,
        *,
        ids: npt.ArrayLike | None = None,
        config: HybridConfig | None = None,
        num_threads: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Builds an index; about 0.1 ms an item and thread at the default settings.

        Args:
            dense: float32, float16 or float64 `(n, dim)` array or CPU tensor, or None; an all-zero row means absent.
            sparse: CSR `(n, vocabulary)` or a list of `{term: weight}`, terms in [0, 2**32), or None.
            ids: int64 `(n,)`, distinct, >= 0; default 0..n-1.
            config: see `HybridConfig`.
            num_threads: 0 takes all cores; never changes the result.
            progress: called as `progress("build", done, total)`.

        Raises:
            ShapeError, DtypeError, NonFiniteError, SparseFormatError, DuplicateIdError, ArgumentError, ConfigError.
        """
        config = make_config({}) if config is None else config
        rows = as_rows(dense, sparse, cosine=config.metric == "cosine")
        item_ids = np.arange(rows.count, dtype=np.int64) if ids is None else as_ids(ids, rows.count)
        index = cls(config, 0 if rows.dense is None else rows.dense.shape[1])
        index._state = index._build(rows, item_ids, num_threads, progress)
        return index

    def add(
        self,
        dense: VectorInput | None,
        sparse: SparseInput | None,
        *,
        ids: npt.ArrayLike,
        num_threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Adds items.

        What is measured on the items (the alignment, the number of kept terms) stays as it is, but for an index that
        was measured on fewer than 1,000: it is built anew each time that it has doubled.

        Raises:
            DuplicateIdError: an id is in the index already. ReadOnlyError: opened with mmap=True. And as `build`.
        """
        rows = as_rows(
            dense, sparse, dim=self._dim if dense is not None else None, cosine=self._config.metric == "cosine"
        )
        item_ids = as_ids(ids, rows.count)
        if self._read_only:
            raise ReadOnlyError(
                "this index was opened with mmap=True and is read-only; open it with mmap=False to change it"
            )
        with self._change:
            state = self._state
            if state.measured >= SETTLED or rows.count + len(state.native) < max(2 * state.measured, 1):
                _insert(state.native, rows, item_ids, num_threads, progress)
                return
            held = state.native.arrays()
            kept = held["deleted"] == 0
            there = np.flatnonzero(np.isin(item_ids, held["ids"][kept]))
            if there.size:
                raise DuplicateIdError(
                    f"id {item_ids[there[0]]} is in the index already; use update() to replace an item"
                )
            # New items first: errors number their rows as the caller does.
            together = _concatenated(rows, _stored_rows(held, kept, self._dim), self._dim)
            ids_together = np.concatenate([item_ids, held["ids"][kept]])
            self._state = self._build(together, ids_together, num_threads, progress)

    def update(
        self, dense: VectorInput | None, sparse: SparseInput | None, *, ids: npt.ArrayLike, num_threads: int = 0
    ) -> None:
        """Replaces both vectors of items that are in the index.

        Raises:
            UnknownIdError: an id is not in the index; nothing was changed. And as `add`.
        """
        rows = as_rows(
            dense, sparse, dim=self._dim if dense is not None else None, cosine=self._config.metric == "cosine"
        )
        item_ids, threads = as_ids(ids, rows.count), check_count("num_threads", num_threads, 0, MAX_THREADS)
        with self._change:
            self._state.native.update(item_ids, rows.dense, rows.row_begin, rows.terms, rows.values, threads)

    def delete(self, ids: npt.ArrayLike) -> None:
        """Removes items from all answers at once; `compact` gives their memory back.

        Raises:
            UnknownIdError: an id is not in the index; nothing was changed.
        """
        item_ids = as_ids(ids, None)
        with self._change:
            self._state.native.delete(item_ids)

    def compact(self, *, num_threads: int = 0) -> None:
        """Drops deleted items and links their neighbours with each other; answers keep their quality."""
        threads = check_count("num_threads", num_threads, 0, MAX_THREADS)
        with self._change:
            self._state.native.compact(threads)

    def search(
        self,
        dense_q: VectorInput | None = None,
        sparse_q: SparseInput | None = None,
        *,
        k: int = 10,
        beam: int | None = None,
        weights: npt.ArrayLike = (0.5, 0.5),
        filter: npt.ArrayLike | None = None,
        num_threads: int = 1,
    ) -> SearchResult:
        """The k items of highest hybrid score, approximately; scores are exact.

        Args:
            dense_q: `(dim,)` for one query, `(n, dim)` for a batch; None leaves the dense part out.
            sparse_q: a `{term: weight}` dict or a sparse array of one axis for one query; a list or CSR of n rows
                for a batch; or None. With a dense vector, CSR of one row is one query too.
            k: answers a query, >= 1; more than the index holds pads with id -1 and score -inf.
            beam: width of the walk, more finds more and takes longer; default `config.beam`, or 2 k if that is more; at
                least k is used.
            weights: (dense, sparse), >= 0, or an `(n, 2)` array.
            filter: ids that may be answered; unknown ones are ignored. k answers come if k of them are in the index.
            num_threads: threads over the queries of a batch; 0 takes all cores.

        Raises:
            ShapeError, DtypeError, NonFiniteError, SparseFormatError, ArgumentError.
        """
        k = check_count("k", k, 1, 1 << 24)
        beam = max(self._config.beam, 2 * k) if beam is None else check_count("beam", beam, 1, 1 << 24)
        return self._search(dense_q, sparse_q, k, beam, weights, filter, False, num_threads)

    def search_exact(
        self,
        dense_q: VectorInput | None = None,
        sparse_q: SparseInput | None = None,
        *,
        k: int = 10,
        weights: npt.ArrayLike = (0.5, 0.5),
        filter: npt.ArrayLike | None = None,
        num_threads: int = 1,
    ) -> SearchResult:
        """The same by scoring every item at full precision: the oracle. Arguments and errors as `search`."""
        return self._search(dense_q, sparse_q, k, 1, weights, filter, True, num_threads)

    @property
    def config(self) -> HybridConfig:
        """The settings of the index."""
        return self._config

    @property
    def alignment(self) -> Alignment:
        """The factor on sparse scores and where it came from."""
        return self._state.alignment

    @property
    def stats(self) -> IndexStats:
        """Size of the index."""
        state = self._state
        arrays = state.native.sizes()
        items, num_deleted = len(state.native), state.native.num_deleted
        entry_bytes = arrays["entries"] + arrays["seeds"]
        code_bytes = arrays["heads"] + arrays["tails"]
        index_bytes = code_bytes + arrays["links"] + entry_bytes
        vectors = sum(arrays[name] for name in ("dense", "row_begin", "terms", "values", "ids", "norms", "deleted"))
        return IndexStats(
            num_items=items,
            num_deleted=num_deleted,
            dim=self._dim,
            doc_terms=state.doc_terms,
            num_nonzeros=arrays["num_nonzeros"],
            num_links=arrays["num_links"],
            code_bytes=code_bytes,
            link_bytes=arrays["links"],
            entry_bytes=entry_bytes,
            vector_bytes=vectors,
            index_bytes_per_item=index_bytes / max(items + num_deleted, 1),
            simd_level=core.simd_level(),
        )

    def __len__(self) -> int:
        """Number of items that can be found."""
        return len(self._state.native)

    def __contains__(self, item_id: object) -> bool:
        """Whether an item of this id can be found."""
        if isinstance(item_id, bool) or not isinstance(item_id, int | np.integer):
            return False
        number = int(item_id)
        return 0 <= number < 2**63 and number in self._state.native

    def __repr__(self) -> str:
        """A line with size and settings."""
        scale, degree = self.alignment.scale, self._config.degree
        return f"HybridIndex({len(self)} items, dim={self._dim}, scale={scale:.4g}, degree={degree})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index to one file, replaced as a whole: a reader finds the old one or the new one.

        Raises:
            OSError: the disk is full or the folder missing; an older file is unchanged.
        """
        state = self._state
        arrays = state.native.arrays()
        buckets = arrays.pop("seed_buckets")
        halves = {name: arrays[name].view(np.float16) for name in FLOATS if arrays[name].dtype == np.uint16}
        meta = {
            "config": self._config.model_dump(mode="json"),
            "alignment": state.alignment.to_dict(),
            "doc_terms": state.doc_terms,
            "measured": state.measured,
            "dim": self._dim,
            "seed_buckets": buckets,
        }
        write_artifact(path, schema=SCHEMA, version=VERSION, arrays=arrays | halves, meta=meta)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, mmap: bool = False) -> Self:
        """Opens a saved index.

        Args:
            path: a file that `save` wrote.
            mmap: map the file and read on demand; the index is then read-only, and only what matters for safety is
                checked (call `verify` for every byte). Otherwise the file is read, and all checksums are checked.

        Raises:
            FormatError: truncated, altered, or another kind of file. VersionError: written by a newer release.
            OSError: the file cannot be read.
        """
        artifact = read_artifact(path, schema=SCHEMA, versions={1, 2, VERSION}, mmap=mmap)
        try:
            config = make_config(artifact.meta["config"])
            alignment = Alignment.from_dict(artifact.meta["alignment"])
            doc_terms = config.doc_terms if config.doc_terms != "auto" else int(artifact.meta["doc_terms"])
            if doc_terms is not None and not 1 <= doc_terms <= 4096:
                raise FormatError(f"doc_terms is {doc_terms}")
            measured = int(artifact.meta.get("measured", SETTLED))
            dim, buckets = int(artifact.meta["dim"]), int(artifact.meta["seed_buckets"])
            if not 0 <= dim <= MAX_DIM:
                raise FormatError(f"dim is {dim}")
            stored = {name for name in DTYPES if artifact.version == VERSION or name not in RECORDS}
            arrays: dict[str, Any] = {name: artifact.arrays[name] for name in stored}
            wrong = [name for name in sorted(stored) if arrays[name].dtype.name not in DTYPES[name].split()]
            if wrong:
                raise FormatError(f"{wrong[0]} has dtype {arrays[wrong[0]].dtype}")
            index = cls(config, dim)
            index._read_only = mmap
            arrays |= {name: array.view(np.uint16) for name, array in arrays.items() if array.dtype == np.float16}
            arrays["seed_buckets"] = buckets
            native = core.Index.open(index._native_config(alignment, doc_terms), arrays, mmap)
            index._state = _State(native, alignment, doc_terms, measured)
        except KeyError as error:
            raise FormatError(f"{os.fspath(path)}: not a readable hybrid index: it lacks {error}") from error
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise FormatError(f"{os.fspath(path)}: not a readable hybrid index: {error}") from error
        return index

    @staticmethod
    def verify(path: str | os.PathLike[str]) -> None:
        """Checks every byte of a saved index, and that it opens.

        Raises:
            FormatError: naming the damaged part.
        """
        verify_artifact(path)
        HybridIndex.open(path)

    def _build(self, rows: Rows, ids: npt.NDArray[np.int64], num_threads: int, progress: Progress | None) -> "_State":
        config = self._config
        if config.scale is not None:
            alignment = Alignment(config.scale, 0.0, 0.0, 0, config.seed, "given")
        else:
            alignment = align(rows, statistic=config.alignment, num_pairs=config.num_pairs, seed=config.seed)
        doc_terms = kept_terms(rows, config.term_share) if config.doc_terms == "auto" else config.doc_terms
        native = core.Index(self._native_config(alignment, doc_terms))
        _insert(native, rows, ids, num_threads, progress)
        return _State(native, alignment, doc_terms, rows.count)

    def _search(
        self,
        dense_q: VectorInput | None,
        sparse_q: SparseInput | None,
        k: int,
        beam: int,
        weights: npt.ArrayLike,
        filter: npt.ArrayLike | None,
        exact: bool,
        num_threads: int,
    ) -> SearchResult:
        single = is_single(dense_q, sparse_q)
        rows = as_rows(
            dense_q,
            sparse_q,
            dim=self._dim if dense_q is not None else None,
            cosine=self._config.metric == "cosine",
            single=single,
        )
        k = check_count("k", k, 1, 1 << 24)
        if rows.count * k > 1 << 31:
            raise ArgumentError(
                f"k: expected at most 2**31 answers in a call, got {rows.count} queries of {k}; "
                "search in smaller batches"
            )
        start = time.perf_counter()
        ids, scores, hops, met, dense, sparse, rescored = self._state.native.search(
            rows.count,
            rows.dense,
            rows.row_begin,
            rows.terms,
            rows.values,
            as_weights(weights, rows.count),
            k,
            beam,
            self._config.query_terms or 0,
            None if filter is None else as_ids(filter, None, "filter"),
            exact,
            check_count("num_threads", num_threads, 0, MAX_THREADS),
        )
        stats = SearchStats(rows.count, hops, met, dense, sparse, rescored, time.perf_counter() - start)
        return SearchResult(ids[0], scores[0], stats) if single else SearchResult(ids, scores, stats)

    def _native_config(self, alignment: Alignment, doc_terms: int | None) -> Any:
        config = self._config
        native = core.Config()
        native.dim = self._dim
        native.dense_code = getattr(core.DenseCode, config.dense_code.upper())
        native.similarity = {
            "ip": core.Similarity.INNER_PRODUCT,
            "l2": core.Similarity.L2,
            "cosine": core.Similarity.COSINE,
        }[config.similarity]
        native.doc_terms = doc_terms or 0
        native.query_terms = config.query_terms or 0
        native.dense_weight, native.sparse_weight = config.weights
        native.scale = alignment.scale
        for name in ("degree", "build_beam", "num_entries", "seeds_per_term", "seed_terms", "two_stage", "seed"):
            setattr(native, name, getattr(config, name))
        return native


def _insert(native: Any, rows: Rows, ids: npt.NDArray[np.int64], num_threads: int, progress: Progress | None) -> None:
    report: Callable[[int, int], None] | None = None
    if progress is not None:
        report = lambda done, total: progress("build", done, total)  # noqa: E731
    threads = check_count("num_threads", num_threads, 0, MAX_THREADS)
    native.add(ids, rows.dense, rows.row_begin, rows.terms, rows.values, threads, report)


def _stored_rows(arrays: dict[str, Any], kept: npt.NDArray[np.bool_], dim: int) -> Rows:
    """The items of the native index that a mask names."""
    dense, values = (
        (array.view(np.float16) if array.dtype == np.uint16 else array).astype(np.float32)
        for array in (arrays[name] for name in FLOATS)
    )
    sizes = np.diff(arrays["row_begin"].astype(np.int64))
    inside = np.repeat(kept, sizes)
    begin = np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.uint64)
    terms = arrays["terms"].astype(np.uint32)
    return Rows(int(kept.sum()), dense.reshape(-1, dim)[kept] if dim else None, begin, terms[inside], values[inside])


def _concatenated(first: Rows, second: Rows, dim: int) -> Rows:
    """Items, then others; an absent part is made of zeros or empty rows."""
    parts = [np.zeros((rows.count, dim), np.float32) if rows.dense is None else rows.dense for rows in (first, second)]
    (begin, terms, values), (more_begin, more_terms, more_values) = _sparse_of(first), _sparse_of(second)
    return Rows(
        first.count + second.count,
        np.concatenate(parts) if dim else None,
        np.concatenate([begin, begin[-1] + more_begin[1:]]),
        np.concatenate([terms, more_terms]),
        np.concatenate([values, more_values]),
    )


def _sparse_of(rows: Rows) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    if rows.row_begin is None or rows.terms is None or rows.values is None:
        return np.zeros(rows.count + 1, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.float32)
    return rows.row_begin, rows.terms, rows.values
