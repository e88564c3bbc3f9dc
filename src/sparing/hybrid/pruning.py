"""Sparse pruning: how many of an item's heaviest terms a search reads on its way.

Source: H. Zhang et al., arXiv 2410.20381, sparse pruning. The rule (a share of the squared weights) is this project's.
"""

import numpy as np
import numpy.typing as npt

from sparing.hybrid.inputs import Rows

__all__ = ["kept_terms", "shared_error"]

FEWEST_TERMS, MOST_TERMS = 56, 1024
GROUP = 8  # neighbours in order of weight that one byte may serve, as in cpp/include/sparing/codes.hpp
_SAMPLE, _SHARING_SAMPLE = 500, 50  # items looked at


def kept_terms(rows: Rows, share: float) -> int:
    """The fewest terms an item that keep a share of the squares of all weights.

    That is the share of an inner product that is kept where queries weigh their terms as items do.

    Args:
        rows: the items, of which about 500 evenly spaced ones are looked at.
        share: above 0 to 1; what is dropped and what is lost where terms share a byte may be the rest.

    Returns:
        Whole groups of 8, from 56 to 1024.
    """
    if rows.row_begin is None or rows.values is None:
        return FEWEST_TERMS
    begin = rows.row_begin.astype(np.int64)
    step = max(1, rows.count // _SAMPLE)
    sampled = [np.abs(rows.values[a:b]) for a, b in zip(begin[:-1:step], begin[1::step], strict=True) if b > a]
    if not sampled:
        return FEWEST_TERMS
    sorted_rows = [np.sort(row.astype(np.float64))[::-1] for row in sampled]
    whole = sum(float(np.square(row).sum()) for row in sorted_rows)
    weights = np.zeros((len(sorted_rows), MOST_TERMS))
    for line, row in zip(weights, sorted_rows, strict=True):
        line[: len(row)] = row[:MOST_TERMS]
    kept = np.cumsum(np.square(weights).sum(axis=0))
    sizes = np.array([len(row) for row in sorted_rows])
    fewest = int(np.searchsorted(kept, min(share * whole, kept[-1]))) + 1
    terms = int(np.clip(-(-fewest // GROUP) * GROUP, FEWEST_TERMS, MOST_TERMS))
    some = slice(None, None, max(1, len(weights) // _SHARING_SAMPLE))
    part = float(np.square(weights[some]).sum())
    # Bytes round by a thousandth anyway.
    while terms < min(MOST_TERMS, GROUP * sizes.max()):
        lost = shared_error(weights[some, :terms], sizes[some], terms) / part
        if kept[terms - 1] / whole - lost >= share - 1e-3:
            break
        terms += GROUP * -(-terms // (8 * GROUP))  # an eighth more, in whole groups
    return min(terms, MOST_TERMS)


def shared_error(weights: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64], terms: int) -> float:
    """What is lost where neighbours in order of weight share their mean, in the best way to cut them into groups.

    Args:
        weights: descending, of shape n × `terms`, zeros behind the last.
        sizes: of each row, more than `terms` counts as `terms`.
        terms: places of a row; one group of at most 8 for each 8 of them.

    Returns:
        Sum of squared errors over all rows.
    """
    rows = np.arange(len(weights))
    sums, squares = (np.pad(np.cumsum(x, axis=1), ((0, 0), (1, 0))) for x in (weights, np.square(weights)))
    least = np.full_like(sums, np.inf)  # of the first so many weights, in the groups so far
    least[:, 0] = 0
    for _ in range(terms // GROUP):
        best = least.copy()
        for size in range(1, GROUP + 1):
            inside = sums[:, size:] - sums[:, :-size]
            error = squares[:, size:] - squares[:, :-size] - np.square(inside) / size
            np.minimum(best[:, size:], least[:, :-size] + np.maximum(error, 0), out=best[:, size:])
        least = best
    return float(least[rows, np.minimum(sizes, terms)].sum())
