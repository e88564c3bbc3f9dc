"""A searchable collection of texts in one folder: documents, encoders and the hybrid index together."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sparing.errors import ArgumentError, DtypeError, FormatError
from sparing.hybrid.alignment import Alignment
from sparing.hybrid.config import HybridConfig, make_config
from sparing.hybrid.documents import DocumentStore
from sparing.hybrid.encoders import (
    BM25Encoder,
    BM25Settings,
    DenseSettings,
    DenseTextEncoder,
    SparseTextEncoder,
    SpladeSettings,
    make_dense,
    make_sparse,
)
from sparing.hybrid.encoders.batches import checked_texts
from sparing.hybrid.index import HybridIndex
from sparing.hybrid.records import Document, Where
from sparing.hybrid.results import IndexStats
from sparing.hybrid.text_folder import INDEX_FILE, Contents, Encoders, check_target, copy_documents, documents_in
from sparing.hybrid.text_search import Hit, Weights, search_contents
from sparing.runs.generations import current_generation, replace_folder, verify_folder
from sparing.runs.progress import Progress

__all__ = ["Hit", "TextIndex", "TextIndexInfo"]

_SHARE_OF_WORDS = 0.99  # of the squared weights: a BM25 query weighs all its terms alike


@dataclass(frozen=True, slots=True)
class TextIndexInfo:
    """What an index is made of.

    Attributes:
        num_documents: how many documents can be found.
        fields: metadata fields that serve as filters.
        dense: the dense encoder's settings, or None.
        sparse: the sparse encoder's settings, or None.
        index: the vectors' own numbers (:attr:`HybridIndex.stats`).
        alignment: how the two scores were brought to one scale (:attr:`HybridIndex.alignment`).
        file_bytes: size of each file, in bytes.
        generation: name of the folder in force, which counts the changes.
    """

    num_documents: int
    fields: tuple[str, ...]
    dense: DenseSettings | None
    sparse: BM25Settings | SpladeSettings | None
    index: IndexStats
    alignment: Alignment
    file_bytes: Mapping[str, int]
    generation: str


class TextIndex:
    """Texts, searched by meaning and by words at once.

    Make one with :meth:`build`, come back to it with :meth:`open`. Everything is in one folder. A change
    (:meth:`add`, :meth:`update`, :meth:`delete`, :meth:`compact`) is on the disk when the call returns; if it fails, or
    the process is killed in the middle, the folder is as it was before. A change writes the folder's files anew, so
    pass many documents in one call.

    Thread safety: any number of threads may search; a change is seen by searches that start after it. Searches that
    encode with a neural model should come from one thread at a time. Changes by several processes exclude each other
    (:class:`~sparing.errors.BusyError`); a process sees another one's changes after opening again, or with its own.

    Example:
        >>> documents = [Document("a", "a red fox"), Document("b", "prime numbers", {"section": "math"})]
        >>> index = TextIndex.build(documents, "folder", sparse="bm25")  # doctest: +SKIP
        >>> index.search("foxes", k=1)[0].key  # doctest: +SKIP
        'a'
    """

    def __init__(self, path: Path, contents: Contents, *, generation: Path, mmap: bool) -> None:
        self._path = path
        self._contents = contents
        self._generation = generation
        self._mmap = mmap
        self._one_change = threading.Lock()

    @classmethod
    def build(
        cls,
        documents: Iterable[Document | Mapping[str, Any]],
        path: str | os.PathLike[str],
        *,
        dense: DenseTextEncoder | DenseSettings | str | Path | None = None,
        sparse: SparseTextEncoder | BM25Settings | SpladeSettings | str | Path | None = "bm25",
        config: HybridConfig | None = None,
        batch_size: int = 64,
        progress: Progress | None = None,
        num_threads: int = 0,
    ) -> Self:
        """Encodes documents and builds an index in a folder.

        Args:
            documents: at least one; mappings with ``id``, ``text`` and metadata are taken as
                :meth:`Document.from_mapping` does.
            path: the folder: new, empty, or with an index, which is replaced when the new one is complete.
            dense: a model directory, ``"hf://owner/name"``, settings or an encoder; None for words only.
            sparse: ``"bm25"``, a SPLADE-style model directory, ``"hf://owner/name"``, settings or an encoder; None for
                meaning only.
            config: how the vectors are indexed; the defaults where None.
            batch_size: texts encoded at once, at least 1.
            progress: called with `(stage, done, total)`.
            num_threads: threads for building the graph, 0 for all.

        Returns:
            The index, opened.

        Raises:
            ArgumentError: no documents, no encoder, a bad model directory, or a folder that holds other things.
            DuplicateIdError: a key is given twice.
            DtypeError: a document of a wrong type.
            BusyError: another process writes to the folder.
            MissingExtraError: the encoders' packages are not installed (extra ``text``).
            OSError: the disk is full. A previous index in the folder stays as it was.
        """
        target = check_target(path)
        config = make_config({}) if config is None else config
        items = _as_documents(documents)
        if not items:
            raise ArgumentError("documents: expected at least one document, got none")
        if dense is None and sparse is None:
            raise ArgumentError('dense, sparse: expected at least one encoder, got none; pass sparse="bm25"')
        # Before anything is written: what is wrong with a model shows here.
        dense_encoder = None if dense is None else make_dense(dense)
        sparse_encoder = None if sparse is None else make_sparse(sparse)
        texts = [document.text for document in items]
        with replace_folder(target) as folder:
            with documents_in(folder, new=True) as store:
                ids = store.add(items)
            if sparse_encoder is not None:
                sparse_encoder = sparse_encoder.fit(texts, progress=progress)
            encoders = Encoders(dense_encoder, sparse_encoder)
            vectors = _encode_documents(encoders, texts, batch_size, progress)
            if isinstance(sparse_encoder, BM25Encoder) and "term_share" not in config.model_fields_set:
                config = config.model_copy(update={"term_share": _SHARE_OF_WORDS})
            index = HybridIndex.build(*vectors, ids=ids, config=config, num_threads=num_threads, progress=progress)
            contents = Contents(documents_in(folder), index, encoders)
            contents.write(folder)
        return cls(target, contents, generation=folder, mmap=False)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        mmap: bool = False,
        dense_model: str | os.PathLike[str] | None = None,
        sparse_model: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Opens an index. Models are loaded by the first search that needs them.

        Args:
            path: the folder.
            mmap: True leaves the vectors in the file until they are needed.
            dense_model: where the dense model's directory is now, if it was moved.
            sparse_model: where the sparse model's directory is now, if it was moved.

        Raises:
            FileNotFoundError: no such folder.
            FormatError: it holds no index, or a damaged one.
            VersionError: it was written by a newer release.
            ArgumentError: a place for a model that the index does not have.
        """
        root = Path(path)
        models = (None if model is None else os.fspath(model) for model in (dense_model, sparse_model))
        options = dict(zip(("dense_model", "sparse_model"), models, strict=True))
        folder = current_generation(root)
        while True:
            try:
                return cls(root, Contents.open(folder, mmap=mmap, **options), generation=folder, mmap=mmap)
            except (FormatError, FileNotFoundError):
                # A writer may have put a newer generation in force and removed this one in the meantime.
                newer = current_generation(root)
                if newer == folder:
                    raise
                folder = newer

    @staticmethod
    def verify(path: str | os.PathLike[str]) -> None:
        """Checks every byte of an index on the disk.

        Raises:
            FileNotFoundError: no such folder.
            FormatError: something is missing, altered, or does not fit; the message names the file.
        """
        verify_folder(path)
        Contents.verify(current_generation(path))

    def close(self) -> None:
        """Closes the files. Documents are not read any more then (:class:`~sparing.errors.ClosedError`)."""
        self._contents.documents.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._contents.documents)

    @property
    def hybrid(self) -> HybridIndex:
        """The vectors, under the documents' integer ids."""
        return self._contents.index

    @property
    def contents(self) -> Contents:
        """Documents, vectors and encoders of this moment, for reading; a later change leaves them as they are."""
        return self._contents

    @property
    def info(self) -> TextIndexInfo:
        """What the index is made of; loads no model."""
        dense, sparse = self._contents.encoders.settings
        index = self._contents.index
        return TextIndexInfo(
            num_documents=len(self),
            fields=tuple(self._contents.documents.fields()),
            dense=dense,
            sparse=sparse,
            index=index.stats,
            alignment=index.alignment,
            file_bytes={entry.name: entry.stat().st_size for entry in sorted(self._generation.glob("*"))},
            generation=self._generation.name,
        )

    @overload
    def search(
        self,
        query: str,
        *,
        k: int = 10,
        weights: Weights | None = None,
        where: Where | None = None,
        beam: int | None = None,
        parts: bool = False,
        num_threads: int = 1,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        query: list[str] | tuple[str, ...],
        *,
        k: int = 10,
        weights: Weights | None = None,
        where: Where | None = None,
        beam: int | None = None,
        parts: bool = False,
        num_threads: int = 1,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        query: str | list[str] | tuple[str, ...],
        *,
        k: int = 10,
        weights: Weights | None = None,
        where: Where | None = None,
        beam: int | None = None,
        parts: bool = False,
        num_threads: int = 1,
    ) -> list[Hit] | list[list[Hit]]:
        """Finds the documents that fit a question best.

        Args:
            query: a question, or a list of them.
            k: how many documents, at least 1.
            weights: `(w_dense, w_sparse)`, or an array of shape `(n, 2)` for a list; equal weights where None, or all
                on the one part that the index has.
            where: only documents with this metadata, for example ``{"section": "math", "tags": ["c++", "python"]}``;
                see :meth:`DocumentStore.allowed`.
            beam: more is slower and finds more; the index's default where None.
            parts: True fills in each hit's `dense_score` and `sparse_score`, at the price of two small exact searches.
            num_threads: threads for a list of questions, 0 for all.

        Returns:
            The hits, best first, at most k; for a list of questions a list of such lists. Where only words count, those
            that share one with the question.

        Raises:
            DtypeError: a question that is not a string.
            ArgumentError: no questions, a bad `k`, `weights` or `where`.
            FormatError: a model is not the one that the index was built with.
            MissingExtraError: the encoders' packages are not installed.
        """
        queries = checked_texts([query] if isinstance(query, str) else query, name="query")
        lists = search_contents(
            self._contents,
            queries,
            k=k,
            weights=weights,
            where=where,
            beam=beam,
            parts=parts,
            num_threads=num_threads,
        )
        return lists[0] if isinstance(query, str) else lists

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> None:
        """Adds documents, encoded with the statistics and models that the index was built with.

        Args:
            documents: with keys that are not in the index yet.
            batch_size: texts encoded at once, at least 1.
            progress: called with `(stage, done, total)`.

        Raises:
            DuplicateIdError: a key is given twice or there already.
            ArgumentError, DtypeError, BusyError, MissingExtraError, OSError: as for :meth:`build`.
        """
        self._put(DocumentStore.add, HybridIndex.add, documents, batch_size, progress)

    def update(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> None:
        """Gives documents that are in the index a new text and new metadata; see :meth:`add`.

        Raises:
            UnknownIdError: a key is not in the index.
            DuplicateIdError: a key is given twice.
            ArgumentError, DtypeError, BusyError, MissingExtraError, OSError: as for :meth:`build`.
        """
        self._put(DocumentStore.replace, HybridIndex.update, documents, batch_size, progress)

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes documents. The graph keeps their places until :meth:`compact`.

        Args:
            keys: keys of documents in the index, at least one.

        Raises:
            UnknownIdError: a key is not in the index.
            DuplicateIdError: a key is given twice.
            DtypeError: not a list of strings.
            ArgumentError: an empty list.
            BusyError: another process writes to the folder.
        """
        keys = checked_texts(keys, name="keys")

        def apply(contents: Contents) -> Encoders:
            contents.index.delete(contents.documents.remove(keys))
            return contents.encoders

        self._change(apply)

    def compact(self) -> None:
        """Rebuilds the graph without deleted documents, and gives their space back to the disk.

        Raises:
            BusyError: another process writes to the folder.
        """

        def apply(contents: Contents) -> Encoders:
            contents.index.compact()
            contents.documents.shrink()
            return contents.encoders

        self._change(apply)

    def _put(
        self,
        put_documents: Callable[[DocumentStore, list[Document]], NDArray[np.int64]],
        put_vectors: Callable[..., Any],
        documents: Iterable[Document | Mapping[str, Any]],
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        items = _as_documents(documents)
        if not items:
            return
        texts = [document.text for document in items]

        def apply(contents: Contents) -> Encoders:
            ids = put_documents(contents.documents, items)
            encoders = contents.encoders
            if encoders.sparse is not None:
                encoders = encoders.with_sparse(encoders.sparse.extended(texts))
            put_vectors(contents.index, *_encode_documents(encoders, texts, batch_size, progress), ids=ids)
            return encoders

        self._change(apply)

    def _change(self, apply: Callable[[Contents], Encoders]) -> None:
        # Applied to what is on the disk now, which another process may have changed; what is open here stays as it is
        # until the new generation is in force.
        with self._one_change:
            with replace_folder(self._path) as folder:
                current = current_generation(self._path)
                old = Contents.open(current)
                old.documents.close()
                with copy_documents(current, folder) as store:
                    encoders = apply(Contents(store, old.index, self._contents.encoders.at(old.encoders)))
                contents = Contents(documents_in(folder), old.index, encoders)
                contents.write(folder)
            if self._mmap:
                contents = Contents(contents.documents, HybridIndex.open(folder / INDEX_FILE, mmap=True), encoders)
            self._contents, self._generation = contents, folder


def _encode_documents(
    encoders: Encoders, texts: list[str], batch_size: int, progress: Progress | None
) -> tuple[NDArray[np.float32] | None, sp.csr_array | None]:
    dense, sparse = encoders.dense, encoders.sparse
    return (
        None if dense is None else dense.encode_documents(texts, batch_size=batch_size, progress=progress),
        None if sparse is None else sparse.encode_documents(texts, batch_size=batch_size, progress=progress),
    )


def _as_documents(documents: Iterable[Document | Mapping[str, Any]]) -> list[Document]:
    if isinstance(documents, str | Mapping | Document):
        raise DtypeError(f"documents: expected an iterable of documents, got one {type(documents).__name__}")
    items = []
    for position, document in enumerate(documents):
        if isinstance(document, Mapping):
            document = Document.from_mapping(document)  # noqa: PLW2901
        if not isinstance(document, Document):
            raise DtypeError(
                f"documents[{position}]: expected a Document or a mapping with id and text, "
                f"got {type(document).__name__}"
            )
        items.append(document)
    return items
