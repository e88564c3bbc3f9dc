"""Hypothesis strategies for batches of dense and sparse vectors. Needs the extra `test`."""

from typing import Any

import numpy as np

from sparing.errors import MissingExtraError

__all__ = ["dense_batches", "hybrid_batches", "sparse_batches"]

MAX_TERM = 2**32 - 1


def dense_batches(*, count: int, dim: int, magnitude: float = 100.0) -> Any:
    """Strategy for float32 `(count, dim)`; zero rows and repeated values come up often.

    Raises:
        MissingExtraError: hypothesis is not installed.
    """
    st = _hypothesis()
    value = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(-magnitude, magnitude, width=32))
    row = st.one_of(st.just([0.0] * dim), st.lists(value, min_size=dim, max_size=dim))
    return st.lists(row, min_size=count, max_size=count).map(
        lambda rows: np.array(rows, dtype=np.float32).reshape(count, dim)
    )


def sparse_batches(*, count: int, max_terms: int = 12, vocabulary: int = MAX_TERM + 1, magnitude: float = 100.0) -> Any:
    """Strategy for a list of `count` dicts `{term: weight}`; negative weights, empty rows, shared terms come up often.

    Raises:
        MissingExtraError: hypothesis is not installed.
    """
    st = _hypothesis()
    term = st.one_of(st.integers(0, min(20, vocabulary - 1)), st.integers(0, vocabulary - 1), st.just(vocabulary - 1))
    weight = st.one_of(st.sampled_from([1.0, -1.0, 0.0]), st.floats(-magnitude, magnitude, width=32))
    return st.lists(st.dictionaries(term, weight, max_size=max_terms), min_size=count, max_size=count)


def hybrid_batches(*, min_count: int = 1, max_count: int = 40, max_dim: int = 20) -> Any:
    """Strategy for `(dense, sparse)` of one count, with at most one of them None.

    Raises:
        MissingExtraError: hypothesis is not installed.
    """
    st = _hypothesis()

    def of_size(size: tuple[int, int, str]) -> Any:
        count, dim, parts = size
        dense = st.none() if parts == "sparse" else dense_batches(count=count, dim=dim)
        sparse = st.none() if parts == "dense" else sparse_batches(count=count)
        return st.tuples(dense, sparse)

    sizes = st.tuples(
        st.integers(min_count, max_count), st.integers(1, max_dim), st.sampled_from(["both", "both", "dense", "sparse"])
    )
    return sizes.flatmap(of_size)


def _hypothesis() -> Any:
    try:
        from hypothesis import strategies
    except ImportError:
        raise MissingExtraError("hypothesis", extra="test", purpose="sparing.testing.strategies") from None
    return strategies
