"""HybridIndex: one graph over dense + sparse vectors, weights chosen per query.

Score, higher is better: ``S(q, x) = w_dense * <q_dense, x_dense> + w_sparse * scale * <q_sparse, x_sparse>``.
"""

import os
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError, FormatError, ReadOnlyError, ShapeError
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
FLOATS = ("dense", "values")  # the core hands out and takes their float16 form as bits


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

    def __init__(self, native: Any, config: HybridConfig, alignment: Alignment, dim: int) -> None:
        """Use `build` or `open`."""
        self._native = native
        self._config = config
        self._alignment = alignment
        self._dim = dim
        self._read_only = False

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
        dim = 0 if rows.dense is None else rows.dense.shape[1]
        index = cls(None, config, _measure(rows, config), dim)
        index._native = core.Index(index._native_config())
        index._insert(rows, item_ids, num_threads, progress)
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
        """Adds items; the alignment stays as it is (an index built empty is aligned by the first items it gets).

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
        if len(self) > 0 or self._native.num_deleted > 0 or self._alignment.num_pairs > 0:
            self._insert(rows, item_ids, num_threads, progress)
            return
        # Built empty: aligned by the first items, and only if they are taken.
        first = type(self)(None, self._config, _measure(rows, self._config), self._dim)
        first._native = core.Index(first._native_config())
        first._insert(rows, item_ids, num_threads, progress)
        self._native, self._alignment = first._native, first._alignment

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
        self._native.update(
            as_ids(ids, rows.count),
            rows.dense,
            rows.row_begin,
            rows.terms,
            rows.values,
            check_count("num_threads", num_threads, 0, MAX_THREADS),
        )

    def delete(self, ids: npt.ArrayLike) -> None:
        """Removes items from all answers at once; `compact` gives their memory back.

        Raises:
            UnknownIdError: an id is not in the index; nothing was changed.
        """
        self._native.delete(as_ids(ids, None))

    def compact(self, *, num_threads: int = 0) -> None:
        """Drops deleted items and links their neighbours with each other; answers keep their quality."""
        self._native.compact(check_count("num_threads", num_threads, 0, MAX_THREADS))

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
            sparse_q: a `{term: weight}` dict or one-row CSR for one query; a list or CSR of n rows for a
                batch; or None.
            k: answers a query, >= 1; more than the index holds pads with id -1 and score -inf.
            beam: width of the walk, more finds more and takes longer; default `config.beam`; at least k is used.
            weights: (dense, sparse), >= 0, or an `(n, 2)` array.
            filter: ids that may be answered; unknown ones are ignored. k answers come if k of them are in the index.
            num_threads: threads over the queries of a batch; 0 takes all cores.

        Raises:
            ShapeError, DtypeError, NonFiniteError, SparseFormatError, ArgumentError.
        """
        beam = self._config.beam if beam is None else check_count("beam", beam, 1, 1 << 24)
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
        return self._alignment

    @property
    def stats(self) -> IndexStats:
        """Size of the index."""
        arrays = self._native.sizes()
        items = len(self)
        entry_bytes = arrays["entries"] + arrays["seeds"]
        code_bytes = arrays["heads"] + arrays["tails"]
        index_bytes = code_bytes + arrays["links"] + entry_bytes
        vectors = sum(arrays[name] for name in ("dense", "row_begin", "terms", "values", "ids", "norms", "deleted"))
        return IndexStats(
            num_items=items,
            num_deleted=self._native.num_deleted,
            dim=self._dim,
            num_nonzeros=arrays["num_nonzeros"],
            num_links=arrays["num_links"],
            code_bytes=code_bytes,
            link_bytes=arrays["links"],
            entry_bytes=entry_bytes,
            vector_bytes=vectors,
            index_bytes_per_item=index_bytes / max(items + self._native.num_deleted, 1),
            simd_level=core.simd_level(),
        )

    def __len__(self) -> int:
        """Number of items that can be found."""
        return len(self._native)

    def __contains__(self, item_id: object) -> bool:
        """Whether an item of this id can be found."""
        if isinstance(item_id, bool) or not isinstance(item_id, int | np.integer):
            return False
        number = int(item_id)
        return 0 <= number < 2**63 and number in self._native

    def __repr__(self) -> str:
        """A line with size and settings."""
        scale, degree = self._alignment.scale, self._config.degree
        return f"HybridIndex({len(self)} items, dim={self._dim}, scale={scale:.4g}, degree={degree})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index to one file, replaced as a whole: a reader finds the old one or the new one.

        Raises:
            OSError: the disk is full or the folder missing; an older file is unchanged.
        """
        arrays = self._native.arrays()
        buckets = arrays.pop("seed_buckets")
        halves = {name: arrays[name].view(np.float16) for name in FLOATS if arrays[name].dtype == np.uint16}
        meta = {
            "config": self._config.model_dump(mode="json"),
            "alignment": self._alignment.to_dict(),
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
            dim, buckets = int(artifact.meta["dim"]), int(artifact.meta["seed_buckets"])
            if not 0 <= dim <= MAX_DIM:
                raise FormatError(f"dim is {dim}")
            stored = {name for name in DTYPES if artifact.version == VERSION or name not in RECORDS}
            arrays: dict[str, Any] = {name: artifact.arrays[name] for name in stored}
            wrong = [name for name in sorted(stored) if arrays[name].dtype.name not in DTYPES[name].split()]
            if wrong:
                raise FormatError(f"{wrong[0]} has dtype {arrays[wrong[0]].dtype}")
            index = cls(None, config, alignment, dim)
            index._read_only = mmap
            arrays |= {name: array.view(np.uint16) for name, array in arrays.items() if array.dtype == np.float16}
            arrays["seed_buckets"] = buckets
            index._native = core.Index.open(index._native_config(), arrays, mmap)
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

    def _insert(self, rows: Rows, ids: npt.NDArray[np.int64], num_threads: int, progress: Progress | None) -> None:
        if rows.dense is not None and rows.dense.shape[1] != self._dim:
            raise ShapeError(f"dense: this index holds {self._dim} dimensions, got {rows.dense.shape[1]}")
        report: Callable[[int, int], None] | None = None
        if progress is not None:
            report = lambda done, total: progress("build", done, total)  # noqa: E731
        threads = check_count("num_threads", num_threads, 0, MAX_THREADS)
        self._native.add(ids, rows.dense, rows.row_begin, rows.terms, rows.values, threads, report)

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
        ids, scores, hops, met, dense, sparse, rescored = self._native.search(
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

    def _native_config(self) -> Any:
        config = self._config
        native = core.Config()
        native.dim = self._dim
        native.dense_code = getattr(core.DenseCode, config.dense_code.upper())
        native.similarity = {
            "ip": core.Similarity.INNER_PRODUCT,
            "l2": core.Similarity.L2,
            "cosine": core.Similarity.COSINE,
        }[config.similarity]
        native.doc_terms = config.doc_terms or 0
        native.query_terms = config.query_terms or 0
        native.dense_weight, native.sparse_weight = config.weights
        native.scale = self._alignment.scale
        for name in ("degree", "build_beam", "num_entries", "seeds_per_term", "seed_terms", "two_stage", "seed"):
            setattr(native, name, getattr(config, name))
        return native


def _measure(rows: Rows, config: HybridConfig) -> Alignment:
    if config.scale is not None:
        return Alignment(config.scale, 0.0, 0.0, 0, config.seed, "given")
    return align(rows, statistic=config.alignment, num_pairs=config.num_pairs, seed=config.seed)
