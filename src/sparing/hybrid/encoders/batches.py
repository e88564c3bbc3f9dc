"""Checked texts, and batches of texts of like length, so that little is padded."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sparing.errors import ArgumentError, DtypeError
from sparing.runs.progress import Progress

__all__ = ["checked_texts", "run_in_batches"]

_T = TypeVar("_T")


def checked_texts(texts: Sequence[str], *, name: str = "texts") -> list[str]:
    """Returns the texts as a list, or says what is wrong with them.

    Args:
        texts: a sequence of strings; a single string is refused, because it would be read as its characters.
        name: the argument's name for messages.

    Returns:
        The texts.

    Raises:
        DtypeError: not a sequence, a bare string, or an element that is not a string.
        ArgumentError: no text at all.
    """
    if isinstance(texts, str | bytes):
        raise DtypeError(f"{name}: expected a list of strings, got one {type(texts).__name__}; write [text]")
    try:
        items = list(texts)
    except TypeError:
        raise DtypeError(f"{name}: expected a list of strings, got {type(texts).__name__}") from None
    for position, text in enumerate(items):
        if not isinstance(text, str):
            raise DtypeError(f"{name}[{position}]: expected a string, got {type(text).__name__}")
    if not items:
        raise ArgumentError(f"{name}: expected at least one string, got an empty list")
    return items


def _batches(texts: list[str], batch_size: int, max_chars: int | None) -> Iterator[NDArray[np.int64]]:
    # Longest first: what does not fit the memory fails at once and not after an hour.
    order = np.argsort(np.array([-len(text) for text in texts]), kind="stable")
    start = 0
    while start < len(order):
        size = batch_size
        if max_chars is not None:
            size = max(1, min(size, max_chars // max(1, len(texts[order[start]]))))
        yield order[start : start + size]
        start += size


def run_in_batches(
    encode: Callable[[list[str]], _T],
    texts: list[str],
    *,
    batch_size: int,
    stage: str,
    progress: Progress | None,
    max_chars: int | None = None,
) -> Iterator[tuple[NDArray[np.int64], _T]]:
    """Encodes texts in batches of like length.

    Args:
        encode: turns one batch of texts into one result.
        texts: the texts, at least one.
        batch_size: the most texts in a batch, at least 1.
        stage: the name of the work for `progress`.
        progress: called with `(stage, done, total)` before the first and after each batch, or None.
        max_chars: the most characters in a batch, counted as if all were as long as its longest, or None.

    Yields:
        The positions of a batch's texts, int64 of shape `(batch,)`, and the result for them.

    Raises:
        ArgumentError: a batch size below 1.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size: expected at least 1, got {batch_size}")
    done = 0
    if progress is not None:
        progress(stage, 0, len(texts))
    for rows in _batches(texts, batch_size, max_chars):
        yield rows, encode([texts[row] for row in rows])
        done += len(rows)
        if progress is not None:
            progress(stage, done, len(texts))
