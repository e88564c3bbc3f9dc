"""The cache of keys and values: what goes in comes out; eight bits within half a step."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.var.cache import KVCache  # noqa: E402

ALL = slice(0, 2)


def cache(capacity=20, *, bits=None, dtype=torch.float32):
    return KVCache(2, 3, 4, capacity=capacity, dtype=dtype, device=torch.device("cpu"), bits=bits)


def pieces(*lengths, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(2, 3, n, 4, generator=generator).to(dtype) for _ in range(2)] for n in lengths]


def extend(kept, pair, *, begin=0, rows=ALL):
    return kept.extend(*pair, begin=begin, rows=rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_so_far_in_order(dtype):
    kept, given_ = cache(dtype=dtype), pieces(1, 4, 9, dtype=dtype)
    for count, begin in enumerate((0, 1, 5), start=1):
        keys, values = extend(kept, given_[count - 1], begin=begin)
        assert torch.equal(keys, torch.cat([k for k, _ in given_[:count]], 2))
        assert torch.equal(values, torch.cat([v for _, v in given_[:count]], 2))
    assert kept.nbytes == 2 * 2 * 3 * 20 * 4 * dtype.itemsize


def test_keys_and_values_are_views():
    kept = cache()
    keys, _ = extend(kept, pieces(3)[0])
    again, _ = extend(kept, pieces(2)[0], begin=3)
    assert keys.data_ptr() == again.data_ptr()


@pytest.mark.parametrize("bits", [None, 8])
def test_rows_on_their_own_equal_rows_together(bits):
    together, apart = cache(bits=bits), cache(bits=bits)
    for begin, pair in zip((0, 4), pieces(4, 9), strict=True):
        expected = extend(together, pair, begin=begin)
        for i in range(2):
            row = slice(i, i + 1)
            found = extend(apart, [t[row] for t in pair], begin=begin, rows=row)
            assert all(torch.equal(f, e[row]) for f, e in zip(found, expected, strict=True))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-20, 1e20))
def test_eight_bits_are_within_half_a_step(seed, size):
    kept = cache(bits=8)
    k, v = (size * t for t in pieces(5, seed=seed)[0])
    for given_, found in zip((k, v), extend(kept, (k, v)), strict=True):
        step = given_.abs().amax(-1, keepdim=True) / 127
        assert ((found - given_).abs() <= step * (0.5 + 1e-4)).all()
        assert found.dtype == torch.float32


def test_eight_bits_of_zeros_and_of_whole_steps():
    kept = cache(bits=8)
    whole = torch.randint(-127, 128, (2, 3, 6, 4), generator=torch.Generator().manual_seed(0)).float()
    whole[..., 0] = 127
    zeros = torch.zeros_like(whole)
    keys, values = extend(kept, (zeros, whole))
    assert torch.equal(keys, zeros)
    torch.testing.assert_close(values, whole, rtol=1e-6, atol=0)


def test_eight_bits_take_a_third_of_the_memory():
    assert cache(bits=8).nbytes == 2 * 2 * 3 * 20 * (4 + 4)
    wide = {
        bits: KVCache(1, 1, 64, capacity=10, dtype=torch.bfloat16, device=torch.device("cpu"), bits=bits)
        for bits in (8, None)
    }
    assert wide[8].nbytes == 2 * 10 * 68
    assert wide[None].nbytes == 2 * 10 * 128


def test_no_room_at_all():
    assert cache(0).nbytes == 0
