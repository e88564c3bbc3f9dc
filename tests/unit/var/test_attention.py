"""Every way of attending gives what full attention under the mask of the same windows gives."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[var]")
pytest.importorskip("safetensors", reason="needs sparing[var]")
pytest.importorskip("huggingface_hub", reason="needs sparing[var]")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparing.var.attention import ScaleAttention, native_level
from sparing.var.windows import DENSE, DROPPED, first_windowed, scale_mask

core = pytest.importorskip("sparing._core", reason="needs the compiled core")
PATCH_NUMS = (1, 2, 3, 5, 7, 10)
LEVELS = core.available_attention()
# bfloat16 has 8 bits: outputs of unit size are right to about one part in a hundred.
TOLERANCE = 0.03


def _tensors(heads, scale, seed, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    keys = sum(p * p for p in PATCH_NUMS[: scale + 1])
    # (R, n, H, D) seen as (R, H, n, D), as the one product of q, k and v gives them.
    shapes = [(2, n, heads, 64) for n in (PATCH_NUMS[scale] ** 2, keys, keys)]
    q, k, v = (torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes)
    return (q / 8).to(dtype), k.to(dtype), v.to(dtype)


def _expected(q, k, v, mask, softmax_scale):
    scores = (q.float() @ k.float().transpose(-1, -2)) * softmax_scale
    if mask is not None:
        scores = scores.masked_fill(~torch.from_numpy(mask), -torch.inf)
    return scores.softmax(-1) @ v.float()


@st.composite
def _cases(draw):
    scale = draw(st.integers(0, len(PATCH_NUMS) - 1))
    heads = draw(st.integers(1, 4))
    rows = max(scale + 1 - first_windowed(scale), 0)
    width = st.sampled_from([DENSE, DROPPED, 1, 2, 3, 5, 9, 20, 60, 200])
    widths = [draw(st.lists(width, min_size=heads, max_size=heads)) for _ in range(rows)]
    whole = draw(st.booleans()) or not rows
    return scale, heads, None if whole else np.array(widths, dtype=np.int64)


@pytest.mark.parametrize("level", [None, *LEVELS])
@given(_cases(), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_every_level_equals_masked_attention(level, case, seed):
    scale, heads, widths = case
    q, k, v = _tensors(heads, scale, seed)
    attention = ScaleAttention(PATCH_NUMS, scale, widths, level=level)
    mask = None if widths is None else scale_mask(PATCH_NUMS, scale, widths)
    out = attention(q, k, v, softmax_scale=1.3)
    assert out.dtype == q.dtype
    torch.testing.assert_close(out.float(), _expected(q, k, v, mask, 1.3), rtol=TOLERANCE, atol=TOLERANCE)


def test_the_fast_level_is_one_that_runs():
    assert native_level() in {None, *LEVELS}


@pytest.mark.parametrize("level", LEVELS)
def test_threads_change_nothing(level):
    q, k, v = _tensors(4, 5, 0)
    attention = ScaleAttention(PATCH_NUMS, 5, np.full((3, 4), 7), level=level)
    before = torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            outs.append(attention(q, k, v, softmax_scale=1.0))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("level", LEVELS)
def test_other_numbers_take_another_way(level):
    attention = ScaleAttention(PATCH_NUMS, 5, np.full((3, 2), 4), level=level)
    q, k, v = _tensors(2, 5, 1, dtype=torch.float32)
    mask = scale_mask(PATCH_NUMS, 5, np.full((3, 2), 4))
    torch.testing.assert_close(attention(q, k, v, softmax_scale=1.0), _expected(q, k, v, mask, 1.0))
    narrow = [t[..., :32].bfloat16() for t in (q, k, v)]
    expected = _expected(*narrow, mask, 1.0)
    out = attention(*narrow, softmax_scale=1.0)
    torch.testing.assert_close(out.float(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    wide = torch.cat([v, v], -1).bfloat16()
    out = attention(q.bfloat16(), k.bfloat16(), wide, softmax_scale=1.0)
    torch.testing.assert_close(
        out.float(), _expected(q.bfloat16(), k.bfloat16(), wide, mask, 1.0), rtol=TOLERANCE, atol=TOLERANCE
    )


@pytest.mark.parametrize("level", LEVELS)
def test_scores_far_apart_neither_overflow_nor_vanish(level):
    q, k, v = _tensors(2, 4, 2)
    out = ScaleAttention(PATCH_NUMS, 4, None, level=level)(q * 100, k, v, softmax_scale=5.0)
    torch.testing.assert_close(out.float(), _expected(q * 100, k, v, None, 5.0), rtol=TOLERANCE, atol=2 * TOLERANCE)


class TestTheCore:
    def _arguments(self, **changes):
        zeros = np.zeros((1, 2, 5, 64), dtype=np.uint16)
        arguments = {
            "q": zeros,
            "k": zeros,
            "v": zeros,
            "out": zeros.copy(),
            "segments": np.array([[1, 4]], dtype=np.int32),
            "widths": np.ones((2, 1), dtype=np.int32),
            "sink": 1,
            "scale": 1.0,
            "level": "portable",
            "num_threads": 1,
        }
        return arguments | changes

    def test_it_takes_good_arguments(self):
        core.attend(**self._arguments())

    @pytest.mark.parametrize(
        "changes",
        [
            {"k": np.zeros((1, 2, 6, 64), dtype=np.uint16)},
            {"v": np.zeros((1, 3, 5, 64), dtype=np.uint16)},
            {"q": np.zeros((1, 2, 5, 32), dtype=np.uint16)},
            {"q": np.zeros((1, 2, 0, 64), dtype=np.uint16)},
            {"out": np.zeros((1, 2, 5, 128), dtype=np.uint16)[..., ::2]},
            {"k": np.zeros((1, 2, 5, 64), dtype=np.uint16)[:, :, ::-1]},
            {"widths": np.ones((1, 1), dtype=np.int32)},
            {"segments": np.array([[1, 5]], dtype=np.int32)},
            {"segments": np.array([[-2, 2]], dtype=np.int32)},
            {"sink": 0},
            {"sink": 9},
            {"level": "neon"},
        ],
    )
    def test_it_refuses_bad_ones(self, changes):
        with pytest.raises(ValueError, match=r"expected|cannot run"):
            core.attend(**self._arguments(**changes))
