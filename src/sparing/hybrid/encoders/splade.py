"""Learned sparse encoder: any SPLADE-style masked language model directory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from sparing.errors import FormatError
from sparing.hybrid.encoders.batches import checked_texts, run_in_batches
from sparing.hybrid.encoders.model import autocast, open_model
from sparing.hybrid.encoders.settings import SpladeSettings
from sparing.runs.progress import Progress

__all__ = ["SpladeEncoder"]

# The logits are (texts, tokens, vocabulary): 16,384 characters keep them near half a gigabyte at 30,000 words.
_MAX_CHARS = 16_384


class SpladeEncoder:
    """Texts to weighted terms of the model's vocabulary: `max over tokens of ln(1 + relu(logit))`.

    A directory without ``modules.json`` (a plain masked language model) gets max pooling.
    Source: Formal et al., *SPLADE v2* (arXiv 2109.10086).

    Args:
        settings: the model and how to run it, or just the model's directory.
        device: a torch device name; None takes the first CUDA device if there is one, else the CPU.

    Raises:
        ArgumentError: no such directory, or it does not load.
        FormatError: the directory's files are not those of `settings.sha256`.
        MissingExtraError: sentence-transformers is not installed (extra ``text``).

    Example::

        encoder = SpladeEncoder("models/splade-tiny")
        weights = encoder.encode_documents(["a red fox", "two hens"])  # CSR of shape (2, 30522)

    Thread safety: for one thread at a time.
    """

    def __init__(self, settings: SpladeSettings | str, *, device: str | None = None) -> None:
        if isinstance(settings, str):
            settings = SpladeSettings(model=settings)
        self._model, self._settings = open_model("SparseEncoder", settings, device=device)
        self._device = str(self._model.device)

    @property
    def settings(self) -> SpladeSettings:
        """The settings, with checksum and precision filled in."""
        return self._settings

    def fit(self, texts: Sequence[str], *, progress: Progress | None = None) -> Self:  # noqa: ARG002
        """Returns itself: a trained model has nothing to learn from the documents."""
        return self

    def extended(self, texts: Sequence[str]) -> Self:  # noqa: ARG002
        """Returns itself: the vocabulary is the model's."""
        return self

    def save_state(self, folder: Path) -> None:
        """Writes nothing: the settings hold all."""

    def encode_documents(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
    ) -> sp.csr_array:
        """Encodes documents.

        Args:
            texts: at least one string; what goes beyond the model's limit of tokens is cut off.
            batch_size: the most texts in a batch, at least 1; long texts go in smaller batches.
            progress: called with ``("sparse vectors", done, total)``.

        Returns:
            float32 CSR of shape `(n, vocabulary)` with sorted term ids and weights above 0, in the order of the texts.

        Raises:
            ArgumentError: no texts, or a batch size below 1.
            DtypeError: something that is not a string.
            FormatError: the model computes NaN or infinity.
        """
        return self._encode(self._model.encode_document, texts, batch_size, progress)

    def encode_queries(self, texts: Sequence[str], *, batch_size: int = 64) -> sp.csr_array:
        """Encodes queries; see :meth:`encode_documents`."""
        return self._encode(self._model.encode_query, texts, batch_size, None)

    def _encode(
        self, encode: Callable[..., Any], texts: Sequence[str], batch_size: int, progress: Progress | None
    ) -> sp.csr_array:
        texts = checked_texts(texts)

        def encode_batch(batch: list[str]) -> sp.csr_array:
            with autocast(self._settings.precision, self._device):
                weights = encode(
                    batch,
                    batch_size=len(batch),
                    show_progress_bar=False,
                    convert_to_sparse_tensor=False,
                    max_active_dims=self._settings.max_terms,
                )
            return sp.csr_array(weights.float().cpu().numpy())

        order, parts = [], []
        for rows, part in run_in_batches(
            encode_batch, texts, batch_size=batch_size, stage="sparse vectors", progress=progress, max_chars=_MAX_CHARS
        ):
            order.append(rows)
            parts.append(part)
        result = sp.csr_array(sp.vstack(parts, format="csr")[np.argsort(np.concatenate(order))])
        result.sort_indices()
        if not np.isfinite(result.data).all():
            raise FormatError(f"model {self._settings.model!r} computes NaN or infinity; its weights are damaged")
        return result
