"""What a text index keeps in one generation of its folder, and how that is written and read.

::

    documents.sqlite   ids, keys, texts, metadata                    documents.py
    index.sparing      vectors and graph                             index.py
    bm25.json          vocabulary and statistics, only with BM25     encoders/bm25.py
    text.json          version and the encoders' settings
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sparing.errors import ArgumentError, FormatError, VersionError
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
from sparing.hybrid.encoders.settings import one_line
from sparing.hybrid.index import HybridIndex

__all__ = ["Contents", "Encoders", "check_target", "copy_documents", "documents_in"]

INDEX_FILE = "index.sparing"
_DOCUMENTS, _SETTINGS = "documents.sqlite", "text.json"
_SCHEMA, _VERSION = "sparing.hybrid.text", 1


class _Header(BaseModel):
    schema_name: str = Field(alias="schema")
    version: int


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: str = Field(_SCHEMA, alias="schema")
    version: int = _VERSION
    dense: DenseSettings | None
    sparse: Annotated[BM25Settings | SpladeSettings, Field(discriminator="kind")] | None


class Encoders:
    """The encoders of an index; the models of a saved index are loaded when they are first needed.

    Args:
        dense: the dense encoder, or the settings to make it from, or None for an index without dense vectors.
        sparse: the sparse encoder, or the settings to make it from, or None for an index without sparse vectors.
    """

    def __init__(
        self,
        dense: DenseTextEncoder | DenseSettings | None,
        sparse: SparseTextEncoder | SpladeSettings | None,
    ) -> None:
        self._dense = dense
        self._sparse = sparse

    @property
    def dense(self) -> DenseTextEncoder | None:
        """The dense encoder, if the index has dense vectors."""
        if isinstance(self._dense, DenseSettings):
            self._dense = make_dense(self._dense)
        return self._dense

    @property
    def sparse(self) -> SparseTextEncoder | None:
        """The sparse encoder, if the index has sparse vectors."""
        if isinstance(self._sparse, SpladeSettings):
            self._sparse = make_sparse(self._sparse)
        return self._sparse

    @property
    def settings(self) -> tuple[DenseSettings | None, BM25Settings | SpladeSettings | None]:
        """The settings of both, without loading anything."""
        dense = self._dense if self._dense is None or isinstance(self._dense, DenseSettings) else self._dense.settings
        sparse = (
            self._sparse if self._sparse is None or isinstance(self._sparse, SpladeSettings) else self._sparse.settings
        )
        return dense, sparse

    def with_sparse(self, sparse: SparseTextEncoder | None) -> "Encoders":
        """Returns the same dense encoder with another sparse one."""
        return Encoders(self._dense, sparse)

    def at(self, other: "Encoders") -> "Encoders":
        """Returns the encoders of another generation, with the models that are known here where they are the same."""

        def same(part: int) -> bool:
            mine, theirs = self.settings[part], other.settings[part]
            # By checksum: a model may have been moved.
            return (
                isinstance(mine, DenseSettings | SpladeSettings)
                and type(mine) is type(theirs)
                and mine == theirs.model_copy(update={"model": mine.model})
            )

        return Encoders(self._dense if same(0) else other._dense, self._sparse if same(1) else other._sparse)


@dataclass(frozen=True, slots=True)
class Contents:
    """One generation, opened.

    Attributes:
        documents: the store.
        index: the vectors.
        encoders: what made the vectors.
    """

    documents: DocumentStore
    index: HybridIndex
    encoders: Encoders

    def write(self, folder: Path) -> None:
        """Writes index and encoders into a new generation, whose file of documents is in place already.

        Raises:
            OSError: the disk is full.
        """
        dense, sparse = self.encoders.settings
        if isinstance(sparse, BM25Settings) and self.encoders.sparse is not None:
            self.encoders.sparse.save_state(folder)
        self.index.save(folder / INDEX_FILE)
        settings = _Settings(dense=dense, sparse=sparse)
        (folder / _SETTINGS).write_text(settings.model_dump_json(indent=1, by_alias=True) + "\n", encoding="utf-8")

    @classmethod
    def open(
        cls, folder: Path, *, mmap: bool = False, dense_model: str | None = None, sparse_model: str | None = None
    ) -> Self:
        """Opens a generation for reading.

        Args:
            folder: a generation's folder.
            mmap: True leaves the vectors in the file until they are needed.
            dense_model: where the dense model's directory is now, or None for where it was.
            sparse_model: likewise for a sparse model.

        Raises:
            FormatError: a file is missing, damaged, or does not fit the others.
            VersionError: written by a newer release.
            ArgumentError: a place for a model that the index does not have.
        """
        settings = _read_settings(folder / _SETTINGS)
        dense, sparse = settings.dense, settings.sparse
        if dense_model is not None:
            if dense is None:
                raise ArgumentError("dense_model: expected None, because this index has no dense vectors")
            dense = dense.model_copy(update={"model": dense_model})
        if sparse_model is not None:
            if not isinstance(sparse, SpladeSettings):
                raise ArgumentError("sparse_model: expected None, because this index has no sparse model")
            sparse = sparse.model_copy(update={"model": sparse_model})
        documents = documents_in(folder)
        index = HybridIndex.open(folder / INDEX_FILE, mmap=mmap)
        if len(index) != len(documents):
            raise FormatError(f"{folder}: {len(documents)} documents do not fit {len(index)} vectors; build it again")
        # BM25's statistics now: a later writer may remove this generation.
        encoder = BM25Encoder.load(sparse, folder) if isinstance(sparse, BM25Settings) else sparse
        return cls(documents, index, Encoders(dense, encoder))

    @staticmethod
    def verify(folder: Path) -> None:
        """Checks a generation beyond its files' checksums.

        Raises:
            FormatError: a file is damaged, or does not fit the others.
        """
        HybridIndex.verify(folder / INDEX_FILE)
        contents = Contents.open(folder)
        contents.documents.verify()
        contents.documents.close()


def documents_in(folder: Path, *, new: bool = False, writable: bool = False) -> DocumentStore:
    """Opens or makes the documents of a generation."""
    return (
        DocumentStore.create(folder / _DOCUMENTS) if new else DocumentStore.open(folder / _DOCUMENTS, writable=writable)
    )


def copy_documents(old: Path, new: Path) -> DocumentStore:
    """Copies the documents of one generation into another, open for writing."""
    shutil.copyfile(old / _DOCUMENTS, new / _DOCUMENTS)
    return DocumentStore.open(new / _DOCUMENTS, writable=True)


def check_target(path: str | os.PathLike[str]) -> Path:
    """Refuses to write an index over something else.

    Args:
        path: a folder that is new, empty, or holds an index.

    Raises:
        ArgumentError: a file, or a folder with other things in it.
    """
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise ArgumentError(f"path: expected a folder to write to, got the file {str(target)!r}")
    if target.is_dir():
        entries = {entry.name for entry in target.iterdir()}
        # An interrupted first build leaves only the lock and its own unfinished generation.
        if entries and not entries & {"CURRENT", "LOCK"}:
            raise ArgumentError(
                f"path: {str(target)!r} holds other things ({', '.join(sorted(entries)[:3])}); "
                "give a new or an empty folder"
            )
    return target


def _read_settings(path: Path) -> _Settings:
    try:
        data = path.read_bytes()
        header = _Header.model_validate_json(data)
        if header.schema_name != _SCHEMA:
            raise FormatError(f"{path}: expected the schema {_SCHEMA!r}, got {header.schema_name!r}")
        if header.version != _VERSION:
            raise VersionError(
                f"{path}: expected version {_VERSION}, got {header.version}; use a newer release of sparing"
            )
        return _Settings.model_validate_json(data)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}): this folder holds no text index") from error
    except ValidationError as error:
        raise FormatError(f"{path}: not the settings of a text index: {one_line(error)}") from error
