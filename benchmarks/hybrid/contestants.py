"""Who takes part: every contestant by name, and the pairings of the two-route family."""

from __future__ import annotations

from benchmarks.hybrid.rivals.protocol import Contestant


def rivals() -> list[Contestant]:
    """One index each, searched with dense and sparse vectors together."""
    from benchmarks.hybrid.rivals.kannolo_graph import Kannolo
    from benchmarks.hybrid.rivals.qdrant_db import Qdrant
    from benchmarks.hybrid.rivals.zvec_db import Zvec

    return [Zvec(), Qdrant(), Kannolo()]


def dense_routes() -> list[Contestant]:
    """Dense indexes: contestants for dense-only queries, and one half of a pairing."""
    from benchmarks.hybrid.rivals.dense_routes import Faiss, Hnswlib

    return [Faiss(), Hnswlib()]


def sparse_routes() -> list[Contestant]:
    """Sparse indexes: the other half of a pairing."""
    from benchmarks.hybrid.rivals.sparse_routes import Seismic, Sindi

    return [Seismic(), Sindi()]


def ours() -> list[Contestant]:
    """The default index and the ladder that leads to it."""
    from benchmarks.hybrid.rivals.ours import default, ladder

    return [default(), *ladder()]


def everyone() -> list[Contestant]:
    """All that can be built."""
    return [*dense_routes(), *sparse_routes(), *rivals(), *ours()]


def by_name(name: str) -> Contestant:
    """The contestant of that name."""
    found = {contestant.name: contestant for contestant in everyone()}
    if name not in found:
        raise SystemExit(f"no contestant {name!r}; there are {sorted(found)}")
    return found[name]
