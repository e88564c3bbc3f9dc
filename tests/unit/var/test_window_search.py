"""The search for windows: by trying every width, and by trying every choice of widths."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, NonFiniteError, ShapeError  # noqa: E402
from sparing.var.window_search import WindowSearch, balance_windows, search_windows  # noqa: E402
from sparing.var.windows import DENSE, DROPPED, band, first_windowed, kept_pairs, scale_mask  # noqa: E402

SIX = (1, 2, 3, 4, 6, 8)


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
                mask = band(sizes[scale], sizes[segment], width)
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


def test_attention_of_another_shape():
    with pytest.raises(ShapeError, match=r"expected \(heads, 16, 30\) for scale 3, got \(2, 16, 29\)"):
        search_windows(torch.zeros(2, 16, 29), SIX, 3, WindowSearch())


# --- of a whole layer


def held_share(attention, windows):
    """Of all rows' attention what windows keep."""
    kept = sum((found * scale_mask(SIX, scale, windows[scale])).sum() for scale, found in attention.items())
    return kept / sum(found.sum() for found in attention.values())


def count(windows):
    return sum(kept_pairs(SIX, scale, own).sum() for scale, own in windows.items())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("tau", [0.98, 0.9, 0.7])
def test_balanced_windows_hold_what_is_asked_and_no_choice_is_cheaper_for_more(seed, tau):
    attention = {scale: random_attention(seed, heads=2, scale=scale) for scale in (3, 4)}
    found = balance_windows({s: torch.from_numpy(a) for s, a in attention.items()}, SIX, tau)
    assert {s: w.shape for s, w in found.items()} == {3: (2, 2), 4: (3, 2)}
    share = held_share(attention, found)
    assert share >= tau - 1e-9
    # No other width of one or two segments holds as much with fewer pairs.
    places = [(s, r, h) for s, w in found.items() for r in range(w.shape[0]) for h in range(2)]
    for some in itertools.combinations(places, 2):
        for steps in itertools.product((-1, 0, 1), repeat=2):
            other = {s: w.copy() for s, w in found.items()}
            for (s, r, h), step in zip(some, steps, strict=True):
                most = SIX[first_windowed(s) + r] ** 2
                width = most if found[s][r, h] == DENSE else found[s][r, h]
                other[s][r, h] = min(max(width + step, 0), most)
            assert held_share(attention, other) <= share + 1e-12 or count(other) >= count(found)


def test_balanced_windows_need_fewer_pairs_than_equal_shares():
    attention = {scale: random_attention(3, scale=scale, sharpness=2.0) for scale in (3, 4, 5)}
    maps = {s: torch.from_numpy(a) for s, a in attention.items()}
    equal = {s: search_windows(m, SIX, s, WindowSearch(tau=0.9, threshold=0.0, floors=(0.0,))) for s, m in maps.items()}
    found = balance_windows(maps, SIX, float(held_share(attention, equal)))
    assert held_share(attention, found) >= held_share(attention, equal) - 1e-9
    assert count(found) < count(equal)


def test_all_attention_needs_all_pairs_and_none_of_the_windowed_needs_none():
    attention = {3: random_attention(0, heads=2, scale=3)}
    maps = {3: torch.from_numpy(attention[3])}
    assert (balance_windows(maps, SIX, 1.0)[3] == DENSE).all()
    visible = attention[3][:, :, :5].sum() / attention[3].sum()
    assert (balance_windows(maps, SIX, 0.9 * visible)[3] == DROPPED).all()
    assert balance_windows({}, SIX, 0.5) == {}


def test_balanced_windows_of_what_does_not_fit():
    with pytest.raises(ShapeError, match=r"expected \(heads, 16, 30\) for scale 3"):
        balance_windows({3: torch.zeros(2, 16, 29)}, SIX, 0.9)
    with pytest.raises(NonFiniteError, match="scale 3: expected finite"):
        balance_windows({3: torch.full((2, 16, 30), float("nan"))}, SIX, 0.9)
    with pytest.raises(NonFiniteError, match="scale 3: expected finite"):
        search_windows(torch.full((2, 16, 30), float("nan")), SIX, 3, WindowSearch())
    with pytest.raises(ArgumentError, match="scales with windows, got scale 1"):
        balance_windows({1: torch.zeros(2, 4, 5)}, SIX, 0.9)
    for tau in (0.0, 1.5, float("nan")):
        with pytest.raises(ArgumentError, match="tau: expected more than 0"):
            balance_windows({}, SIX, tau)
