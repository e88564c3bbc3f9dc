"""Hybrid retrieval: one graph index over dense + sparse vectors."""

from sparing.hybrid.alignment import Alignment
from sparing.hybrid.config import HybridConfig
from sparing.hybrid.index import HybridIndex
from sparing.hybrid.results import IndexStats, SearchResult, SearchStats

__all__ = ["Alignment", "HybridConfig", "HybridIndex", "IndexStats", "SearchResult", "SearchStats"]
