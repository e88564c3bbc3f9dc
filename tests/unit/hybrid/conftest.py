"""Data and indexes that several files read; none of them changes these."""

import pytest


@pytest.fixture(scope="session")
def clustered():
    """3,000 items in topics, 100 queries."""
    from sparing.testing import make_clustered

    return make_clustered(3000, seed=1)


@pytest.fixture(scope="session")
def clustered_index(clustered):
    """The default index over them, ids 0 to 2,999. Never change it."""
    pytest.importorskip("sparing._core", reason="needs the compiled core")
    from sparing.hybrid import HybridIndex

    return HybridIndex.build(clustered.dense, clustered.sparse)


@pytest.fixture(scope="session")
def small():
    """300 items of 24 dimensions, 20 queries."""
    from sparing.testing import make_clustered

    return make_clustered(300, dim=24, vocabulary=500, terms=15, query_terms=6, topics=12, queries=20, seed=2)


# Defects that are known and not mended yet: part of a test's name -> what is wrong. Remove a line with its defect.
KNOWN = {
    "test_cosine_of_extreme_lengths": "norms are taken in float32",
    "test_what_is_no_id_is_not_in_the_index[1": "int() accepts what is no id",
    "test_what_is_no_id_is_not_in_the_index[a]": "int() raises",
    "test_what_is_no_id_is_not_in_the_index[None]": "int() raises",
    "test_refused_dense[infinity": "NumPy warns before the core refuses",
    "test_refused_dense[minus infinity": "NumPy warns before the core refuses",
    "test_refused_dense[float16 infinity": "NumPy warns before the core refuses",
    "test_refused_dense[nan and too large": "NumPy warns in the cast",
    "test_refused_dense[ragged": "NumPy's error comes through",
    "test_refused_sparse[list weight": "the binding's error comes through",
    "test_refused_searches[absurd threads": "the binding's error comes through",
    "test_refused_searches[text weight": "NumPy's error comes through",
    "test_refused_searches[large weight": "NumPy warns in the cast",
    "test_an_add_that_stops_half_way_changes_nothing": "appended rows stay as deleted ones",
    "test_a_refused_first_add_does_not_align": "the alignment is measured before the core checks",
    "test_absurd_thread_counts[2147483648]": "the binding's error comes through",
    "test_absurd_thread_counts[1099511627776]": "the binding's error comes through",
    "test_values_whose_scores_overflow_are_refused": "finite values may score NaN",
    "test_a_mapped_index_is_read_only[empty]": "an empty mapped index takes items",
    "test_forged_files_are_refused[entry that is a gap]": "read out of bounds",
    "test_forged_files_are_refused[negative id]": "accepted",
    "test_forged_files_are_refused[very negative id]": "accepted",
    "test_forged_files_are_refused[dtype of": "converted into a temporary that a mapped index outlives",
    "test_forged_files_are_refused[no items but dim": "a search allocates gigabytes",
    "test_forged_files_are_refused[scale": "accepted",
    "test_forged_files_are_refused[pairs of text]": "accepted",
    "test_saving_a_tiny_index_while_it_grows": "the counts of a half-grown index do not fit each other",
}
SOUND = ("[scale of text]",)


def pytest_collection_modifyitems(items):
    for item in items:
        for name, defect in KNOWN.items():
            if f"::{name}" in item.nodeid and not item.nodeid.endswith(SOUND):
                item.add_marker(pytest.mark.xfail(reason=defect))
