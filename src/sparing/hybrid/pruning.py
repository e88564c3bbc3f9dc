"""Sparse pruning: how many of an item's heaviest terms a search reads on its way.

Source: H. Zhang et al., arXiv 2410.20381, sparse pruning. The rule (a share of the squared weights) is this project's.
"""

import numpy as np

from sparing.hybrid.inputs import Rows

__all__ = ["FEWEST_TERMS", "kept_terms"]

FEWEST_TERMS, MOST_TERMS, GROUP = 56, 1024, 8
_SAMPLE = 2000


def kept_terms(rows: Rows, share: float) -> int:
    """The fewest terms an item with which items keep a share of their squared weights.

    That is the share of an inner product that is kept where queries weigh their terms as items do.

    Args:
        rows: the items, of which 2,000 evenly spaced ones are looked at.
        share: above 0 to 1, of the squares of all weights.

    Returns:
        Whole groups of 8, from 56 to 1024.
    """
    if rows.row_begin is None or rows.values is None:
        return FEWEST_TERMS
    begin = rows.row_begin.astype(np.int64)
    step = max(1, -(-rows.count // _SAMPLE))
    kept = np.zeros(MOST_TERMS + 1)
    for first, last in zip(begin[:-1:step], begin[1::step], strict=True):
        squares = np.sort(np.square(rows.values[first:last], dtype=np.float64))[::-1]
        kept[: len(squares)] += squares[: MOST_TERMS + 1]
        kept[-1] += squares[MOST_TERMS + 1 :].sum()
    reached = np.cumsum(kept)
    enough = int(np.searchsorted(reached, share * reached[-1])) + 1
    return int(np.clip(-(-enough // GROUP) * GROUP, FEWEST_TERMS, MOST_TERMS))
