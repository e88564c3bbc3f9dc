"""Rounding to bytes: both ways against float64, and the compiled core against PyTorch's operators."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import DtypeError  # noqa: E402
from sparing.quant import rounding  # noqa: E402
from sparing.quant.rounding import finish_rows_, quantize_image, quantize_rows, signed  # noqa: E402

TINY = torch.finfo(torch.float32).tiny
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# A half, and the rounding of float32; of the core's exponential too where SiLU comes first.
HALF_STEP, HALF_STEP_OF_ACTIVATED = 0.5 + 1e-4, 0.5 + 0.01


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def without_core(monkeypatch):
    """Calls a function as if nothing were compiled."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(rounding, "_core", None)
            rounding._level.cache_clear()
            try:
                return function(*arguments, **options)
            finally:
                rounding._level.cache_clear()

    return call


@pytest.fixture(params=["core", "torch"])
def way(request, without_core):
    """Calls a function with the core, and without."""
    if request.param == "torch":
        return without_core
    pytest.importorskip("sparing._core", reason="needs the compiled core")
    return lambda function, *arguments, **options: function(*arguments, **options)


@pytest.fixture
def core():
    return pytest.importorskip("sparing._core", reason="needs the compiled core")


def group_norm(channels, groups, *, seed=1):
    norm = nn.GroupNorm(groups, channels, eps=1e-6).requires_grad_(False)
    norm.weight.copy_(1 + 0.2 * normal(channels, seed=seed))
    norm.bias.copy_(0.3 * normal(channels, seed=seed + 1))
    return norm


def activated(image, norm, silu):
    """In float64, by the formulas."""
    y = image.double()
    if norm is not None:
        parts = y.unflatten(1, (norm.num_groups, -1))
        mean = parts.mean((2, 3, 4), keepdim=True)
        variance = (parts - mean).square().mean((2, 3, 4), keepdim=True)
        y = ((parts - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
        y = y * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]
    return y / (1 + (-y).exp()) if silu else y


# --- rows


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 17), (40, 33), (9, 1000)])
def test_rows_are_within_half_a_step(way, dtype, shape):
    rows = (normal(*shape) * torch.logspace(-3, 3, shape[0])[:, None]).to(dtype)
    before = rows.clone()
    codes, steps = way(quantize_rows, rows)
    assert torch.equal(rows, before)
    assert (codes.dtype, codes.shape, codes.stride()) == (torch.uint8, shape, (shape[1], 1))
    assert (steps.dtype, steps.shape) == (torch.float32, (shape[0], 1))
    largest = rows.double().abs().amax(1, keepdim=True)
    torch.testing.assert_close(steps.double(), largest / 127, rtol=1e-6, atol=0)
    assert (rows.double() / steps - (codes.double() - 128)).abs().max() <= HALF_STEP
    assert int(codes.min()) >= 1
    assert torch.equal(signed(codes.clone()).int(), codes.int() - 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_the_same_bits_either_way(core, without_core, dtype):
    # A quotient and its rounding are exact to the last bit, so there is nothing to allow for.
    rows = (normal(200, 129) * torch.logspace(-6, 6, 200)[:, None]).to(dtype)
    rows[0], rows[1], rows[2] = 0, 1e-42, torch.arange(129) - 64.5
    found, expected = quantize_rows(rows), without_core(quantize_rows, rows)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_ties_go_to_even(way):
    rows = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, -127]])
    codes, steps = way(quantize_rows, rows)
    assert steps.item() == 1
    assert codes.tolist() == [[255, 128, 130, 130, 128, 126, 126, 254, 2, 1]]


def test_rows_of_extremes(way):
    rows = torch.ones(7, 21)
    rows[0], rows[1], rows[2] = 0, 1e-45, -torch.finfo(torch.float32).max
    rows[3, 20], rows[4, 3], rows[5, 0] = torch.nan, torch.inf, -torch.inf
    codes, steps = way(quantize_rows, rows)
    assert steps[:2].tolist() == [[TINY], [TINY]]
    assert [codes[i].unique().tolist() for i in (0, 1, 2, 6)] == [[128], [128], [1], [255]]
    assert not steps[3:6].isfinite().any()
    assert steps[6] == torch.tensor(1.0) / 127


def test_no_rows(way):
    codes, steps = way(quantize_rows, torch.empty(0, 5))
    assert (codes.shape, steps.shape) == ((0, 5), (0, 1))


@pytest.mark.parametrize("odd", ["transposed", "strided", "expanded", "one row", "gradients"])
def test_rows_of_odd_strides(way, odd):
    x = normal(12, 18)
    rows = {
        "transposed": x.t(),
        "strided": x[::2, ::3],
        "expanded": x[:1].expand(5, 18),
        "one row": x.as_strided((1, 12), (0, 18)),
        "gradients": x.clone().requires_grad_(),
    }[odd]
    with torch.no_grad():
        found = way(quantize_rows, rows)
        expected = way(quantize_rows, rows.detach().clone(memory_format=torch.contiguous_format))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_whole_numbers_are_refused(way):
    with pytest.raises(DtypeError, match="input: expected a floating dtype"):
        way(quantize_rows, torch.ones(2, 3, dtype=torch.int32))


# --- what follows a product


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 160), (0, 4)])
def test_sums_times_steps_plus_bias(way, dtype, gelu, with_bias, shape):
    sums, steps = 900 * normal(*shape), 0.004 * normal(shape[0], 1, seed=1).abs() + 1e-4
    bias = normal(shape[1], seed=2) if with_bias else None
    product = sums.double() * steps.double()
    expected = product if bias is None else product + bias.double()
    if gelu:
        expected = F.gelu(expected, approximate="tanh")
    out = torch.full(shape, torch.nan, dtype=dtype)
    way(finish_rows_, out, sums.clone(), steps, bias=bias, gelu=gelu)
    allowed = 2e-7 * (product.abs() + expected.abs()) + 2e-5 * gelu + torch.finfo(dtype).eps / 2 * expected.abs()
    assert out.dtype == dtype
    assert ((out.double() - expected).abs() <= allowed).all()


def test_gelu_far_out(way):
    size = torch.logspace(1, 30, 200)
    sums = torch.stack([torch.cat([size, -size])])
    out = torch.empty(1, 400)
    way(finish_rows_, out, sums.clone(), torch.ones(1, 1), bias=None, gelu=True)
    torch.testing.assert_close(out, sums.relu(), rtol=1e-6, atol=1e-6)


def test_what_is_not_finite_stays_so(way):
    out = torch.zeros(3, 2)
    steps = torch.tensor([[1.0], [torch.nan], [1.0]])
    way(finish_rows_, out, torch.tensor([[torch.inf, 1.0], [1.0, 0.0], [2.0, 3.0]]), steps, bias=None, gelu=False)
    assert out[0].tolist() == [torch.inf, 1]
    assert out[1].isnan().all()
    assert out[2].tolist() == [2, 3]


# --- images


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("groups", [None, 1, 2, 6])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("size", [(1, 2), (5, 3), (17, 16)])
def test_images_are_within_half_a_step(way, dtype, groups, silu, size):
    image = (2 * normal(1, 6, *size) + 0.5).to(dtype)
    norm = None if groups is None else group_norm(6, groups)
    before = image.clone()
    codes, step, zero_point = way(quantize_image, image, norm=norm, silu=silu)
    assert torch.equal(image, before)
    assert (codes.dtype, codes.shape) == (torch.uint8, image.shape)
    assert codes.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(step, float)
    assert 0 <= zero_point <= 255
    y = activated(image, norm, silu)
    span = max(float(y.max()), 0) - min(float(y.min()), 0)
    assert step * 255 == pytest.approx(span, rel=1e-4)
    allowed = HALF_STEP_OF_ACTIVATED if silu or groups else HALF_STEP
    assert (y / step + zero_point - codes).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [None, 4])
@pytest.mark.parametrize("silu", [False, True])
def test_images_are_the_same_either_way_but_for_ties(core, without_core, dtype, groups, silu):
    image = (2 * normal(1, 20, 30, 31) + 0.5).to(dtype)
    norm = None if groups is None else group_norm(20, groups)
    found = quantize_image(image, norm=norm, silu=silu)
    expected = without_core(quantize_image, image, norm=norm, silu=silu)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert found[2] == expected[2]
    differ = found[0] != expected[0]
    assert differ.float().mean() < (0.01 if silu or groups else 1e-3)
    assert (found[0].int() - expected[0].int()).abs().max() <= 1
    # Only where the exact value lies in the middle between two codes, as near as either way knows it.
    place = activated(image, norm, silu) / found[1] + found[2]
    from_tie = (place - place.floor() - 0.5).abs()
    assert differ.sum() == 0 or from_tie[differ].max() <= (0.01 if silu or groups else 1e-4)


def test_images_of_one_sign_have_a_code_for_zero(way):
    for sign in (1, -1):
        codes, step, zero_point = way(quantize_image, sign * (5 + normal(1, 3, 4, 4).abs()), norm=None, silu=False)
        assert zero_point == (0 if sign > 0 else 255)
        assert codes.float().sub(zero_point).mul(step).abs().min() > 4.9


@pytest.mark.parametrize("value", [0.0, 1e-45, -3.0, 1e30])
def test_images_of_one_value(way, value):
    codes, step, zero_point = way(quantize_image, torch.full((1, 3, 4, 5), value), norm=None, silu=False)
    assert step >= TINY
    assert ((codes.double() - zero_point) * step).sub(value).abs().max() <= 0.501 * step


def test_the_whole_range_of_float32(way):
    largest = torch.finfo(torch.float32).max
    image = torch.tensor([largest, -largest, 0, 1])[None, :, None, None]
    codes, step, zero_point = way(quantize_image, image, norm=None, silu=False)
    assert np.isfinite(step)
    assert codes.flatten().tolist() == [255, 0, zero_point, zero_point]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("silu", [False, True])
def test_an_image_that_is_not_finite(way, bad, groups, silu):
    image = normal(1, 6, 20, 20)
    image[0, 4, 19, 3] = bad
    codes, step, zero_point = way(quantize_image, image, norm=groups and group_norm(6, groups), silu=silu)
    assert np.isnan(step)
    assert (zero_point, codes.unique().tolist()) == (0, [0])


@pytest.mark.parametrize("odd", ["channels last", "transposed", "strided", "expanded", "one channel", "one pixel"])
def test_images_of_odd_strides(way, odd):
    x = normal(2, 6, 8, 9)
    image = {
        "channels last": x[1:].contiguous(memory_format=torch.channels_last),
        "transposed": x[:1].transpose(2, 3),
        "strided": x[:1, ::2, 1::3, ::2],
        "expanded": x[:1, :1].expand(1, 5, 8, 9),
        "one channel": x[:1, 2:3],
        "one pixel": x[1:, :, 4:5, 3:4],
    }[odd]
    found = way(quantize_image, image, norm=None, silu=True)
    expected = way(quantize_image, image.clone(memory_format=torch.contiguous_format), norm=None, silu=True)
    assert torch.equal(found[0], expected[0])
    assert found[1:] == expected[1:]


# --- the compiled core itself


def test_threads_change_nothing(core):
    rows, image, norm = normal(3000, 65), normal(1, 32, 70, 70), group_norm(32, 8)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            out = torch.empty(3000, 65)
            finish_rows_(out, rows.clone(), torch.ones(3000, 1), bias=None, gelu=True)
            codes, step, zero_point = quantize_image(image, norm=norm, silu=True)
            found.append([*quantize_rows(rows), out, codes, torch.tensor([step, zero_point], dtype=torch.float64)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


class TestTheCore:
    def rows(self, **changes):
        arguments = {
            "x": np.ones((3, 4), dtype=np.float32),
            "codes": np.zeros((3, 4), dtype=np.uint8),
            "steps": np.zeros(3, dtype=np.float32),
            "level": "portable",
            "num_threads": 1,
        }
        return arguments | changes

    def sums(self, **changes):
        arguments = {
            "sums": np.ones((3, 4), dtype=np.float32),
            "steps": np.ones(3, dtype=np.float32),
            "bias": np.ones(4, dtype=np.float32),
            "gelu": False,
            "out": np.zeros((3, 4), dtype=np.float32),
            "level": "portable",
            "num_threads": 1,
        }
        return arguments | changes

    def image(self, **changes):
        arguments = {
            "x": np.arange(12, dtype=np.float32).reshape(3, 4),
            "codes": np.zeros((3, 4), dtype=np.uint8),
            "groups": 2,
            "weight": np.ones(4, dtype=np.float32),
            "bias": np.ones(4, dtype=np.float32),
            "eps": 1e-6,
            "silu": True,
            "level": "portable",
            "num_threads": 1,
        }
        return arguments | changes

    def test_it_takes_good_arguments(self, core):
        assert core.available_int8()[0] == "portable"
        fixed = np.ones((3, 4), dtype=np.float32)
        fixed.flags.writeable = False
        for level in core.available_int8():
            rows, sums = self.rows(x=fixed, level=level), self.sums(bias=None, level=level)
            core.quantize_rows(**rows)
            core.finish_rows(**sums)
            assert (rows["codes"] == 255).all()
            assert (sums["out"] == 1).all()
            core.quantize_image(**self.image(level=level))
            plain = self.image(groups=0, weight=None, bias=None, silu=False, level=level)
            step, zero_point = core.quantize_image(**plain)
            assert (step, zero_point) == (pytest.approx(11 / 255), 0)
        inputs = [np.ones((3, 4)), np.ones((3, 4), dtype=np.float16), np.ones((3, 4), dtype=np.int16)]
        for wrong in inputs:
            with pytest.raises(ValueError, match="expected float32, or bfloat16 as uint16"):
                core.quantize_rows(**self.rows(x=wrong))

    @pytest.mark.parametrize(
        ("call", "changes"),
        [
            ("rows", {"codes": np.zeros((3, 5), dtype=np.uint8)}),
            ("rows", {"steps": np.zeros(4, dtype=np.float32)}),
            ("rows", {"level": "neon"}),
            ("sums", {"out": np.zeros((4, 3), dtype=np.float32)}),
            ("sums", {"out": np.zeros((3, 4))}),
            ("sums", {"steps": np.ones(2, dtype=np.float32)}),
            ("sums", {"bias": np.ones(3, dtype=np.float32)}),
            ("sums", {"level": ""}),
            ("image", {"codes": np.zeros((2, 4), dtype=np.uint8)}),
            ("image", {"groups": 3}),
            ("image", {"weight": None}),
            ("image", {"bias": np.ones(2, dtype=np.float32)}),
            ("image", {"level": "neon"}),
        ],
    )
    def test_it_refuses_bad_ones(self, core, call, changes):
        function = {"rows": core.quantize_rows, "sums": core.finish_rows, "image": core.quantize_image}[call]
        with pytest.raises(ValueError, match=r"expected|cannot run"):
            function(**getattr(self, call)(**changes))

    @pytest.mark.parametrize(
        ("call", "changes"),
        [
            ("rows", {"codes": np.zeros((3, 8), dtype=np.uint8)[:, ::2]}),
            ("rows", {"codes": np.zeros((3, 4), dtype=np.int32)}),
            ("rows", {"steps": np.zeros(3)}),
            ("rows", {"steps": np.zeros(6, dtype=np.float32)[::2]}),
            ("sums", {"out": np.zeros((3, 8), dtype=np.float32)[:, ::2]}),
            ("image", {"codes": np.zeros((4, 3), dtype=np.uint8).T}),
        ],
    )
    def test_it_never_fills_a_copy(self, core, call, changes):
        function = {"rows": core.quantize_rows, "sums": core.finish_rows, "image": core.quantize_image}[call]
        with pytest.raises(TypeError, match="incompatible function arguments"):
            function(**getattr(self, call)(**changes))
