"""BM25 as a sparse encoder: bm25s splits and stems, documents carry the weights, queries the counts.

Source: Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and Beyond* (2009); Lucene's variant.

=================  =========================  ==========================================
symbol             name                       meaning
=================  =========================  ==========================================
N                  ``num_documents``          documents that the encoder was fitted on
df(t)              ``document_frequencies``   how many of them have the term t
l_avg              ``average_length``         mean number of terms in one of them
k1, b              ``settings.k1, .b``        saturation, length normalisation
=================  =========================  ==========================================

``w(t, x) = ln(1 + (N - df + 1/2) / (df + 1/2)) * tf / (tf + k1 * (1 - b + b * l_x / l_avg))``
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparing.errors import ArgumentError, ConfigError, FormatError, MissingExtraError
from sparing.hybrid.encoders.batches import checked_texts
from sparing.hybrid.encoders.settings import BM25Settings, one_line
from sparing.runs.progress import Progress

__all__ = ["BM25Encoder", "BM25Statistics"]

_STATE_FILE = "bm25.json"
_CHUNK = 2048
# Languages for which bm25s has stop words; for the others only the stemmer is at work.
_STOPWORD_LANGUAGES = {
    *("danish", "dutch", "english", "french", "german", "italian"),
    *("norwegian", "portuguese", "russian", "spanish", "swedish", "turkish"),
}


class BM25Statistics(BaseModel):
    """What a BM25 encoder learned from its documents; saved with an index.

    Attributes:
        num_documents: N.
        average_length: l_avg, in terms.
        terms: the vocabulary, in the order of the term ids.
        document_frequencies: df of each term.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    num_documents: int = Field(ge=1)
    average_length: float = Field(ge=0, allow_inf_nan=False)
    terms: list[str]
    document_frequencies: list[Annotated[int, Field(ge=1)]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.document_frequencies) == len(self.terms) == len(set(self.terms)):
            raise ValueError("expected distinct terms, each with a document frequency")
        if max(self.document_frequencies, default=0) > self.num_documents:
            raise ValueError("expected no term in more documents than there are")
        return self


class BM25Encoder:
    """BM25 term weights for documents, term counts for queries: their inner product is the BM25 score.

    The statistics (N, df, average length) are those of the texts given to :meth:`fit` and stay as they are when
    documents are added later, so that a document weighs the same whenever it comes. A term first seen later counts as
    one that a single document has. Build anew once the collection has changed a lot.

    Args:
        settings: k1, b, language; the defaults where None.
        statistics: what a fitted encoder learned, or None for one to be fitted.

    Raises:
        ConfigError: a language without a stemmer.
        MissingExtraError: bm25s or PyStemmer is not installed (extra ``text``).

    Example:
        >>> encoder = BM25Encoder().fit(["a red fox", "two red hens"])
        >>> encoder.terms
        ('fox', 'hen', 'red', 'two')
        >>> encoder.encode_queries(["Foxes and geese"]).indices.tolist()
        [0]

    Thread safety: immutable after construction, so any number of threads may encode.
    """

    def __init__(self, settings: BM25Settings | None = None, *, statistics: BM25Statistics | None = None) -> None:
        self._settings = settings or BM25Settings()
        if statistics is None:
            _check_language(self._settings.language)
        self._statistics = statistics
        self._terms = {term: i for i, term in enumerate(statistics.terms)} if statistics else {}

    @property
    def settings(self) -> BM25Settings:
        """The settings that the encoder was made with."""
        return self._settings

    @property
    def terms(self) -> tuple[str, ...]:
        """The vocabulary, in the order of the term ids."""
        return tuple(self._terms)

    @property
    def num_documents(self) -> int:
        """The number of documents that the encoder was fitted on; 0 before."""
        return self._statistics.num_documents if self._statistics else 0

    def fit(self, texts: Sequence[str], *, progress: Progress | None = None) -> Self:
        """Learns the vocabulary, the document frequencies and the average length.

        Args:
            texts: the documents, at least one string.
            progress: called with ``("bm25 statistics", done, total)``.

        Returns:
            A new fitted encoder with the same settings; this one stays as it is.

        Raises:
            ArgumentError: no texts.
            DtypeError: something that is not a string.
        """
        texts = checked_texts(texts)
        frequencies: dict[str, int] = {}
        num_tokens = 0
        for start in range(0, len(texts), _CHUNK):
            for tokens in self._tokenize(texts[start : start + _CHUNK]):
                num_tokens += len(tokens)
                for token in set(tokens):
                    frequencies[token] = frequencies.get(token, 0) + 1
            if progress is not None:
                progress("bm25 statistics", min(start + _CHUNK, len(texts)), len(texts))
        terms = sorted(frequencies)
        statistics = BM25Statistics(
            num_documents=len(texts),
            average_length=num_tokens / len(texts),
            terms=terms,
            document_frequencies=[frequencies[term] for term in terms],
        )
        return type(self)(self._settings, statistics=statistics)

    def extended(self, texts: Sequence[str]) -> Self:
        """Adds the terms of further documents to the vocabulary; the statistics stay.

        Args:
            texts: the documents that will be added.

        Returns:
            An encoder with the new terms after the known ones, or this one where there are none.

        Raises:
            ArgumentError: no texts, or the encoder is not fitted.
            DtypeError: something that is not a string.
        """
        known = self._fitted()
        new = {token for tokens in self._tokenize(checked_texts(texts)) for token in tokens} - self._terms.keys()
        if not new:
            return self
        statistics = BM25Statistics(
            num_documents=known.num_documents,
            average_length=known.average_length,
            terms=[*known.terms, *sorted(new)],
            document_frequencies=[*known.document_frequencies, *([1] * len(new))],
        )
        return type(self)(self._settings, statistics=statistics)

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 64,  # noqa: ARG002 - part of the encoders' protocol; counting needs no batches
        progress: Progress | None = None,
    ) -> sp.csr_array:
        """Weights the terms of documents.

        Args:
            texts: the documents, at least one string. Terms outside the vocabulary are left out (see :meth:`extended`).
            batch_size: not used.
            progress: called with ``("bm25 weights", done, total)``.

        Returns:
            float32 CSR of shape `(n, len(terms))` with sorted term ids; a text without a known term is an empty row.

        Raises:
            ArgumentError: no texts, or the encoder is not fitted.
            DtypeError: something that is not a string.
        """
        self._fitted()
        texts = checked_texts(texts)
        parts = []
        for start in range(0, len(texts), _CHUNK):
            parts.append(self._weights(*self._counts(texts[start : start + _CHUNK])))
            if progress is not None:
                progress("bm25 weights", min(start + _CHUNK, len(texts)), len(texts))
        return sp.csr_array(sp.vstack(parts, format="csr"))

    def encode_queries(self, texts: Sequence[str], *, batch_size: int = 64) -> sp.csr_array:  # noqa: ARG002
        """Counts the terms of queries.

        Args:
            texts: the queries, at least one string; terms outside the vocabulary are ignored.
            batch_size: not used.

        Returns:
            float32 CSR of shape `(n, len(terms))` with sorted term ids.

        Raises:
            ArgumentError: no texts, or the encoder is not fitted.
            DtypeError: something that is not a string.
        """
        self._fitted()
        return self._counts(checked_texts(texts))[0]

    def save_state(self, folder: Path) -> None:
        """Writes vocabulary and statistics into a folder, as JSON.

        Raises:
            ArgumentError: the encoder is not fitted.
        """
        (folder / _STATE_FILE).write_text(self._fitted().model_dump_json(), encoding="utf-8")

    @classmethod
    def load(cls, settings: BM25Settings, folder: Path) -> Self:
        """Reads an encoder back.

        Args:
            settings: the settings that it was fitted with.
            folder: where :meth:`save_state` wrote.

        Raises:
            FormatError: the file is missing, damaged or contradicts itself.
            MissingExtraError: bm25s or PyStemmer is not installed.
        """
        path = folder / _STATE_FILE
        try:
            statistics = BM25Statistics.model_validate_json(path.read_bytes())
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror}); build the index again") from error
        except ValidationError as error:
            raise FormatError(f"{path}: not a BM25 vocabulary ({one_line(error)}); build the index again") from error
        return cls(settings, statistics=statistics)

    def _fitted(self) -> BM25Statistics:
        if self._statistics is None:
            raise ArgumentError(
                "encoder: expected a fitted BM25 encoder, got one without a vocabulary; call fit(texts)"
            )
        return self._statistics

    def _tokenize(self, texts: list[str]) -> list[list[str]]:
        language = self._settings.language
        _check_language(language)
        import bm25s
        import Stemmer

        tokens: list[list[str]] = bm25s.tokenize(
            texts,
            token_pattern=rf"(?u)\b\w{{{self._settings.min_token_length},}}\b",
            stopwords=language if language in _STOPWORD_LANGUAGES else [],
            # A stemmer of its own for each call: PyStemmer's are not for several threads.
            stemmer=None if language is None else Stemmer.Stemmer(language),
            return_ids=False,
            show_progress=False,
        )
        return tokens

    def _counts(self, texts: list[str]) -> tuple[sp.csr_array, NDArray[np.float32]]:
        """Returns known terms' counts, float32 `(n, terms)`, and the lengths with all terms, float32 `(n,)`."""
        rows = self._tokenize(texts)
        known = [[self._terms[token] for token in tokens if token in self._terms] for tokens in rows]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(ids) for ids in known], out=indptr[1:])
        indices = np.fromiter((term for ids in known for term in ids), np.int64, indptr[-1])
        counts = sp.csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=(len(rows), len(self._terms)))
        counts.sum_duplicates()
        return counts, np.array([len(tokens) for tokens in rows], np.float32)

    def _weights(self, counts: sp.csr_array, lengths: NDArray[np.float32]) -> sp.csr_array:
        s, learned = self._settings, self._fitted()
        df = np.asarray(learned.document_frequencies, np.float64)
        idf = np.log1p((learned.num_documents - df + 0.5) / (df + 0.5))
        relative = lengths / learned.average_length if learned.average_length > 0 else np.ones_like(lengths)
        denominator = np.repeat(s.k1 * (1 - s.b + s.b * relative), np.diff(counts.indptr))
        # k1 = 0 and b = 1 keep a positive denominator, because tf is at least 1.
        data = idf[counts.indices] * counts.data / (counts.data + denominator)
        return sp.csr_array((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)


def _check_language(language: str | None) -> None:
    try:
        import bm25s  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("bm25s", extra="text", purpose="the BM25 encoder") from error
    try:
        import Stemmer
    except ImportError as error:
        raise MissingExtraError("PyStemmer", extra="text", purpose="the BM25 encoder") from error
    if language is not None and language not in (known := Stemmer.algorithms()):
        raise ConfigError(f"language: expected None or one of {', '.join(known)}; got {language!r}")
