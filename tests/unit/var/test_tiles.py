"""Windowed attention that skips is full attention under the mask of the same windows."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[var]")
pytest.importorskip("safetensors", reason="needs sparing[var]")
pytest.importorskip("huggingface_hub", reason="needs sparing[var]")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparing.var.tiles import TiledWindows
from sparing.var.windows import DENSE, DROPPED, first_windowed, kept_pairs, scale_mask

PATCH_NUMS = (1, 2, 3, 5, 7, 10)


def _masked(q, k, v, mask, softmax_scale):
    scores = (q @ k.transpose(-1, -2)) * softmax_scale
    return scores.masked_fill(~torch.from_numpy(mask), -torch.inf).softmax(-1) @ v


def _tensors(heads, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    keys = sum(p * p for p in PATCH_NUMS[: scale + 1])
    shapes = [(2, heads, PATCH_NUMS[scale] ** 2, 8), (2, heads, keys, 8), (2, heads, keys, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@st.composite
def _cases(draw):
    scale = draw(st.integers(3, len(PATCH_NUMS) - 1))
    heads = draw(st.integers(1, 6))
    rows = scale + 1 - first_windowed(scale)
    width = st.sampled_from([DENSE, DROPPED, 1, 2, 3, 5, 9, 20, 60, 200])
    same = draw(st.booleans())
    widths = [draw(st.lists(width, min_size=heads, max_size=heads)) for _ in range(rows)]
    if same:
        widths = [[row[0]] * heads for row in widths]
    return scale, np.array(widths, dtype=np.int64), draw(st.sampled_from([1, 7, 16, 64])), draw(st.integers(1, 4))


@given(_cases(), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_it_equals_masked_attention(case, seed):
    scale, widths, tile, groups = case
    q, k, v = _tensors(widths.shape[1], scale, seed)
    tiled = TiledWindows(PATCH_NUMS, scale, widths, tile=tile, max_groups=groups)
    expected = _masked(q, k, v, scale_mask(PATCH_NUMS, scale, widths), 1.3)
    torch.testing.assert_close(tiled(q, k, v, softmax_scale=1.3), expected, rtol=1e-9, atol=1e-12)


@given(_cases())
@settings(deadline=None, max_examples=60)
def test_it_computes_at_least_what_is_kept_and_at_most_everything(case):
    scale, widths, tile, groups = case
    tiled = TiledWindows(PATCH_NUMS, scale, widths, tile=tile, max_groups=groups)
    everything = int(kept_pairs(PATCH_NUMS, scale, None)[0]) * widths.shape[1]
    kept = int(kept_pairs(PATCH_NUMS, scale, widths).sum())
    assert kept <= round(tiled.share * everything) <= everything


def test_narrow_windows_are_mostly_skipped():
    widths = np.full((3, 4), 3, dtype=np.int64)
    tiled = TiledWindows((1, 2, 3, 8, 12, 16), 5, widths, tile=16)
    mask = scale_mask((1, 2, 3, 8, 12, 16), 5, widths)
    assert tiled.share < 2 * mask.mean() + 0.05 < 0.2


def test_heads_of_one_width_make_one_group():
    assert len(TiledWindows(PATCH_NUMS, 5, np.full((3, 6), 4))._groups) == 1
    assert len(TiledWindows(PATCH_NUMS, 5, np.array([[4, 9, 4, 9, 1, 1]] * 3))._groups) == 4
