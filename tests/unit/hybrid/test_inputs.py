"""Every form of input that is taken, and every one that is refused: class, argument named, what to do."""

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.errors import ArgumentError, ConfigError, DtypeError, NonFiniteError, ShapeError, SparseFormatError
from sparing.hybrid import HybridConfig, HybridIndex
from sparing.hybrid.config import make_config
from sparing.hybrid.inputs import as_ids, as_rows, as_weights, is_single

DENSE = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
SPARSE = [{i: 1.0 + i, 30 + i % 3: 2.0, 100: 0.5} for i in range(20)]


def csr_of(rows, width=200):
    begin = np.cumsum([0, *(len(row) for row in rows)])
    terms = [term for row in rows for term in sorted(row)]
    weights = [row[term] for row in rows for term in sorted(row)]
    return sp.csr_array((np.array(weights, np.float32), np.array(terms), begin), shape=(len(rows), width))


def raw_csr(begin, terms, weights):
    """A CSR matrix whose arrays are set behind the back of SciPy's checks."""
    matrix = sp.csr_array((len(begin) - 1, 1000), dtype=np.float32)
    matrix.indptr, matrix.indices, matrix.data = np.array(begin), np.array(terms), np.array(weights)
    return matrix


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)


@pytest.mark.parametrize(
    "dense",
    [
        DENSE.astype(np.float64),
        np.asfortranarray(DENSE),
        np.repeat(DENSE, 2, axis=0)[::2],
        np.repeat(DENSE, 3, axis=1)[:, ::3],
        DENSE[::-1][::-1],
        DENSE.astype(">f4"),
        DENSE.astype(np.float64).tolist(),
    ],
    ids=["float64", "fortran", "strided rows", "strided columns", "reversed twice", "big-endian", "list"],
)
def test_dense_forms_that_mean_the_same(dense):
    expected = HybridIndex.build(DENSE, SPARSE).search(DENSE[:4], SPARSE[:4])
    same(HybridIndex.build(dense, SPARSE).search(dense[:4], SPARSE[:4]), expected)


def test_float16_is_taken_as_it_is():
    half = DENSE.astype(np.float16)
    same(
        HybridIndex.build(half, None).search(half[:3], weights=(1, 0)),
        HybridIndex.build(half.astype(np.float32), None).search(half[:3].astype(np.float32), weights=(1, 0)),
    )


def test_input_is_copied_and_never_changed():
    dense, sparse = DENSE.copy(), csr_of(SPARSE)
    for array in (dense, sparse.data, sparse.indices, sparse.indptr):
        array.flags.writeable = False
    for metric in ("ip", "cosine"):
        index = HybridIndex.build(dense, sparse, config=HybridConfig(metric=metric))
        index.search(dense, sparse)
    writable = DENSE.copy()
    index = HybridIndex.build(writable, None)
    before = index.search(DENSE[:3], weights=(1, 0))
    writable[:] = 0
    same(index.search(DENSE[:3], weights=(1, 0)), before)


@pytest.mark.parametrize(
    "sparse",
    [
        csr_of(SPARSE),
        sp.csr_matrix(csr_of(SPARSE)),
        csr_of(SPARSE).astype(np.float64),
        csr_of(SPARSE, 2**31 - 2),
        [dict(reversed(row.items())) for row in SPARSE],
        tuple(SPARSE),
        [{np.int64(term): np.float32(weight) for term, weight in row.items()} for row in SPARSE],
    ],
    ids=["array", "matrix", "float64", "wide", "unsorted dicts", "tuple", "numpy keys"],
)
def test_sparse_forms_that_mean_the_same(sparse):
    expected = HybridIndex.build(DENSE, SPARSE).search(DENSE, SPARSE)
    same(HybridIndex.build(DENSE, sparse).search(DENSE, sparse), expected)


def test_integer_weights_and_64_bit_indices():
    matrix = sp.csr_array(np.array([[0, 2, 0], [3, 0, 1]]))
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    index = HybridIndex.build(None, matrix)
    assert index.search(None, {1: 2.0}, k=1, weights=(0, 1)).scores.tolist() == [4.0]


def test_stored_zeros_and_empty_rows_are_harmless():
    index = HybridIndex.build(None, raw_csr([0, 2, 2, 3], [1, 5, 7], [0.0, 2.0, 3.0]))
    found = index.search(None, {1: 1.0, 5: 1.0, 7: 1.0}, k=3, weights=(0, 1))
    assert found.ids.tolist() == [2, 0, 1]
    assert found.scores.tolist() == [3, 2, 0]


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="needs sparing[text]")
    expected = HybridIndex.build(DENSE, SPARSE).search(DENSE[:4], SPARSE[:4])
    tensor = torch.from_numpy(DENSE.copy())
    for given in (tensor, tensor.double(), tensor.clone().requires_grad_(), tensor.t().contiguous().t()):
        same(HybridIndex.build(given, SPARSE).search(given[:4], SPARSE[:4]), expected)
    assert HybridIndex.build(tensor.bfloat16(), None).stats.dim == 8
    assert HybridIndex.build(tensor.half(), None).search(tensor[0], k=2).ids.shape == (2,)
    with pytest.raises(DtypeError, match=r"dense: expected float32.*int64"):
        HybridIndex.build(tensor.long(), None)


REFUSED_DENSE = {
    "integers": (np.ones((20, 8), np.int32), DtypeError, r"dense: expected float32.*got int32.*astype"),
    "booleans": (np.ones((20, 8), bool), DtypeError, r"dense: expected float32.*got bool"),
    "complex": (np.ones((20, 8), complex), DtypeError, r"dense: .*complex128"),
    "strings": (np.full((20, 8), "a"), DtypeError, r"dense: expected float32"),
    "objects": (np.full((20, 8), None), DtypeError, r"dense: .*object"),
    "one axis": (np.ones(8, np.float32), ShapeError, r"dense: expected shape \(n, dim\), got \(8,\)"),
    "three axes": (np.ones((20, 8, 1), np.float32), ShapeError, r"dense: expected shape \(n, dim\)"),
    "a scalar": (np.float32(1), ShapeError, r"dense: expected shape \(n, dim\), got \(\)"),
    "fewer rows": (DENSE[:19], ShapeError, r"sparse: expected 19 rows, one for each row of dense, got 20"),
    "nan": (np.where(np.arange(8) == 3, np.nan, DENSE), NonFiniteError, r"dense .*row 0, column 3 is nan.*finite"),
    "infinity": (np.where(np.arange(8) == 3, np.inf, DENSE), NonFiniteError, r"dense"),
    "minus infinity": (np.where(np.arange(8) == 3, -np.inf, DENSE).astype("f4"), NonFiniteError, r"dense"),
    "float16 infinity": (np.full((20, 8), np.inf, np.float16), NonFiniteError, r"dense"),
    "too large": (
        DENSE.astype(np.float64) * 1e200,
        NonFiniteError,
        r"dense: expected values that fit float32.*rescale",
    ),
    "nan and too large": (np.where(np.arange(8) == 3, np.nan, 1e200) * np.ones((20, 1)), NonFiniteError, r"dense"),
    "ragged": ([[1.0, 2.0], [1.0]], ShapeError, r"dense"),
}


@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("name", REFUSED_DENSE)
def test_refused_dense(name, metric):
    dense, error, message = REFUSED_DENSE[name]
    with pytest.raises(error, match=message):
        HybridIndex.build(dense, SPARSE, config=HybridConfig(metric=metric))


REFUSED_SPARSE = {
    "nan": ([{1: 1.0}, {2: float("nan")}], NonFiniteError, r"sparse .*row 1, term 2 has weight nan"),
    "infinity": ([{1: 1.0}, {2: float("-inf")}], NonFiniteError, r"sparse"),
    "too large": ([{1: 1.0}, {2: 1e200}], NonFiniteError, r"sparse: expected weights that fit float32"),
    "nan in csr": (raw_csr([0, 1, 2], [1, 2], np.float32([1, np.nan])), NonFiniteError, r"sparse .*row 1, term 2"),
    "negative term": ([{1: 1.0}, {-1: 1.0}], SparseFormatError, r"sparse: row 1: expected term ids from 0 .*got -1"),
    "huge term": ([{2**32: 1.0}, {}], SparseFormatError, r"sparse: row 0: .*4294967295, got 4294967296"),
    "negative in csr": (
        raw_csr([0, 1, 2], [1, -2], [1.0, 1.0]),
        SparseFormatError,
        r"sparse: expected term ids.*got -2",
    ),
    "huge in csr": (raw_csr([0, 1, 2], [1, 2**40], [1.0, 1.0]), SparseFormatError, r"sparse: .*got 1099511627776"),
    "unsorted": (raw_csr([0, 0, 2], [5, 2], [1.0, 1.0]), SparseFormatError, r"row 1 is not sorted.*sort_indices"),
    "duplicates": (
        raw_csr([0, 0, 2], [5, 5], [1.0, 1.0]),
        SparseFormatError,
        r"row 1 has term 5 twice.*sum_duplicates",
    ),
    "indptr falls": (raw_csr([0, 2, 1], [5, 6], [1.0, 1.0]), SparseFormatError, r"sparse: indptr"),
    "indptr too long": (raw_csr([0, 1, 9], [5, 6], [1.0, 1.0]), SparseFormatError, r"sparse: indptr"),
    "indptr starts late": (raw_csr([1, 1, 2], [5, 6], [1.0, 1.0]), SparseFormatError, r"sparse: indptr"),
    "data too short": (raw_csr([0, 1, 2], [5, 6], [1.0]), SparseFormatError, r"sparse: indptr"),
    "coo": (csr_of(SPARSE[:2]).tocoo(), DtypeError, r"sparse: expected CSR, got COO.*tocsr"),
    "csc": (csr_of(SPARSE[:2]).tocsc(), DtypeError, r"sparse: expected CSR, got CSC"),
    "dense array": (np.ones((2, 3)), DtypeError, r"sparse: expected a SciPy CSR matrix or a list .*got ndarray"),
    "text": ("abc", DtypeError, r"sparse: .*got str"),
    "a set": ({1, 2}, DtypeError, r"sparse: .*got set"),
    "pairs": ([[(1, 1.0)], []], DtypeError, r"sparse: .*got list"),
    "float term": ([{1.0: 1.0}, {}], DtypeError, r"sparse: row 0: expected int term ids, got 1.0 \(float\)"),
    "text term": ([{"a": 1.0}, {}], DtypeError, r"sparse: row 0: expected int term ids, got 'a' \(str\)"),
    "bool term": ([{True: 1.0}, {}], DtypeError, r"sparse: row 0: expected int term ids"),
    "text weight": ([{1: "a"}, {}], DtypeError, r"sparse: expected numbers as weights"),
    "list weight": ([{1: [1.0, 2.0]}, {}], DtypeError, r"sparse: expected numbers as weights"),
    "complex": (csr_of(SPARSE[:2]).astype(complex), DtypeError, r"sparse: expected real weights, got complex128"),
    "booleans": (csr_of(SPARSE[:2]).astype(bool), DtypeError, r"sparse: expected real weights, got bool"),
    "more rows": (SPARSE[:3], ShapeError, r"sparse: expected 2 rows, one for each row of dense, got 3"),
}


@pytest.mark.parametrize("name", REFUSED_SPARSE)
def test_refused_sparse(name):
    sparse, error, message = REFUSED_SPARSE[name]
    with pytest.raises(error, match=message):
        HybridIndex.build(DENSE[:2], sparse)


def test_no_vectors_at_all():
    with pytest.raises(ArgumentError, match=r"dense, sparse: expected at least one"):
        HybridIndex.build(None, None)
    with pytest.raises(ArgumentError, match=r"dense, sparse: expected at least one"):
        HybridIndex.build(DENSE, None).search()


REFUSED_IDS = {
    "floats": ([0.0, 1.0], DtypeError, r"ids: expected integer ids, got float64"),
    "text": (["a", "b"], DtypeError, r"ids: expected integer ids"),
    "booleans": ([True, False], DtypeError, r"ids: expected integer ids, got bool"),
    "three": ([1, 2, 3], ShapeError, r"ids: expected shape \(2,\), got \(3,\)"),
    "two axes": ([[1, 2]], ShapeError, r"ids: expected shape \(2,\), got \(1, 2\)"),
    "negative": ([1, -1], ArgumentError, r"ids\[1\] is -1; ids must be >= 0"),
    "beyond int64": (np.array([1, 2**63], np.uint64), ArgumentError, r"ids: expected ids below 2\*\*63"),
    "beyond uint64": ([1, 2**64], DtypeError, r"ids: expected integer ids"),
}


@pytest.mark.parametrize("name", REFUSED_IDS)
def test_refused_ids(name):
    ids, error, message = REFUSED_IDS[name]
    with pytest.raises(error, match=message):
        HybridIndex.build(DENSE[:2], None, ids=ids)


REFUSED_SEARCHES = {
    "dimension": ({"dense_q": DENSE[0, :7]}, ShapeError, r"dense: this index expects vectors with 8 dimensions, got 7"),
    "dimension of a batch": ({"dense_q": DENSE[:3, :7]}, ShapeError, r"8 dimensions, got 7"),
    "rows": ({"dense_q": DENSE[:3], "sparse_q": SPARSE[:2]}, ShapeError, r"sparse: expected 3 rows"),
    "rows of one": ({"dense_q": DENSE[0], "sparse_q": SPARSE[:2]}, ShapeError, r"one row for one query, got 2"),
    "nan": ({"dense_q": DENSE[0] * np.float32("nan")}, NonFiniteError, r"dense query row 0, column 0 is nan"),
    "nan in sparse": ({"sparse_q": {3: float("nan")}}, NonFiniteError, r"sparse query row 0, term 3"),
    "unsorted": ({"sparse_q": raw_csr([0, 2], [5, 2], [1.0, 1.0])}, SparseFormatError, r"query row 0 is not sorted"),
    "k 0": ({"dense_q": DENSE[0], "k": 0}, ArgumentError, r"k: expected 1 or more.*got 0"),
    "k text": ({"dense_q": DENSE[0], "k": "3"}, DtypeError, r"k: expected an int, got '3' \(str\)"),
    "k float": ({"dense_q": DENSE[0], "k": 3.0}, DtypeError, r"k: expected an int"),
    "k True": ({"dense_q": DENSE[0], "k": True}, DtypeError, r"k: expected an int"),
    "k huge": ({"dense_q": DENSE[0], "k": 2**40}, ArgumentError, r"k: expected"),
    "k times queries": ({"dense_q": np.tile(DENSE, (20, 1)), "k": 2**24}, ArgumentError, r"k: .*smaller batches"),
    "beam 0": ({"dense_q": DENSE[0], "beam": 0}, ArgumentError, r"beam: expected 1 or more"),
    "beam float": ({"dense_q": DENSE[0], "beam": 1.5}, DtypeError, r"beam: expected an int"),
    "threads": ({"dense_q": DENSE[0], "num_threads": -1}, ArgumentError, r"num_threads: expected 0 or more"),
    "absurd threads": ({"dense_q": DENSE[0], "num_threads": 2**31}, ArgumentError, r"num_threads: expected"),
    "one weight": ({"dense_q": DENSE[0], "weights": (1.0,)}, ShapeError, r"weights: expected a pair"),
    "weights of rows": ({"dense_q": DENSE[:3], "weights": np.ones((2, 2))}, ShapeError, r"weights: .*\(3, 2\)"),
    "negative weight": ({"dense_q": DENSE[0], "weights": (1, -1)}, ArgumentError, r"weights: expected numbers >= 0"),
    "nan weight": ({"dense_q": DENSE[0], "weights": (1, float("nan"))}, NonFiniteError, r"weights: expected finite"),
    "text weight": ({"dense_q": DENSE[0], "weights": ("a", "b")}, DtypeError, r"weights: expected"),
    "large weight": ({"dense_q": DENSE[0], "weights": (1e200, 1)}, NonFiniteError, r"weights: expected finite"),
    "filter floats": ({"dense_q": DENSE[0], "filter": [1.0]}, DtypeError, r"filter: expected integer ids"),
    "filter axes": ({"dense_q": DENSE[0], "filter": [[1]]}, ShapeError, r"filter: expected shape \(n,\)"),
    "filter scalar": ({"dense_q": DENSE[0], "filter": 3}, ShapeError, r"filter: expected shape"),
}


@pytest.mark.parametrize("method", ["search", "search_exact"])
@pytest.mark.parametrize("name", REFUSED_SEARCHES)
def test_refused_searches(name, method):
    arguments, error, message = REFUSED_SEARCHES[name]
    if method == "search_exact" and "beam" in arguments:
        pytest.skip("no beam")
    with pytest.raises(error, match=message):
        getattr(HybridIndex.build(DENSE, SPARSE), method)(**arguments)


def test_is_single():
    assert is_single(DENSE[0], None)
    assert is_single(None, {1: 1.0})
    assert is_single([1.0, 2.0], [{}])
    assert not is_single(DENSE, None)
    assert not is_single(None, [{1: 1.0}])
    assert not is_single(DENSE, {1: 1.0})


def test_rows_are_what_the_core_reads():
    rows = as_rows(DENSE.astype(np.float64), csr_of(SPARSE), dim=8)
    assert (rows.count, rows.dense.dtype, rows.dense.flags.c_contiguous) == (20, np.float32, True)
    assert (rows.row_begin.dtype, rows.terms.dtype, rows.values.dtype) == (np.uint64, np.uint32, np.float32)
    np.testing.assert_array_equal(rows.dense, DENSE)


def test_ids_and_weights():
    for ids in ([3, 1], (3, 1), np.array([3, 1], np.uint8), np.array([3, 9, 1])[::2]):
        found = as_ids(ids, 2)
        assert found.dtype == np.int64
        assert found.flags.c_contiguous
        assert found.tolist() == [3, 1]
    assert as_ids([], 0).dtype == np.int64
    assert as_weights((1, 2), 3).tolist() == [[1, 2]] * 3
    assert as_weights([[1, 2], [3, 4]], 2).tolist() == [[1, 2], [3, 4]]


def test_a_sparse_array_of_one_axis_is_one_query():
    rows = sp.csr_array(np.eye(5, 9, dtype=np.float32))
    index = HybridIndex.build(None, rows)
    expected = index.search(None, {2: 1.0}, k=2)
    for query in (rows[2], rows[2].tocsr()):
        found = index.search(None, query, k=2)
        assert found.ids.shape == (2,)
        assert found.ids.tolist() == expected.ids.tolist()
    assert index.search(None, rows[[2]], k=2).ids.shape == (1, 2)
    assert HybridIndex.build(np.eye(5, dtype=np.float32), rows).search(DENSE[0, :5], rows[2]).ids.shape == (10,)


@pytest.mark.parametrize("text", ["2.0", b"2.0"])
def test_weights_are_no_text(text):
    with pytest.raises(DtypeError, match="expected numbers as weights"):
        HybridIndex.build(None, [{1: text}])


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"scale": 1e39}, "scale"),
        ({"scale": 1e-60}, "scale"),
        ({"weights": (0, 0)}, "weights"),
        ({"weights": (1e-60, 0)}, "weights"),
        ({"weights": (1e39, 1)}, "weights"),
    ],
)
def test_factors_that_float32_does_not_hold(fields, word):
    with pytest.raises(ConfigError, match=word):
        make_config(fields)


def test_weights_that_would_overflow():
    with pytest.raises(ArgumentError, match=r"weights: expected numbers up to 1e\+30"):
        HybridIndex.build(DENSE, None).search(DENSE[0], weights=(3e38, 0))
