"""Guidance and the draw of tokens, against probabilities written down position by position."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scipy import stats  # noqa: E402

from sparing.errors import ArgumentError, DtypeError  # noqa: E402
from sparing.var.sampling import SamplingSettings, guide, sample_tokens  # noqa: E402

DRAWS = 20_000


def draws(row, top_k, top_p, *, seed=0, count=DRAWS):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.as_tensor(row, dtype=torch.float32).expand(1, count, -1)
    return sample_tokens(logits, SamplingSettings(1.5, top_k, top_p), generator)[0].numpy()


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (12, 0.9), (3, 0.96), (0, 0.01), (30, 0.5), (2, 1.0)]
)
def test_draws_have_the_published_distribution(plain, top_k, top_p):
    row = np.random.default_rng(4).standard_normal(30) * 1.5
    expected = plain.sampling_probabilities(row, top_k, top_p)
    found = np.bincount(draws(row, top_k, top_p), minlength=30)
    assert not found[expected == 0].any(), "a code that is cut off was drawn"
    allowed = expected > 0
    assert 1 <= allowed.sum() <= (top_k or 30)
    if allowed.sum() > 1:
        assert stats.chisquare(found[allowed], DRAWS * expected[allowed]).pvalue > 1e-4
    else:
        assert found[allowed] == DRAWS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12, unique=True),
    st.integers(0, 12),
    st.floats(0.05, 1.0),
    st.integers(0, 99),
)
@example(row=[0.0, -6.193813427122694e-27], top_k=0, top_p=0.25, seed=0)  # apart as logits, not as probabilities
def test_only_allowed_codes_are_drawn_and_likely_ones_are(plain, row, top_k, top_p, seed):
    top_k = min(top_k, len(row))
    expected = plain.sampling_probabilities(np.array(row), top_k, top_p)
    ascending = np.sort(plain.softmax(np.array(row) if not top_k else np.sort(row)[-top_k:]))
    if np.abs(np.cumsum(ascending) - (1 - top_p)).min() < 1e-5:
        return  # a tie at the cut: float32 may decide it either way
    found = draws(row, top_k, top_p, seed=seed, count=400)
    assert set(found) <= set(np.flatnonzero(expected))
    assert set(np.flatnonzero(expected > 0.05)) <= set(found)


def test_each_position_has_its_own_distribution():
    logits = torch.full((2, 3, 7), -torch.inf)
    codes = torch.tensor([[0, 6, 2], [5, 1, 3]])
    logits.scatter_(2, codes[..., None], 0.0)
    for top_k in (0, 1, 4):
        found = sample_tokens(logits, SamplingSettings(0.0, top_k, 0.9), torch.Generator().manual_seed(1))
        assert torch.equal(found, codes)


def test_one_code_is_the_largest_whatever_the_generator():
    logits = torch.randn(2, 50, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_tokens(logits, SamplingSettings(0.0, 1, 0.5), None), logits.argmax(-1))


def test_one_seed_gives_one_draw():
    row = np.zeros(50)
    assert np.array_equal(draws(row, 0, 0.9, seed=3), draws(row, 0, 0.9, seed=3))
    assert not np.array_equal(draws(row, 0, 0.9, seed=3), draws(row, 0, 0.9, seed=4))


def test_guidance(plain):
    random = np.random.default_rng(0)
    patch_nums = (1, 2, 3)
    cond, uncond = random.standard_normal((2, 2, 14, 5))
    expected = plain.guided(np.concatenate([cond, uncond]), patch_nums, 1.5)
    chosen = SamplingSettings(1.5)
    for scale, (begin, end) in enumerate([(0, 1), (1, 5), (5, 14)]):
        halves = (torch.from_numpy(t[:, begin:end]) for t in (cond, uncond))
        np.testing.assert_allclose(guide(*halves, chosen.strength(scale, 3)), expected[:, begin:end], rtol=1e-12)
    assert [chosen.strength(scale, 10) for scale in (0, 3, 9)] == [0, 0.5, 1.5]
    assert chosen.strength(0, 1) == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guidance_scale": -0.1}, "guidance_scale: expected 0 to 1e"),
        ({"guidance_scale": 1e39}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"top_k": -1}, r"top_k: expected 0 \(all\) to 24"),
        ({"top_k": 25}, "top_k"),
        ({"top_p": 0.0}, "top_p: expected more than 0"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
    ],
)
def test_values_out_of_range(fields, words):
    with pytest.raises(ArgumentError, match=words):
        SamplingSettings(**{"top_k": 3, **fields}).check(24)


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 2.0), ("top_k", None), ("top_p", "1"), ("guidance_scale", None), ("guidance_scale", 1j)],
)
def test_what_is_no_number(name, value):
    with pytest.raises(DtypeError, match=f"{name}: expected a"):
        SamplingSettings(**{"top_k": 3, name: value}).check(24)


def test_nearly_the_same_scores_draw_mostly_the_same_codes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2000, 64, generator=generator)
    shaken = logits + 0.05 * torch.randn(logits.shape, generator=generator)
    how = SamplingSettings(0.0, 40, 0.95)
    first, second = (sample_tokens(x, how, torch.Generator().manual_seed(1)) for x in (logits, shaken))
    # Ranks change nearly everywhere; were the random numbers theirs, about as many codes would agree as by chance.
    assert (first == second).float().mean() > 0.9
