"""Distribution alignment: one factor that brings sparse scores to the scale of dense ones.

=====================  =======================================================
paper                  name
=====================  =======================================================
dense distances        `dense_scores`, inner products of sampled passage pairs
sparse distances       `sparse_scores`, the same for the sparse part
alignment factor       `Alignment.scale` = spread(dense) / spread(sparse)
=====================  =======================================================

Source: H. Zhang et al., arXiv 2410.20381, distribution alignment. The statistic (standard deviation over random passage
pairs) is this project's choice, see docs/decisions.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from sparing.hybrid.config import AlignmentStatistic
from sparing.hybrid.inputs import Rows

__all__ = ["Alignment", "align"]

_FEW_SHARED = 200  # of the drawn pairs: with fewer the spread is a matter of luck
_ALL_PAIRS_OF = 3000


@dataclass(frozen=True)
class Alignment:
    """The factor on sparse scores and what it came from.

    Attributes:
        scale: S = w_dense * <dense> + w_sparse * scale * <sparse>; 1 where one part is absent or constant.
        dense_spread: the statistic of dense scores over the pairs (0 where not measured).
        sparse_spread: the same for raw sparse scores.
        num_pairs: pairs measured.
        seed: seed of the pairs.
        statistic: ``"std"``, ``"range"``, ``"mean"``, ``"none"``, or ``"given"`` for a factor of the caller's.
    """

    scale: float
    dense_spread: float
    sparse_spread: float
    num_pairs: int
    seed: int
    statistic: str

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Alignment":
        """What `to_dict` gave.

        Raises:
            ValueError, TypeError: a field is missing, unknown, of another type, or out of range.
        """
        alignment = cls(**fields)
        numbers: tuple[Any, ...] = (alignment.scale, alignment.dense_spread, alignment.sparse_spread)
        if not all(isinstance(x, int | float) and np.isfinite(np.float32(x)) for x in numbers) or alignment.scale <= 0:
            raise ValueError(f"alignment: expected finite numbers and a scale above 0, got {numbers}")
        counts: tuple[Any, ...] = (alignment.num_pairs, alignment.seed)
        if not all(isinstance(x, int) for x in counts):
            raise TypeError("alignment: expected integers as num_pairs and seed")
        return alignment


def align(rows: Rows, *, statistic: AlignmentStatistic = "std", num_pairs: int = 10_000, seed: int = 0) -> Alignment:
    """Measures the scale on random passage pairs.

    Args:
        rows: the items; items without a dense or without a sparse part are not sampled.
        statistic: ``"std"``: standard deviation; ``"range"``: 5 to 95 % range; ``"mean"``: mean; ``"none"``: scale 1.
        num_pairs: pairs to draw (with replacement, an item never with itself).
        seed: seed of the draw.

    Returns:
        The alignment; scale 1 with num_pairs 0 where fewer than two items carry both parts, or a spread is 0. Where
        rows of the sparse part hardly ever share a term, its scores are those of all pairs of up to 3,000 items.
    """
    unmeasured = Alignment(1.0, 0.0, 0.0, 0, seed, statistic)
    if statistic == "none" or rows.dense is None or rows.row_begin is None or rows.terms is None or rows.values is None:
        return unmeasured
    with_both = np.flatnonzero((np.diff(rows.row_begin.astype(np.int64)) > 0) & rows.dense.any(axis=1))
    if len(with_both) < 2:
        return unmeasured
    generator = np.random.default_rng(seed)
    left = generator.integers(0, len(with_both), num_pairs)
    right = (left + generator.integers(1, len(with_both), num_pairs)) % len(with_both)
    left, right = with_both[left], with_both[right]
    dense_scores = np.einsum("ij,ij->i", rows.dense[left], rows.dense[right], dtype=np.float64)
    compact = np.unique(rows.terms, return_inverse=True)[1].astype(np.int64)
    width = int(compact.max(initial=0)) + 1
    matrix = sp.csr_array(
        (rows.values.astype(np.float64), compact, rows.row_begin.astype(np.int64)), shape=(rows.count, width)
    )
    sparse_scores = np.asarray(matrix[left].multiply(matrix[right]).sum(axis=1)).ravel()
    if np.count_nonzero(sparse_scores) < _FEW_SHARED:
        some = np.sort(generator.choice(with_both, min(len(with_both), _ALL_PAIRS_OF), replace=False))
        sparse_scores = _all_pairs(matrix[some])
    dense_spread, sparse_spread = _spread(dense_scores, statistic), _spread(sparse_scores, statistic)
    if not (0 < dense_spread < np.inf and 0 < sparse_spread < np.inf):
        return unmeasured
    with np.errstate(over="ignore"):
        scale = float(np.float32(dense_spread / sparse_spread))
    if not 0 < scale < np.inf:  # spreads further apart than float32 reaches
        scale = 1.0
    return Alignment(scale, dense_spread, sparse_spread, num_pairs, seed, statistic)


def _all_pairs(matrix: sp.csr_array) -> npt.NDArray[np.float64]:
    """Inner products of each two rows, those that are 0 last."""
    products = sp.triu(matrix @ matrix.T, k=1)
    scores = np.zeros(matrix.shape[0] * (matrix.shape[0] - 1) // 2)
    scores[: products.nnz] = products.data
    return scores


@np.errstate(invalid="ignore", over="ignore")  # the core refuses what is not finite
def _spread(scores: npt.NDArray[np.float64], statistic: AlignmentStatistic) -> float:
    if statistic == "std":
        return float(scores.std())
    if statistic == "range":
        low, high = np.percentile(scores, [5, 95])
        return float(high - low)
    return float(scores.mean())
