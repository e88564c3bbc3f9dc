"""Windows: masks pair by pair in whole numbers, and counts."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings
from hypothesis import strategies as st

from sparing.errors import ArgumentError, ShapeError
from sparing.var.config import PATCH_NUMS_256, PATCH_NUMS_512, PATCH_NUMS_1024
from sparing.var.windows import (
    DENSE,
    DROPPED,
    band,
    first_windowed,
    kept_pairs,
    scale_mask,
)

SIX = (1, 2, 3, 4, 6, 8)


def explicit_band(num_queries, num_keys, width):
    """|i·N_k/N_q − j| < w for every pair, in whole numbers."""

    def kept(i, j):
        return width == DENSE or abs(i * num_keys - j * num_queries) < width * num_queries

    return np.array([[kept(i, j) for j in range(num_keys)] for i in range(num_queries)])


@st.composite
def scales(draw):
    patch_nums = tuple(sorted(draw(st.sets(st.integers(1, 14), min_size=1, max_size=7))))
    scale = draw(st.integers(0, len(patch_nums) - 1))
    heads = draw(st.integers(1, 3))
    count = (scale + 1 - first_windowed(scale)) * heads
    widths = draw(st.lists(st.sampled_from([DENSE, DROPPED, 1, 2, 3, 7, 40, 500]), min_size=count, max_size=count))
    return patch_nums, scale, np.array(widths, dtype=np.int64).reshape(-1, heads)


def test_newest_segments_are_windowed():
    assert [q + 1 - first_windowed(q) for q in range(10)] == [0, 0, 0, 2, 3, 3, 4, 5, 6, 7]
    assert sum(p * p for p in PATCH_NUMS_256[: first_windowed(9)]) == 14


def test_a_window_by_hand():
    # Two keys a query: centres 0, 2, 4.
    assert band(3, 6, 2).astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    # Two queries a key: centres 0, 1/2, 1, 3/2.
    assert band(4, 2, 1).astype(int).tolist() == [[1, 0], [1, 1], [0, 1], [0, 1]]


@pytest.mark.parametrize("schedule", [PATCH_NUMS_256, SIX])
def test_bands_pair_by_pair(schedule):
    sizes = [p * p for p in schedule if p <= 10]
    for q, num_queries in enumerate(sizes):
        for num_keys in sizes[: q + 1]:
            for width in (DENSE, DROPPED, 1, 2, 5, 16, num_keys):
                assert np.array_equal(band(num_queries, num_keys, width), explicit_band(num_queries, num_keys, width))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 2000), st.data())
def test_a_pair_at_the_very_edge_of_a_window_is_outside(num_queries, num_keys, width, data):
    i = data.draw(st.integers(0, num_queries - 1))
    row = band(num_queries, num_keys, width)[i]
    j = np.arange(num_keys)
    assert np.array_equal(row, np.abs(i * num_keys - j * num_queries) < width * num_queries)


@settings(max_examples=60, deadline=None)
@given(scales())
def test_masks_and_counts(case):
    patch_nums, scale, widths = case
    sizes, first = [p * p for p in patch_nums], first_windowed(scale)
    expected = []
    for head in range(widths.shape[1]):
        given_widths = [DENSE] * min(first, scale + 1) + widths[:, head].tolist()
        parts = [explicit_band(sizes[scale], sizes[k], w) for k, w in enumerate(given_widths)]
        expected.append(np.concatenate(parts, 1))
    mask = scale_mask(patch_nums, scale, widths)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, np.array(expected))
    assert kept_pairs(patch_nums, scale, widths).tolist() == [m.sum() for m in expected]
    assert mask.any(2).all(), "a query that sees nothing"


@pytest.mark.parametrize("schedule", [PATCH_NUMS_512, PATCH_NUMS_1024])
def test_counts_of_long_schedules(schedule):
    scale = len(schedule) - 1
    segments = scale + 1 - first_windowed(scale)
    widths = np.array([[1 + 3 * n, DENSE if n % 2 else DROPPED] for n in range(segments)])
    num_queries, expected = schedule[scale] ** 2, np.zeros(2, dtype=np.int64)
    for segment, p in enumerate(schedule):
        distance = np.abs(np.arange(num_queries)[:, None] * (p * p) - np.arange(p * p) * num_queries)
        for head in range(2):
            w = DENSE if segment < first_windowed(scale) else widths[segment - first_windowed(scale), head]
            expected[head] += distance.size if w == DENSE else (distance < w * num_queries).sum()
    assert kept_pairs(schedule, scale, widths).tolist() == expected.tolist()


def test_all_pairs():
    assert [kept_pairs(SIX, scale, None).tolist() for scale in range(3)] == [[1], [4 * 5], [9 * 14]]


@pytest.mark.parametrize(("schedule", "percent"), [(SIX, 88.5), (PATCH_NUMS_256, 96.8)])
def test_most_that_windows_can_remove(schedule, percent):
    kept = total = 0
    for scale in range(len(schedule)):
        nothing = np.full((scale + 1 - first_windowed(scale), 1), DROPPED)
        kept += kept_pairs(schedule, scale, nothing)[0]
        total += kept_pairs(schedule, scale, None)[0]
    assert total == sum(p * p * sum(n * n for n in schedule[: s + 1]) for s, p in enumerate(schedule))
    assert 100 * (1 - kept / total) == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize(
    ("widths", "error", "words"),
    [
        (np.zeros((3, 2), np.int64), ShapeError, r"expected \(2, heads\) for scale 3"),
        (np.zeros(2, np.int64), ShapeError, "heads"),
        (np.full((2, 2), -2), ArgumentError, "-1 .dense., 0 .dropped. or more, got -2"),
    ],
)
def test_bad_widths(widths, error, words):
    for function in (scale_mask, kept_pairs):
        with pytest.raises(error, match=words):
            function(SIX, 3, widths)
