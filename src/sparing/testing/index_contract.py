"""What any hybrid index must do: a suite that pytest runs on every subclass.

The index has `search`, `search_exact`, `add`, `delete`, `update`, `compact`, `len()` and `alignment.scale`, as
`sparing.hybrid.HybridIndex`. A failed expectation raises AssertionError; pytest itself is not needed.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sparing.errors import DuplicateIdError, NonFiniteError, ShapeError, UnknownIdError
from sparing.testing.data import HybridData, make_clustered
from sparing.testing.oracle import exact_scores, recall, top_ids

__all__ = ["HybridIndexContract"]

K = 10
WEIGHTS = [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25)]


def _expect(holds: object, message: str) -> None:
    if not holds:
        raise AssertionError(message)


class HybridIndexContract:
    """Subclass it in a test module and give `build`; the class's name must start with Test.

    Attributes:
        min_recall: recall@10 that `search` must reach at weights .25 to .75 with its default beam.
        count: items in the data of the suite.
    """

    min_recall = 0.95
    count = 600

    def build(self, dense: Any, sparse: Any, *, ids: npt.NDArray[np.int64]) -> Any:
        """Makes the index under test; `dense` or `sparse` may be None."""
        raise NotImplementedError("HybridIndexContract: expected a subclass that defines build(dense, sparse, *, ids)")

    def test_exact_search_agrees_with_numpy(self) -> None:
        """Scores within 1e-5 relative, ids best first."""
        data, ids, index = self._made()
        for weights in [*WEIGHTS, (1.0, 0.0), (0.0, 1.0)]:
            self._check_exact(index, data, ids, weights)

    def test_scores_of_a_search_are_exact(self) -> None:
        """Every answer carries the full-precision score of its id, best first, without repeats."""
        data, ids, index = self._made()
        truth = self._truth(index, data, (0.5, 0.5))
        found = index.search(data.dense_queries, data.sparse_queries, k=K)
        column = {int(name): i for i, name in enumerate(ids)}
        for row in range(len(found.ids)):
            answers = found.ids[row].tolist()
            _expect(len(set(answers)) == K, f"query {row}: an id is answered twice: {answers}")
            expected = truth[row, [column[name] for name in answers]]
            np.testing.assert_allclose(found.scores[row], expected, rtol=1e-5, atol=1e-5)
        _expect((np.diff(found.scores, axis=1) <= 0).all(), "scores do not fall")

    def test_recall(self) -> None:
        """One graph serves all weights."""
        data, ids, index = self._made()
        for weights in WEIGHTS:
            wanted = top_ids(self._truth(index, data, weights), ids, K)
            found = index.search(data.dense_queries, data.sparse_queries, k=K, weights=weights)
            share = recall(found.ids, wanted)
            _expect(share >= self.min_recall, f"recall {share:.3f} at weights {weights}, expected {self.min_recall}")

    def test_weights_of_each_query(self) -> None:
        """An (n, 2) array gives each query what a pair of its own gives."""
        data, _, index = self._made()
        rows = len(data.dense_queries)
        weights = np.random.default_rng(1).random((rows, 2))
        together = index.search(data.dense_queries, data.sparse_queries, k=K, weights=weights)
        for row in range(0, rows, 7):
            alone = index.search(
                data.dense_queries[row : row + 1], data.sparse_queries[row : row + 1], k=K, weights=weights[row]
            )
            np.testing.assert_array_equal(alone.ids[0], together.ids[row])
            np.testing.assert_array_equal(alone.scores[0], together.scores[row])

    def test_ties_are_ordered_by_id(self) -> None:
        """Equal scores: the smaller id first."""
        ids = np.array([50, 7, 31, 2, 19], dtype=np.int64)
        index = self.build(np.ones((5, 4), np.float32), [{3: 1.0}] * 5, ids=ids)
        for search in (index.search, index.search_exact):
            found = search(np.ones((1, 4), np.float32), [{3: 1.0}], k=5)
            np.testing.assert_array_equal(found.ids[0], np.sort(ids))

    def test_too_few_answers_are_padded(self) -> None:
        """Id -1 and score -inf where there is nothing more to answer."""
        index = self.build(np.eye(3, 4, dtype=np.float32), [{0: 1.0}] * 3, ids=np.arange(3))
        for search in (index.search, index.search_exact):
            found = search(np.ones((2, 4), np.float32), [{0: 1.0}] * 2, k=5)
            _expect(found.ids.shape == (2, 5) and found.scores.shape == (2, 5), f"shape {found.ids.shape}")
            _expect((found.ids[:, 3:] == -1).all() and (found.ids[:, :3] >= 0).all(), f"padding: {found.ids}")
            _expect(np.isneginf(found.scores[:, 3:]).all(), f"padding: {found.scores}")

    def test_filters_of_any_selectivity(self) -> None:
        """K allowed items that exist are k answers, all of them allowed; recall holds."""
        data, ids, index = self._made()
        truth = self._truth(index, data, (0.5, 0.5))
        generator = np.random.default_rng(2)
        for share in (0.002, 0.02, 0.1, 0.5, 0.9, 1.0):
            some = np.sort(generator.choice(len(ids), max(1, round(share * len(ids))), replace=False))
            allowed = np.concatenate([ids[some], [10**9]])  # an unknown id is ignored
            found = index.search(data.dense_queries, data.sparse_queries, k=K, filter=allowed)
            wanted = top_ids(truth[:, some], ids[some], K)
            _expect(np.isin(found.ids[found.ids >= 0], ids[some]).all(), f"share {share}: an id outside the filter")
            np.testing.assert_array_equal((found.ids >= 0).sum(axis=1), np.full(len(found.ids), min(K, len(some))))
            _expect(recall(found.ids, wanted) >= self.min_recall, f"share {share}: {recall(found.ids, wanted):.3f}")
            exact = index.search_exact(data.dense_queries, data.sparse_queries, k=K, filter=allowed)
            _expect(recall(exact.ids, wanted) > 0.999, f"share {share}: search_exact {recall(exact.ids, wanted):.3f}")

    def test_deleted_items_are_never_answered(self) -> None:
        """Neither before nor after compact; the rest is found as before."""
        data, ids, index = self._made()
        gone = np.random.default_rng(3).choice(ids, len(ids) // 3, replace=False)
        kept = ~np.isin(ids, gone)
        truth = self._truth(index, data, (0.5, 0.5))[:, kept]
        index.delete(gone)
        self._check_answers(index, data, truth, ids[kept])
        index.compact()
        self._check_answers(index, data, truth, ids[kept])

    def test_updated_items_are_found_by_their_new_vectors_only(self) -> None:
        """As if the items had been built so."""
        data, ids, index = self._made()
        moved = np.arange(0, len(ids), 4)
        dense, sparse = data.dense.copy(), data.sparse.tolil()
        dense[moved] = data.dense[moved[::-1]]
        for to, source in zip(moved, moved[::-1], strict=True):
            sparse[[to], :] = data.sparse[[source], :]
        index.update(dense[moved], sparse.tocsr()[moved], ids=ids[moved])
        changed = HybridData(dense, sparse.tocsr(), data.dense_queries, data.sparse_queries)
        truth = self._truth(index, changed, (0.5, 0.5))
        self._check_answers(index, changed, truth, ids)
        index.compact()
        self._check_answers(index, changed, truth, ids)

    def test_added_items_are_found(self) -> None:
        """Half built, half added in three calls: the same items as at once."""
        data = self._data()
        ids = self._ids(len(data.dense))
        cuts = [0, len(ids) // 2, len(ids) // 2 + 1, len(ids) * 3 // 4, len(ids)]
        index = self.build(data.dense[: cuts[1]], data.sparse[: cuts[1]], ids=ids[: cuts[1]])
        for begin, end in pairwise(cuts[1:]):
            index.add(data.dense[begin:end], data.sparse[begin:end], ids=ids[begin:end])
        self._check_answers(index, data, self._truth(index, data, (0.5, 0.5)), ids)

    def test_a_refused_change_changes_nothing(self) -> None:
        """Duplicate and unknown ids, NaN and another dimension raise; answers and length stay."""
        data, ids, index = self._made()
        before = index.search(data.dense_queries, data.sparse_queries, k=K)
        bad = data.dense[:3].copy()
        bad[2, 1] = np.nan
        fresh = np.array([901, 902, 903])
        attempts: list[tuple[type[Exception], Any]] = [
            (DuplicateIdError, lambda: index.add(data.dense[:3], data.sparse[:3], ids=[901, 902, int(ids[0])])),
            (DuplicateIdError, lambda: index.add(data.dense[:3], data.sparse[:3], ids=[901, 902, 901])),
            (NonFiniteError, lambda: index.add(bad, data.sparse[:3], ids=fresh)),
            (NonFiniteError, lambda: index.update(bad, data.sparse[:3], ids=ids[:3])),
            (
                UnknownIdError,
                lambda: index.update(data.dense[:3], data.sparse[:3], ids=[int(ids[0]), int(ids[1]), 901]),
            ),
            (UnknownIdError, lambda: index.delete([int(ids[0]), 901])),
            (ShapeError, lambda: index.add(data.dense[:3, :-1], data.sparse[:3], ids=fresh)),
            (ShapeError, lambda: index.add(data.dense[:3], data.sparse[:2], ids=fresh)),
        ]
        for number, (expected, attempt) in enumerate(attempts):
            try:
                attempt()
            except expected:
                pass
            else:
                raise AssertionError(f"attempt {number}: expected {expected.__name__}")
            _expect(len(index) == len(ids), f"attempt {number}: {len(index)} items, expected {len(ids)}")
        after = index.search(data.dense_queries, data.sparse_queries, k=K)
        np.testing.assert_array_equal(before.ids, after.ids)
        np.testing.assert_array_equal(before.scores, after.scores)

    def test_one_part_alone(self) -> None:
        """Indexes without a dense or without a sparse part, and queries without one."""
        data = self._data()
        ids = self._ids(len(data.dense))
        for dense, sparse in ((data.dense, None), (None, data.sparse)):
            index = self.build(dense, sparse, ids=ids)
            dense_q = None if dense is None else data.dense_queries
            sparse_q = None if sparse is None else data.sparse_queries
            wanted = top_ids(exact_scores(dense, sparse, dense_q, sparse_q), ids, K)
            share = recall(index.search(dense_q, sparse_q, k=K).ids, wanted)
            _expect(share >= self.min_recall, f"recall {share:.3f} of an index with one part")
        both = self.build(data.dense, data.sparse, ids=ids)
        for dense_q, sparse_q in ((data.dense_queries, None), (None, data.sparse_queries)):
            wanted = top_ids(exact_scores(data.dense, data.sparse, dense_q, sparse_q), ids, K)
            share = recall(both.search_exact(dense_q, sparse_q, k=K).ids, wanted)
            _expect(share > 0.999, f"search_exact with one part: {share:.3f}")

    def test_an_empty_index(self) -> None:
        """It answers with padding, and takes items."""
        data = self._data()
        index = self.build(data.dense[:0], data.sparse[:0], ids=np.empty(0, np.int64))
        found = index.search(data.dense_queries[:2], data.sparse_queries[:2], k=3)
        _expect((found.ids == -1).all() and len(index) == 0, f"an empty index answered {found.ids}")
        ids = self._ids(len(data.dense))
        index.add(data.dense, data.sparse, ids=ids)
        self._check_answers(index, data, self._truth(index, data, (0.5, 0.5)), ids)

    def _data(self) -> HybridData:
        return make_clustered(self.count, dim=32, vocabulary=2000, terms=30, topics=20, queries=40, seed=7)

    @staticmethod
    def _ids(count: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng(4).permutation(np.arange(count, dtype=np.int64) * 3 + 1000)

    def _made(self) -> tuple[HybridData, npt.NDArray[np.int64], Any]:
        data = self._data()
        ids = self._ids(len(data.dense))
        return data, ids, self.build(data.dense, data.sparse, ids=ids)

    @staticmethod
    def _truth(index: Any, data: HybridData, weights: tuple[float, float]) -> npt.NDArray[np.float64]:
        scale = index.alignment.scale
        return exact_scores(
            data.dense, data.sparse, data.dense_queries, data.sparse_queries, weights=weights, scale=scale
        )

    def _check_exact(self, index: Any, data: HybridData, ids: npt.NDArray[np.int64], weights: Any) -> None:
        truth = self._truth(index, data, weights)
        found = index.search_exact(data.dense_queries, data.sparse_queries, k=K, weights=weights)
        np.testing.assert_allclose(found.scores, -np.sort(-truth, axis=1)[:, :K], rtol=1e-5, atol=1e-5)
        share = recall(found.ids, top_ids(truth, ids, K))
        _expect(share > 0.995, f"search_exact finds {share:.4f} of the best at weights {weights}")

    def _check_answers(
        self, index: Any, data: HybridData, truth: npt.NDArray[np.float64], ids: npt.NDArray[np.int64]
    ) -> None:
        _expect(len(index) == len(ids), f"{len(index)} items, expected {len(ids)}")
        found = index.search(data.dense_queries, data.sparse_queries, k=K)
        wanted = top_ids(truth, ids, K)
        _expect(np.isin(found.ids, ids).all(), "an id that is not there is answered")
        share = recall(found.ids, wanted)
        _expect(share >= self.min_recall, f"recall {share:.3f}, expected {self.min_recall}")
        exact = index.search_exact(data.dense_queries, data.sparse_queries, k=K)
        _expect(recall(exact.ids, wanted) > 0.995, f"search_exact {recall(exact.ids, wanted):.4f}")
