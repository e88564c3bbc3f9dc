"""Encoders: texts to dense and to sparse vectors.

Importing this package loads no model library; making an encoder does (extra ``text``).
"""

from pathlib import Path

from sparing.errors import ArgumentError
from sparing.hybrid.encoders.bm25 import BM25Encoder
from sparing.hybrid.encoders.dense import DenseEncoder
from sparing.hybrid.encoders.protocols import DenseTextEncoder, SparseTextEncoder
from sparing.hybrid.encoders.settings import BM25Settings, DenseSettings, SpladeSettings, parse_settings
from sparing.hybrid.encoders.splade import SpladeEncoder

__all__ = [
    "BM25Encoder",
    "BM25Settings",
    "DenseEncoder",
    "DenseSettings",
    "DenseTextEncoder",
    "SparseTextEncoder",
    "SpladeEncoder",
    "SpladeSettings",
    "make_dense",
    "make_sparse",
    "parse_settings",
]


def make_dense(encoder: DenseTextEncoder | DenseSettings | str | Path) -> DenseTextEncoder:
    """Returns a dense encoder for a model directory, a ``hf://`` name, settings, or an encoder itself.

    Raises:
        ArgumentError: no such directory, or it does not load.
        FormatError: the model is not the one of the settings.
        MissingExtraError: sentence-transformers is not installed.
    """
    if isinstance(encoder, str | Path):
        return DenseEncoder(str(encoder))
    if isinstance(encoder, DenseSettings):
        return DenseEncoder(encoder)
    if isinstance(encoder, DenseTextEncoder):
        return encoder
    raise ArgumentError(f"dense: expected a model directory, settings or an encoder, got {type(encoder).__name__}")


def make_sparse(encoder: SparseTextEncoder | BM25Settings | SpladeSettings | str | Path) -> SparseTextEncoder:
    """Returns a sparse encoder for ``"bm25"``, a model directory, a ``hf://`` name, settings, or an encoder itself.

    Raises:
        ArgumentError: no such directory, or it does not load.
        ConfigError: BM25 in a language without a stemmer.
        FormatError: the model is not the one of the settings.
        MissingExtraError: bm25s, PyStemmer or sentence-transformers is not installed.
    """
    if encoder == "bm25":
        return BM25Encoder()
    if isinstance(encoder, str | Path):
        return SpladeEncoder(str(encoder))
    if isinstance(encoder, BM25Settings):
        return BM25Encoder(encoder)
    if isinstance(encoder, SpladeSettings):
        return SpladeEncoder(encoder)
    if isinstance(encoder, SparseTextEncoder):
        return encoder
    raise ArgumentError(
        f'sparse: expected "bm25", a model directory, settings or an encoder, got {type(encoder).__name__}'
    )
