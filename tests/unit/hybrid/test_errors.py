"""A refused change leaves everything as it was: answers, sizes, alignment, and the bytes of a saved file."""

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.errors import (
    ArgumentError,
    DuplicateIdError,
    NonFiniteError,
    ShapeError,
    SparseFormatError,
    UnknownIdError,
)
from sparing.hybrid import HybridConfig, HybridIndex


def broken(dense, row, value):
    dense = dense.copy()
    dense[row, 0] = value
    return dense


def attempts(data):
    new = np.arange(1000, 1010)
    dense, sparse = data.dense[:10], data.sparse[:10]
    dicts = [{1: 1.0}] * 9 + [{-1: 1.0}]
    return {
        "add: id taken": (
            DuplicateIdError,
            r"id 7 is in the index already; use update",
            "add",
            dense,
            sparse,
            [*new[:9], 7],
        ),
        "add: id twice": (DuplicateIdError, r"id 1000 is given twice", "add", dense, sparse, [*new[:9], 1000]),
        "add: negative id": (ArgumentError, r"ids\[9\] is -3", "add", dense, sparse, [*new[:9], -3]),
        "add: nan": (NonFiniteError, r"dense item row 9, column 0", "add", broken(dense, 9, np.nan), sparse, new),
        "add: inf": (NonFiniteError, r"dense item row 9, column 0", "add", broken(dense, 9, np.inf), sparse, new),
        "add: term": (SparseFormatError, r"sparse: row 9", "add", dense, dicts, new),
        "add: dimension": (ShapeError, r"24 dimensions, got 23", "add", dense[:, 1:], sparse, new),
        "add: too few ids": (ShapeError, r"ids: expected shape \(10,\)", "add", dense, sparse, new[:9]),
        "update: unknown": (
            UnknownIdError,
            r"id 1009 is not in the index; use add",
            "update",
            dense,
            sparse,
            [*range(9), 1009],
        ),
        "update: twice": (DuplicateIdError, r"id 3 is given twice", "update", dense, sparse, [*range(9), 3]),
        "update: nan": (NonFiniteError, r"dense item row 9", "update", broken(dense, 9, np.nan), sparse, np.arange(10)),
    }


NAMES = [
    *["add: id taken", "add: id twice", "add: negative id", "add: nan", "add: inf", "add: term", "add: dimension"],
    *["add: too few ids", "update: unknown", "update: twice", "update: nan"],
]


@pytest.fixture
def index(small):
    return HybridIndex.build(small.dense, small.sparse)


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_change_leaves_the_same_bytes(small, index, tmp_path, name):
    error, message, method, dense, sparse, ids = attempts(small)[name]
    index.save(tmp_path / "before")
    with pytest.raises(error, match=message):
        getattr(index, method)(dense, sparse, ids=ids)
    assert len(index) == 300
    assert index.stats.num_deleted == 0
    index.save(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


@pytest.mark.parametrize(
    ("ids", "error"), [([0, 1, 999], UnknownIdError), ([0, 1, 0], DuplicateIdError), ([0, -1], ArgumentError)]
)
def test_a_refused_delete_deletes_nothing(index, ids, error):
    with pytest.raises(error):
        index.delete(ids)
    assert len(index) == 300
    assert 0 in index
    assert 1 in index


def test_unknown_ids_are_key_errors_with_a_readable_message(index):
    with pytest.raises(KeyError) as caught:
        index.delete([12345])
    assert str(caught.value).startswith("id 12345 is not in the index")


@pytest.mark.parametrize("start", [0, 5, 300])
def test_an_add_that_stops_half_way_changes_nothing(small, tmp_path, start):
    """A progress function may raise (so does Ctrl-C); whatever was appended by then is taken back."""
    index = HybridIndex.build(small.dense[:start], small.sparse[:start])
    index.save(tmp_path / "before")

    class StopError(Exception):
        pass

    def stop(stage, done, total):
        raise StopError

    # Over 64 rows, so that a first batch is linked before the others.
    with pytest.raises(StopError):
        index.add(small.dense[:200], small.sparse[:200], ids=np.arange(1000, 1200), progress=stop)
    assert len(index) == start
    assert index.stats.num_deleted == 0
    index.save(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()
    index.add(small.dense[:200], small.sparse[:200], ids=np.arange(1000, 1200))
    assert len(index) == start + 200
    index.save(tmp_path / "grown")
    assert len(HybridIndex.open(tmp_path / "grown")) == start + 200


@pytest.mark.parametrize("kind", ["nan", "twice"])
def test_a_refused_first_add_does_not_align(small, kind):
    index = HybridIndex.build(small.dense[:0], small.sparse[:0])
    before = index.alignment
    dense = broken(small.dense, 3, np.nan) if kind == "nan" else small.dense
    ids = np.arange(300) if kind == "nan" else np.zeros(300, int)
    with pytest.raises((NonFiniteError, DuplicateIdError)):
        index.add(dense, small.sparse, ids=ids)
    assert index.alignment == before
    index.add(small.dense, small.sparse, ids=np.arange(300))
    assert index.alignment == HybridIndex.build(small.dense, small.sparse).alignment


def test_an_index_without_a_dense_part_takes_none(small):
    index = HybridIndex.build(None, small.sparse)
    with pytest.raises(ShapeError, match=r"no dense part"):
        index.add(small.dense[:1], small.sparse[:1], ids=[900])
    with pytest.raises(ShapeError, match=r"no dense part"):
        index.search(small.dense[0])


@pytest.mark.parametrize("num_threads", [-1, 1.5, 2**31, 2**40])
def test_absurd_thread_counts(small, num_threads):
    with pytest.raises((ArgumentError, TypeError), match=r"num_threads: expected"):
        HybridIndex.build(small.dense, small.sparse, num_threads=num_threads)


def test_values_whose_scores_overflow_are_refused():
    """Finite values whose products are infinite would score NaN."""
    dense = (np.random.default_rng(0).choice([-1, 1], (300, 64)) * 3e38).astype(np.float32)
    with pytest.raises(NonFiniteError):
        HybridIndex.build(dense, None)
    index = HybridIndex.build(np.ones((3, 64), np.float32), None, config=HybridConfig())
    with pytest.raises(NonFiniteError):
        index.search(dense[0])
