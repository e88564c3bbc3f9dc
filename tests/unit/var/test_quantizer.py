"""The quantizer against the formulas, and against hand-made cases."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ShapeError  # noqa: E402
from sparing.var.quantizer import phi_table  # noqa: E402

SCHEDULES = [(1, 2, 3, 4, 6, 8), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 3, 5), (2, 7), (4,)]


def latent_of(quantizer, *, batch=2, seed=0):
    shape = (batch, quantizer.z_channels, quantizer.patch_nums[-1], quantizer.patch_nums[-1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_phi_table():
    assert phi_table(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert phi_table(6, 4) == (0, 0, 1, 2, 3, 3)
    assert phi_table(1, 4) == (0,)
    assert phi_table(7, 1) == (0,) * 7
    assert phi_table(3, 4) == (0, 2, 3)


@given(st.integers(1, 30), st.integers(1, 6))
def test_phi_table_is_that_of_the_formula(plain, num_scales, num_phi):
    table = phi_table(num_scales, num_phi)
    place = np.arange(num_scales) / max(num_scales - 1, 1)
    ticks = (np.arange(num_phi) * 3 * (1 - 2 / (3 * num_phi)) / max(3 * num_phi - 3, 1)) + 1 / (3 * num_phi)
    distance = np.abs(place[:, None] - ticks)
    if (num_scales, num_phi) != (10, 4):
        chosen = distance[np.arange(num_scales), list(table)]
        np.testing.assert_allclose(chosen, distance.min(1), atol=1e-12)
    assert len(table) == num_scales
    assert sorted(table) == list(table)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_codes_and_sums_are_those_of_the_formulas(plain, tiny, schedule):
    quantizer = tiny.tokenizer(patch_nums=schedule).quantize
    latent = latent_of(quantizer)
    tokens, sums, loss, margin = plain.quantize(plain.arrays(quantizer), schedule, latent.double().numpy())
    assert margin > 1e-5, "two codes are equally near: take another seed"
    found = quantizer.encode(latent)
    assert [t.dtype for t in found] == [torch.int64] * len(schedule)
    for ours, theirs in zip(found, tokens, strict=True):
        assert np.array_equal(ours.numpy(), theirs)
    with torch.inference_mode():
        for count in range(1, len(schedule) + 1):
            np.testing.assert_allclose(quantizer.decode(found[:count]).numpy(), sums[count - 1], atol=2e-5)
    output = quantizer(latent)
    assert all(torch.equal(a, b) for a, b in zip(output.tokens, found, strict=True))
    assert output.loss.item() == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(output.f_hat.detach().numpy(), sums[-1], atol=2e-5)


def test_formulas_in_float64(plain, tiny):
    quantizer = tiny.tokenizer().quantize.double()
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randint(24, (3, p * p), generator=generator) for p in quantizer.patch_nums]
    state, arrays = plain.arrays(quantizer), [t.numpy() for t in tokens]
    with torch.inference_mode():
        expected = sum(plain.upsampled(state, quantizer.patch_nums, t, scale) for scale, t in enumerate(arrays))
        np.testing.assert_allclose(quantizer.decode(tokens).numpy(), expected, rtol=0, atol=1e-12)
        found = quantizer.next_inputs(tokens).numpy()
    np.testing.assert_allclose(found, plain.next_inputs(state, quantizer.patch_nums, arrays), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES[:4], ids=str)
def test_inputs_of_teaching(plain, tiny, schedule):
    quantizer = tiny.tokenizer(patch_nums=schedule).quantize
    generator = torch.Generator().manual_seed(2)
    tokens = [torch.randint(24, (3, p * p), generator=generator) for p in schedule]
    with torch.inference_mode():
        found = quantizer.next_inputs(tokens)
    expected = plain.next_inputs(plain.arrays(quantizer), schedule, [t.numpy() for t in tokens])
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)


def test_one_scale_has_no_inputs(tiny):
    quantizer = tiny.tokenizer(patch_nums=(4,)).quantize
    assert quantizer.next_inputs([torch.zeros(3, 16, dtype=torch.int64)]).shape == (3, 0, 8)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16))
def test_resizing_along_one_axis(plain, size, side):
    f = np.random.default_rng(size * 17 + side).standard_normal((1, 2, size, size))
    torch_f = torch.from_numpy(f)
    if side <= size:
        area = torch.nn.functional.interpolate(torch_f, size=(side, side), mode="area")
        np.testing.assert_allclose(area.numpy(), plain.area(f, side), atol=1e-12)
    else:
        bicubic = torch.nn.functional.interpolate(torch_f, size=(side, side), mode="bicubic")
        np.testing.assert_allclose(bicubic.numpy(), plain.bicubic(f, side), atol=1e-12)


def test_residual_vectors_are_what_the_scales_code(tiny):
    quantizer = tiny.tokenizer().quantize
    latent = latent_of(quantizer)
    vectors = quantizer.residual_vectors(latent)
    assert [v.shape for v in vectors] == [(2 * p * p, 8) for p in quantizer.patch_nums]
    for found, tokens in zip(vectors, quantizer.encode(latent), strict=True):
        assert torch.equal(quantizer.nearest(found).view(2, -1), tokens)


def test_nearest_takes_the_first_of_equals(tiny):
    quantizer = tiny.tokenizer().quantize
    with torch.no_grad():
        quantizer.embedding.weight.zero_()
        quantizer.embedding.weight[[5, 9], 0] = 1.0
    vectors = torch.tensor([[1.0] + [0.0] * 7, [0.0] * 8])
    assert quantizer.nearest(vectors).tolist() == [5, 0]


def test_gradients(tiny):
    quantizer = tiny.tokenizer().quantize
    latent = latent_of(quantizer).requires_grad_()
    output = quantizer(latent)
    direction = torch.randn(latent.shape, generator=torch.Generator().manual_seed(9))
    (straight,) = torch.autograd.grad((output.f_hat * direction).sum(), latent, retain_graph=True)
    torch.testing.assert_close(straight, direction, msg="f_hat's gradient passes straight through")
    (commitment,) = torch.autograd.grad(output.loss, latent, retain_graph=True)
    with torch.inference_mode():
        rest = [latent - quantizer.decode(output.tokens[:n]) for n in range(1, 7)]
    torch.testing.assert_close(commitment, sum(rest) * 2 * 0.25 / 6 / latent.numel(), rtol=1e-3, atol=1e-8)
    (codes,) = torch.autograd.grad(output.loss, quantizer.embedding.weight)
    used = torch.cat([t.flatten() for t in output.tokens]).unique()
    assert set(codes.abs().sum(1).nonzero().flatten().tolist()) == set(used.tolist())


def test_encode_leaves_the_latent_alone(tiny):
    quantizer = tiny.tokenizer().quantize
    latent = latent_of(quantizer)
    before = latent.clone()
    quantizer.encode(latent)
    quantizer.residual_vectors(latent)
    quantizer(latent)
    assert torch.equal(latent, before)


def test_tokens_of_another_scale(tiny):
    quantizer = tiny.tokenizer().quantize
    with pytest.raises(ShapeError, match=r"expected \(B, 9\) for scale 2, got \(1, 4\)"):
        quantizer.upsampled(torch.zeros(1, 4, dtype=torch.int64), 2)
