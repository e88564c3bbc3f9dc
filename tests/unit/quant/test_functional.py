import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.quant import QuantParams, QuantSpec, dequantize, fake_quantize, find_params, quantize  # noqa: E402

FLOATS = st.floats(-1e6, 1e6, width=32)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.sampled_from([4, 8, 12])), elements=FLOATS)
FORMATS = [{}, {"symmetric": False}, {"format": "dual_range"}, {"format": "dual_sqrt"}]
GRANULARITIES = [
    {"granularity": "tensor"},
    {"granularity": "channel"},
    {"granularity": "token"},
    {"granularity": "group", "group_size": 4},
]


def specs(**fixed):
    return st.builds(
        lambda bits, form, granularity: QuantSpec(**({"bits": bits} | form | granularity | fixed)),
        st.integers(2, 16),
        st.sampled_from(FORMATS),
        st.sampled_from(GRANULARITIES),
    )


def row_scales(params, spec, shape):
    """The steps as arrays of the tensor's shape, from the definition of each granularity alone."""
    width = {"tensor": np.prod(shape), "channel": np.prod(shape[1:]), "token": shape[-1], "group": spec.group_size}
    spread = lambda part: np.repeat(part.numpy(), int(width[spec.granularity]), axis=1).reshape(shape)  # noqa: E731
    parts = (params.scale, params.zero_point, params.negative_scale)
    return [None if part is None else spread(part).astype(np.float64) for part in parts]


def by_hand(codes, params, spec, shape):
    """Values of codes in float64, by the formats' definitions."""
    scale, zero, negative = row_scales(params, spec, shape)
    codes = codes.numpy().astype(np.int64)
    if spec.format == "uniform":
        return (codes - (0 if zero is None else zero)) * scale
    return np.where(
        codes < 0, codes * (0 if negative is None else negative), codes ** (1 + (spec.format == "dual_sqrt")) * scale
    )


def test_symmetric_cells_by_hand():
    x = torch.tensor([[-7.0, 0.49, 0.51, 2.5, 3.5], [0.0, 14.0, -3.1, 1.0, -13.0]])
    spec = QuantSpec(bits=4, granularity="token")
    params = find_params(x, spec)
    assert params.scale.tolist() == [[1.0], [2.0]]
    # Halves go to the even code.
    assert quantize(x, params, spec=spec).tolist() == [[-7, 0, 1, 2, 4], [0, 7, -2, 0, -6]]


def test_zero_point_by_hand():
    x = torch.tensor([-2.0, 0.0, 13.0, 4.6])
    spec = QuantSpec(bits=4, symmetric=False)
    params = find_params(x, spec)
    assert (params.scale.item(), params.zero_point.item()) == (1.0, 2)
    assert quantize(x, params, spec=spec).tolist() == [0, 2, 15, 7]
    assert fake_quantize(x, spec).tolist() == [-2.0, 0.0, 13.0, 5.0]


def test_dual_range_by_hand():
    x = torch.tensor([-0.16, -0.05, 0.0, 0.4, 7.0])
    spec = QuantSpec(bits=4, format="dual_range")
    params = find_params(x, spec)
    assert params.scale.item() == 1.0
    assert params.negative_scale.item() == pytest.approx(0.02)
    assert quantize(x, params, spec=spec).tolist() == [-8, -2, 0, 0, 7]


def test_dual_sqrt_rounds_to_the_nearest_square():
    x = torch.tensor([169.0, 0.49, 0.51, 2.49, 2.51, 156.4, 156.6, 100.0, -0.2, -0.06, -0.04])
    spec = QuantSpec(bits=4, format="dual_sqrt")
    params = find_params(x, spec)
    assert (params.scale.item(), params.negative_scale.item()) == (1.0, pytest.approx(0.1))
    assert quantize(x, params, spec=spec).tolist() == [13, 0, 1, 1, 2, 12, 13, 10, -2, -1, 0]


def test_granularities_see_their_own_part():
    x = torch.arange(1.0, 25.0).reshape(2, 3, 4)
    tops = {
        "tensor": [24],
        "channel": [12, 24],
        "token": [4, 8, 12, 16, 20, 24],
        "group": [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24],
    }
    for granularity, top in tops.items():
        spec = QuantSpec(bits=8, granularity=granularity, group_size=2 if granularity == "group" else None)
        np.testing.assert_allclose(find_params(x, spec).scale[:, 0], np.array(top) / 127, rtol=1e-6)


def test_percentile_is_the_nearest_rank():
    x = torch.cat([torch.arange(1.0, 100.0), torch.tensor([1e6])])
    spec = QuantSpec(bits=8, symmetric=False, range="percentile", percentile=99)
    assert find_params(x, spec).scale.item() == pytest.approx(99 / 255)
    symmetric = QuantSpec(bits=8, range="percentile", percentile=99)
    assert find_params(-x, symmetric).scale.item() == pytest.approx(99 / 127)
    assert fake_quantize(x, spec)[-1].item() == pytest.approx(99)
    everything = QuantSpec(bits=8, range="percentile", percentile=100)
    assert torch.equal(find_params(x, everything).scale, find_params(x, QuantSpec(bits=8)).scale)


@settings(max_examples=150, deadline=None)
@given(MATRICES, specs())
def test_codes_are_nearest_and_round_trips_are_within_half_a_step(x, spec):
    tensor = torch.from_numpy(x)
    params = find_params(tensor, spec)
    codes = quantize(tensor, params, spec=spec)
    assert codes.dtype == spec.code_dtype
    assert codes.shape == tensor.shape
    assert codes.min() >= spec.code_min
    assert codes.max() <= spec.code_max
    values = dequantize(codes, params, spec=spec)
    expected = by_hand(codes, params, spec, x.shape)
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-37)
    scale, _, negative = row_scales(params, spec, x.shape)
    step = np.where(x < 0, scale if negative is None else negative, scale)
    if spec.format == "dual_sqrt":
        root = np.floor(np.sqrt(np.maximum(x, 0) / scale))
        step = np.where(x < 0, step, scale * (2 * root + 1))
    assert (np.abs(expected - x) <= step / 2 + 2e-6 * np.abs(x) + 2e-7 * np.abs(x).max()).all()
    # Values on the grid stay where they are.
    assert torch.equal(quantize(values, params, spec=spec), codes)
    assert torch.equal(fake_quantize(tensor, spec), values)


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.sampled_from(FORMATS), st.sampled_from(GRANULARITIES))
def test_zero_stays_zero(x, form, granularity):
    x[0, 0] = 0
    assert fake_quantize(torch.from_numpy(x), QuantSpec(bits=3, **form, **granularity))[0, 0] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(FORMATS), st.sampled_from(GRANULARITIES))
def test_more_bits_lower_the_error(seed, form, granularity):
    x = torch.nn.functional.gelu(torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)))
    errors = [
        float((fake_quantize(x, QuantSpec(bits=bits, **form, **granularity)) - x).square().sum())
        for bits in (2, 4, 6, 8, 10)
    ]
    assert errors == sorted(errors, reverse=True)


@settings(max_examples=60, deadline=None)
@given(MATRICES, specs(range="mse"), st.integers(0, 99))
def test_the_search_is_never_worse_than_the_extremes(x, spec, seed):
    tensor = torch.from_numpy(x)
    weights = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    extremes = fake_quantize(tensor, spec.model_copy(update={"range": "minmax"}))
    for weight in (None, weights):
        factor = 1 if weight is None else weight.double()
        error, before = (
            float(((q.double() - tensor.double()).square() * factor).sum())
            for q in (fake_quantize(tensor, spec, weights=weight), extremes)
        )
        assert error <= before * (1 + 1e-5) + 1e-30


def test_the_search_clips_an_outlier_and_heeds_weights():
    x = torch.linspace(-1, 1, 1001)
    x[0] = 1.6
    spec = QuantSpec(bits=3, range="mse")
    free = find_params(x, spec)
    heavy = torch.ones_like(x)
    heavy[0] = 1e6
    assert free.scale.item() < 1.2 / 3
    assert find_params(x, spec, weights=heavy).scale.item() * 3 == pytest.approx(1.6, rel=0.02)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_zero_constant_and_tiny_rows(form, method, dtype):
    spec = QuantSpec(bits=4, granularity="token", range=method, **form)
    smallest = torch.finfo(dtype).smallest_normal / 4
    rows = [torch.zeros(8), torch.full((8,), 3.0), torch.full((8,), -3.0), torch.full((8,), smallest), -torch.ones(8)]
    x = torch.stack([row.to(dtype) for row in rows])
    back = fake_quantize(x, spec)
    assert back.dtype == dtype
    assert torch.isfinite(back).all()
    assert not back[0].any()
    torch.testing.assert_close(back[[1, 2, 4]], x[[1, 2, 4]])
    assert (back[3].abs() <= 2 * smallest).all()


def test_the_largest_numbers_do_not_overflow():
    top = torch.finfo(torch.float32).max * 0.99
    for form in FORMATS:
        assert torch.isfinite(fake_quantize(torch.tensor([-top, top]), QuantSpec(bits=8, **form))).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_not_finite_is_refused(bad, method):
    x = torch.ones(3, 4)
    spec = QuantSpec(bits=4, granularity="token", range=method)
    params = find_params(x, spec)
    x[1, 2] = bad
    for call in (lambda: find_params(x, spec), lambda: fake_quantize(x, spec), lambda: quantize(x, params, spec=spec)):
        with pytest.raises(NonFiniteError, match="x: expected finite"):
            call()
    fake_quantize(x, spec, check=False)
    quantize(x, params, spec=spec, check=False)


def test_bad_arguments():
    spec = QuantSpec(bits=4, granularity="group", group_size=3)
    x = torch.ones(2, 4)
    with pytest.raises(ShapeError, match="multiple of group_size 3, got 4"):
        fake_quantize(x, spec)
    with pytest.raises(ShapeError, match="at least one element"):
        fake_quantize(x[:0], QuantSpec())
    with pytest.raises(ShapeError, match="scalar"):
        fake_quantize(x[0, 0], QuantSpec(granularity="token"))
    with pytest.raises(DtypeError, match=r"torch\.Tensor"):
        fake_quantize(x.numpy(), QuantSpec())
    with pytest.raises(DtypeError, match="floating"):
        fake_quantize(x.int(), QuantSpec())
    params = find_params(x, QuantSpec())
    with pytest.raises(ArgumentError, match="another spec"):
        quantize(x, params, spec=QuantSpec(symmetric=False))
    with pytest.raises(ArgumentError, match="another spec"):
        quantize(x, params, spec=QuantSpec(format="dual_range"))
    with pytest.raises(ShapeError, match=r"params\.scale: expected shape \(2, 1\)"):
        quantize(x, params, spec=QuantSpec(granularity="token"))
    with pytest.raises(DtypeError, match="integer"):
        dequantize(x, params, spec=QuantSpec())
    with pytest.raises(DtypeError, match="dtype"):
        dequantize(x.int(), params, spec=QuantSpec(), dtype=torch.int32)
    with pytest.raises(ArgumentError, match="only range 'mse'"):
        find_params(x, QuantSpec(), weights=x)
    with pytest.raises(ArgumentError, match=">= 0"):
        find_params(x, QuantSpec(range="mse"), weights=-x)
    with pytest.raises(ShapeError, match="weights"):
        find_params(x, QuantSpec(range="mse"), weights=x[0])


def test_inputs_are_left_alone():
    for form in FORMATS:
        for method in ("minmax", "percentile", "mse"):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
            before = x.detach().clone()
            assert not fake_quantize(x, QuantSpec(bits=4, range=method, granularity="token", **form)).requires_grad
            assert torch.equal(x, before)
    codes = torch.tensor([[-1, 2]], dtype=torch.int8)
    params = QuantParams(torch.ones(1, 1), negative_scale=torch.ones(1, 1))
    assert dequantize(codes, params, spec=QuantSpec(bits=4, format="dual_sqrt")).tolist() == [[-1.0, 4.0]]
    assert codes.tolist() == [[-1, 2]]


def test_formats_behind_gelu():
    """The order of the table in dual_range.py: each step up is worth more than a decibel at 4 bits."""
    generator = torch.Generator().manual_seed(0)
    mean, width = (
        torch.randn(1024, generator=generator) * 0.5 - 0.7,
        torch.randn(1024, generator=generator).mul(0.4).exp(),
    )
    width[::100] *= 6
    x = torch.randn(64, 1024, generator=generator) * width * 0.7 + mean
    x = torch.nn.functional.gelu(x, approximate="tanh")
    weight = torch.randn(1024, 128, generator=generator)

    def noise_db(**choices):
        error = (fake_quantize(x, QuantSpec(bits=4, granularity="token", **choices)) - x) @ weight
        return 10 * float((x @ weight).square().sum().div(error.square().sum()).log10())

    symmetric, eighth = noise_db(), noise_db(format="dual_range", negative_codes=2)
    assert symmetric + 1 < noise_db(format="dual_range") < eighth - 1
    assert eighth + 1 < noise_db(format="dual_sqrt")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_gives_the_same_codes(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for form in FORMATS:
        for method in ("minmax", "percentile", "mse"):
            spec = QuantSpec(bits=6, granularity="token", range=method, **form)
            params = find_params(x, spec)
            there = QuantParams(*(None if p is None else p.cuda() for p in vars(params).values()))
            codes = quantize(x.cuda(), there, spec=spec).cpu().int() - quantize(x, params, spec=spec).int()
            assert codes.abs().max() <= 1
            torch.testing.assert_close(fake_quantize(x.cuda(), spec).cpu(), fake_quantize(x, spec), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_float16_stays_finite(bits):
    spec = QuantSpec(bits=bits, symmetric=False, granularity="token")
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([-200.0, 10.0])
    x[:, 1] = torch.linspace(60_000, 65_504, 200)
    found = fake_quantize(x.half(), spec)
    assert found.dtype == torch.float16
    assert bool(found.isfinite().all())
    params = find_params(x, spec)
    assert bool(dequantize(quantize(x, params, spec=spec), params, spec=spec, dtype=torch.float16).isfinite().all())
