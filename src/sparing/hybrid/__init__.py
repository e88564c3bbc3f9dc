"""Hybrid retrieval: one graph index over dense + sparse vectors, and text indexes on top of it."""

from sparing.hybrid.alignment import Alignment
from sparing.hybrid.config import HybridConfig
from sparing.hybrid.index import HybridIndex
from sparing.hybrid.records import Document
from sparing.hybrid.results import IndexStats, SearchResult, SearchStats
from sparing.hybrid.text import Hit, TextIndex

__all__ = [
    "Alignment",
    "Document",
    "Hit",
    "HybridConfig",
    "HybridIndex",
    "IndexStats",
    "SearchResult",
    "SearchStats",
    "TextIndex",
]
