"""Windows: masks pair by pair in whole numbers, counts, and the search by trying every width."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError, ShapeError  # noqa: E402
from sparing.var.config import PATCH_NUMS_256, PATCH_NUMS_512, PATCH_NUMS_1024  # noqa: E402
from sparing.var.windows import (  # noqa: E402
    DENSE,
    DROPPED,
    WindowSearch,
    band,
    first_windowed,
    kept_pairs,
    scale_mask,
    search_windows,
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


# --- the search


def random_attention(seed, *, heads=3, scale=4, sharpness=3.0):
    sizes = [p * p for p in SIX[: scale + 1]]
    logits = sharpness * np.random.default_rng(seed).standard_normal((heads, sizes[-1], sum(sizes)))
    for k, num_keys in enumerate(sizes):
        # Nearer keys get more, in some heads.
        near = np.abs(np.arange(sizes[-1])[:, None] * num_keys / sizes[-1] - np.arange(num_keys))
        logits[:, :, sum(sizes[:k]) : sum(sizes[: k + 1])] -= np.arange(heads)[:, None, None] * near
    e = np.exp(logits)
    return e / e.sum(-1, keepdims=True)


def brute_force(attention, scale, *, tau, threshold, floor):
    """Tries widths one after the other, each with the explicit mask of its segment."""
    sizes, heads = [p * p for p in SIX[: scale + 1]], len(attention)
    first, found = first_windowed(scale), []
    for segment in range(first, scale + 1):
        begin, row = sum(sizes[:segment]), []
        for head in range(heads):
            block = attention[head, :, begin : begin + sizes[segment]]
            block = np.where(block < threshold, 0, block)
            if block.sum() == 0 or block.sum() / attention[head].sum() < floor:
                row.append(DROPPED)
                continue
            for width in range(1, sizes[segment] + 1):
                mask = explicit_band(sizes[scale], sizes[segment], width)
                if (block * mask).sum() >= tau * block.sum():
                    break
            row.append(DENSE if mask.all() or width == sizes[segment] else width)
        found.append(row)
    return found


@pytest.mark.parametrize("tau", [0.95, 0.8, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scale", [3, 4, 5])
def test_search_finds_the_smallest_width(tau, seed, scale):
    attention = random_attention(seed, scale=scale)
    search = WindowSearch(tau=tau, threshold=0.003, floors=(0.03,))
    found = search_windows(torch.from_numpy(attention), SIX, scale, search)
    assert found.dtype == np.int64
    expected = np.array(brute_force(attention, scale, tau=tau, threshold=0.003, floor=0.03))
    # A window that happens to keep every pair may be written as a width or as dense.
    assert np.array_equal(scale_mask(SIX, scale, found), scale_mask(SIX, scale, expected))
    assert found.shape == expected.shape
    assert len(set(found.flatten().tolist())) > 1


def test_search_of_dense_scales_is_empty():
    for scale in range(3):
        sizes = [p * p for p in SIX[: scale + 1]]
        attention = torch.full((2, sizes[-1], sum(sizes)), 1 / sum(sizes))
        assert search_windows(attention, SIX, scale, WindowSearch()).shape == (0, 2)


def test_segments_below_the_floor_are_dropped():
    scale, sizes = 3, [1, 4, 9, 16]
    attention = torch.zeros(2, 16, 30)
    attention[:, :, 0] = 0.9
    for i in range(16):
        attention[0, i, 14 + i] = 0.06
        attention[0, i, 5] = 0.04
        attention[1, i, 14 + i] = 0.1
    assert sum(sizes) == 30
    search = WindowSearch(tau=0.95, floors=(0.5, 0.5, 0.5, 0.05))
    assert search_windows(attention, SIX, scale, search).tolist() == [[DROPPED, DROPPED], [1, 1]]
    search = WindowSearch(tau=0.95, floors=(0.03,))
    found = search_windows(attention, SIX, scale, search)
    assert found[0, 1] == DROPPED, "an empty segment"
    assert found[0, 0] != DROPPED
    assert [WindowSearch(floors=(0.03, 0.1)).floor(scale) for scale in (0, 1, 7)] == [0.03, 0.1, 0.1]


def test_small_entries_count_as_nothing():
    attention = torch.zeros(1, 16, 30)
    attention[..., 0] = 1 - 0.1 - 15 * 0.002
    attention[..., 14:] = 0.002
    for i in range(16):
        attention[0, i, 14 + i] = 0.1
    assert search_windows(attention, SIX, 3, WindowSearch())[1, 0] == 1
    assert search_windows(attention, SIX, 3, WindowSearch(threshold=0.0))[1, 0] > 1


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


def test_attention_of_another_shape():
    with pytest.raises(ShapeError, match=r"expected \(heads, 16, 30\) for scale 3, got \(2, 16, 29\)"):
        search_windows(torch.zeros(2, 16, 29), SIX, 3, WindowSearch())
