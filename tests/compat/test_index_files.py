"""Index files of every released format version open, verify and answer as on the day they were written."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.hybrid import HybridIndex
from sparing.runs import read_artifact, write_artifact

FOLDER = Path(__file__).parent
VERSIONS = [1, 2, 3]
WEIGHTS = [(0.5, 0.5), (1.0, 0.0), (0.2, 0.8)]


@pytest.fixture(params=VERSIONS, ids=lambda version: f"v{version}")
def written(request):
    with np.load(FOLDER / f"index-v{request.param}.npz") as file:
        return FOLDER / f"index-v{request.param}.sparing", dict(file)


def queries_of(answers):
    parts = answers["query_weights"], answers["query_terms"], answers["query_begin"]
    return answers["dense_queries"], sp.csr_array(parts, shape=(len(answers["dense_queries"]), 300))


@pytest.mark.parametrize("mmap", [False, True])
def test_it_answers_as_it_did(written, mmap):
    path, answers = written
    HybridIndex.verify(path)
    index = HybridIndex.open(path, mmap=mmap)
    assert len(index) == 147
    assert index.stats.num_deleted == 3
    assert 5 not in index
    assert 27 in index
    assert index.alignment.scale == pytest.approx(float(answers["scale"]), rel=1e-6)
    queries = queries_of(answers)
    for number, weights in enumerate(WEIGHTS):
        for found in (
            index.search_exact(*queries, k=10, weights=weights),
            index.search(*queries, k=10, weights=weights, beam=147),
        ):
            np.testing.assert_allclose(found.scores, answers[f"scores_{number}"], rtol=1e-5, atol=1e-6)
            # Other instruction sets round differently: ids may change places only where scores are equal.
            near_ties = np.abs(np.diff(found.scores, axis=1)).min() < 1e-5
            if not near_ties:
                np.testing.assert_array_equal(found.ids, answers[f"ids_{number}"])


def test_it_can_be_changed_and_saved(written, tmp_path):
    path, answers = written
    index = HybridIndex.open(path)
    dense, sparse = queries_of(answers)
    index.add(dense, sparse, ids=np.arange(9000, 9008))
    index.delete([27])
    index.compact()
    index.save(tmp_path / "changed")
    again = HybridIndex.open(tmp_path / "changed")
    assert len(again) == 154
    assert (again.search(dense, None, k=1, weights=(1, 0)).ids[:, 0] >= 0).all()


def test_it_is_small():
    for version in VERSIONS:
        assert (FOLDER / f"index-v{version}.sparing").stat().st_size < 100_000


@pytest.mark.parametrize(("name", "number"), [("dense", np.nan), ("values", np.inf), ("values", np.nan)])
@pytest.mark.parametrize("mmap", [False, True])
def test_records_made_anew_from_bad_numbers_do_no_harm(tmp_path, name, number, mmap):
    stored = read_artifact(FOLDER / "index-v1.sparing", schema="sparing.hybrid.index", versions={1})
    arrays = {key: array.copy() for key, array in stored.arrays.items()}
    arrays[name][:] = number
    write_artifact(tmp_path / "bad", schema="sparing.hybrid.index", version=1, arrays=arrays, meta=stored.meta)
    index = HybridIndex.open(tmp_path / "bad", mmap=mmap)
    assert index.search(np.ones(20, np.float32), {1: 1.0}, k=5).ids.shape == (5,)
