"""What a text index asks of its encoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from sparing.hybrid.encoders.settings import BM25Settings, DenseSettings, SpladeSettings
from sparing.runs.progress import Progress

__all__ = ["DenseTextEncoder", "SparseTextEncoder"]


@runtime_checkable
class DenseTextEncoder(Protocol):
    """Turns texts into dense vectors."""

    @property
    def settings(self) -> DenseSettings:
        """What makes this encoder again."""
        ...

    def encode_documents(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Returns float32 vectors of shape `(n, dim)`, in the order of the texts."""
        ...

    def encode_queries(self, texts: Sequence[str], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Returns float32 vectors of shape `(n, dim)`, in the order of the texts."""
        ...


@runtime_checkable
class SparseTextEncoder(Protocol):
    """Turns texts into sparse vectors, terms to weights."""

    @property
    def settings(self) -> BM25Settings | SpladeSettings:
        """What makes this encoder again, beside what :meth:`save_state` writes."""
        ...

    def fit(self, texts: Sequence[str], *, progress: Progress | None = None) -> Self:
        """Returns an encoder that knows the statistics of these texts; itself where there is nothing to learn."""
        ...

    def encode_documents(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
    ) -> sp.csr_array:
        """Returns float32 rows of shape `(n, vocabulary)` with sorted term ids, in the order of the texts."""
        ...

    def encode_queries(self, texts: Sequence[str], *, batch_size: int = 64) -> sp.csr_array:
        """Returns float32 rows of shape `(n, vocabulary)` with sorted term ids, in the order of the texts."""
        ...

    def extended(self, texts: Sequence[str]) -> Self:
        """Returns an encoder that also knows the terms of these texts; itself where the vocabulary is closed."""
        ...

    def save_state(self, folder: Path) -> None:
        """Writes what the settings do not hold into a folder; nothing where they hold all."""
        ...
