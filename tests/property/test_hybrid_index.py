"""Properties of HybridIndex over inputs that Hypothesis thinks up."""

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sparing._core", reason="needs the compiled core")
pytest.importorskip("hypothesis", reason="needs sparing[test]")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparing.errors import FormatError, SparingError
from sparing.hybrid import HybridConfig, HybridIndex
from sparing.testing import dense_batches, exact_scores, hybrid_batches, sparse_batches

QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
CONFIGS = st.builds(
    HybridConfig,
    degree=st.integers(4, 12),
    build_beam=st.integers(8, 40),
    dense_code=st.sampled_from(["int4", "int8", "float32"]),
    doc_terms=st.sampled_from([1, 4, 40, None]),
    query_terms=st.sampled_from([1, 5, None]),
    two_stage=st.booleans(),
    similarity=st.sampled_from(["ip", "l2", "cosine"]),
    num_entries=st.integers(1, 8),
    seeds_per_term=st.integers(0, 4),
    seed_terms=st.integers(0, 8),
    scale=st.sampled_from([0.01, 1.0, 30.0, None]),
)


def tolerance(dense, sparse, scale):
    """Rounding of float32 sums grows with the size of the terms, not with that of the result."""
    largest = 0.0 if dense is None else float(np.abs(dense).max(initial=0)) ** 2 * dense.shape[1]
    weights = [abs(w) for row in sparse or [] for w in row.values()]
    return 1e-5 * (largest + scale * max(weights, default=0) ** 2 * 12) + 1e-30


@QUICK
@given(batch=hybrid_batches(), config=CONFIGS, data=st.data())
def test_scores_are_exact_and_answers_are_ordered(batch, config, data):
    dense, sparse = batch
    count = len(sparse) if dense is None else len(dense)
    index = HybridIndex.build(dense, sparse, config=config, num_threads=1)
    weights = data.draw(st.tuples(st.floats(0, 4, width=32), st.floats(0, 4, width=32)))
    k = data.draw(st.integers(1, count + 3))
    truth = exact_scores(dense, sparse, dense, sparse, weights=weights, scale=index.alignment.scale)
    atol = tolerance(dense, sparse, index.alignment.scale) * max(weights)
    for found in (
        index.search(dense, sparse, k=k, weights=weights, beam=count),
        index.search_exact(dense, sparse, k=k, weights=weights),
    ):
        assert found.ids.shape == found.scores.shape == (count, k)
        kept = min(k, count)
        assert ((found.ids >= 0).sum(axis=1) == kept).all()
        assert (found.ids[:, kept:] == -1).all()
        assert (np.diff(found.scores[:, :kept], axis=1) <= 0).all()
        equal = found.scores[:, 1:kept] == found.scores[:, : kept - 1]
        assert (np.diff(found.ids[:, :kept], axis=1)[equal] > 0).all()
        of_ids = np.take_along_axis(truth, found.ids[:, :kept], axis=1)
        np.testing.assert_allclose(found.scores[:, :kept], of_ids, rtol=1e-5, atol=atol + 1e-30)
    np.testing.assert_allclose(found.scores[:, :kept], -np.sort(-truth, axis=1)[:, :kept], rtol=1e-5, atol=atol + 1e-30)


@QUICK
@given(batch=hybrid_batches(), config=CONFIGS)
def test_saving_and_opening_changes_nothing(tmp_path_factory, batch, config):
    folder = tmp_path_factory.mktemp("saved")
    index = HybridIndex.build(*batch, config=config, num_threads=1)
    index.save(folder / "a")
    HybridIndex.verify(folder / "a")
    for mmap in (False, True):
        again = HybridIndex.open(folder / "a", mmap=mmap)
        again.save(folder / "b")
        assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
        first, second = index.search(*batch, k=5), again.search(*batch, k=5)
        np.testing.assert_array_equal(first.ids, second.ids)
        np.testing.assert_array_equal(first.scores, second.scores)
    HybridIndex.build(*batch, config=config, num_threads=3).save(folder / "b")
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


@QUICK
@given(data=st.data(), config=CONFIGS)
def test_changes_follow_a_dictionary(data, config):
    """Any sequence of add, update, delete, compact and reopen: the index holds what a dict would hold."""
    dim = data.draw(st.integers(1, 6))

    def draw(count):
        return data.draw(dense_batches(count=count, dim=dim)), data.draw(sparse_batches(count=count, max_terms=4))

    dense, sparse = draw(data.draw(st.integers(0, 6)))
    index = HybridIndex.build(dense, sparse, config=config, num_threads=1)
    held = {i: (dense[i], sparse[i]) for i in range(len(sparse))}
    for _ in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["add", "update", "delete", "compact"]))
        known = sorted(held)
        if action == "add":
            ids = data.draw(st.lists(st.integers(0, 30).filter(lambda i: i not in held), unique=True, max_size=4))
            dense, sparse = draw(len(ids))
            index.add(dense, sparse, ids=ids, num_threads=1)
            held.update({name: (dense[i], sparse[i]) for i, name in enumerate(ids)})
        elif action == "compact":
            index.compact(num_threads=1)
            assert index.stats.num_deleted == 0
        elif known:
            ids = data.draw(st.lists(st.sampled_from(known), unique=True, max_size=4))
            if action == "delete":
                index.delete(ids)
                for name in ids:
                    del held[name]
            else:
                dense, sparse = draw(len(ids))
                index.update(dense, sparse, ids=ids, num_threads=1)
                held.update({name: (dense[i], sparse[i]) for i, name in enumerate(ids)})
        assert len(index) == len(held)
        assert all((name in index) == (name in held) for name in range(31))
    query_dense, query_sparse = draw(1)
    names = sorted(held)
    for found in (
        index.search(query_dense, query_sparse, k=len(held) + 1, beam=64),
        index.search_exact(query_dense, query_sparse, k=len(held) + 1),
    ):
        assert sorted(found.ids[0][:-1].tolist()) == names
        if names:
            dense, sparse = np.stack([held[i][0] for i in names]), [held[i][1] for i in names]
            scale = index.alignment.scale
            truth = exact_scores(dense, sparse, query_dense, query_sparse, scale=scale)[0]
            expected = truth[np.searchsorted(names, found.ids[0][:-1])]
            atol = tolerance(np.vstack([dense, query_dense]), [*sparse, *query_sparse], scale)
            np.testing.assert_allclose(found.scores[0][:-1], expected, rtol=1e-5, atol=atol)


@QUICK
@given(batch=sparse_batches(count=5, vocabulary=50))
def test_csr_and_dicts_mean_the_same(batch):
    width = 50
    matrix = sp.csr_array(np.array([[row.get(term, 0.0) for term in range(width)] for row in batch], np.float32))
    a, b = HybridIndex.build(None, batch), HybridIndex.build(None, matrix)
    first, second = a.search_exact(None, batch, k=5), b.search_exact(None, matrix, k=5)
    np.testing.assert_allclose(first.scores, second.scores, rtol=1e-5, atol=1e-2)


@QUICK
@given(
    rows=st.lists(
        st.dictionaries(
            st.one_of(st.integers(-2, 2**33), st.floats(), st.text(max_size=1)),
            st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=1)),
            max_size=3,
        ),
        max_size=3,
    )
)
def test_any_dicts_are_taken_or_refused_with_our_own_error(rows):
    try:
        index = HybridIndex.build(None, rows, num_threads=1)
    except SparingError as error:
        assert len(str(error)) > 10  # noqa: PT017
    else:
        assert len(index) == len(rows)
        index.search(None, rows, k=2)


@settings(max_examples=150, deadline=None)
@given(junk=st.binary(max_size=300), keep=st.integers(0, 300), mmap=st.booleans())
def test_any_bytes_are_refused(tmp_path_factory, junk, keep, mmap):
    folder = tmp_path_factory.getbasetemp()
    sound = folder / "sound.sparing"
    if not sound.exists():
        HybridIndex.build(np.eye(3, dtype=np.float32), None).save(sound)
    path = folder / "junk.sparing"
    path.write_bytes(sound.read_bytes()[:keep] + junk)
    with pytest.raises(FormatError):
        HybridIndex.open(path, mmap=mmap)
