import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.quant import QuantSpec, dequantize, find_params, gptq, quantize  # noqa: E402


def problem(rows=24, width=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(600, width, generator=generator) @ torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(rows, width, generator=generator), x, x.T @ x / len(x)


def output_error(weight, codes, params, spec, x):
    return float(((dequantize(codes, params, spec=spec) - weight) @ x.T).square().sum())


def by_elimination(weight, moment, params, spec, damping):
    """Optimal brain quantization in a fixed order: after each column, it leaves the inverse by Gaussian elimination."""
    w, h = weight.double().numpy().copy(), moment.double().numpy()
    h = h + damping * h.diagonal().mean() * np.eye(len(h))
    inverse = np.linalg.inv(h)
    scale = params.scale.double().numpy()[:, 0]
    codes = np.zeros_like(w)
    for j in range(len(h)):
        codes[:, j] = np.clip(np.round(w[:, j] / scale), spec.code_min, spec.code_max)
        error = (w[:, j] - codes[:, j] * scale) / inverse[j, j]
        w -= np.outer(error, inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def test_equals_step_by_step_elimination():
    weight, _, moment = problem()
    spec = QuantSpec(bits=4, granularity="channel")
    codes, params = gptq(weight, moment, spec=spec, damping=0.05, sort_columns=False)
    np.testing.assert_array_equal(codes, by_elimination(weight, moment, params, spec, 0.05))


@pytest.mark.parametrize(
    "choices",
    [
        {"bits": 3, "granularity": "channel"},
        {"bits": 4, "granularity": "channel", "range": "mse"},
        {"bits": 4, "granularity": "group", "group_size": 50, "symmetric": False},
        {"bits": 2},
        {"bits": 4, "granularity": "channel", "format": "dual_range"},
    ],
)
@pytest.mark.parametrize("sort_columns", [True, False])
def test_output_error_is_well_below_plain_rounding(choices, sort_columns):
    weight, x, moment = problem()
    spec = QuantSpec(**choices)
    codes, params = gptq(weight, moment, spec=spec, sort_columns=sort_columns)
    assert codes.dtype == spec.code_dtype
    plain = find_params(weight, spec)
    assert torch.equal(params.scale, plain.scale)
    before = output_error(weight, quantize(weight, plain, spec=spec), plain, spec, x)
    assert output_error(weight, codes, params, spec, x) < 0.7 * before


def test_uncorrelated_inputs_leave_plain_rounding():
    weight = problem()[0]
    spec = QuantSpec(bits=4, granularity="channel")
    codes, params = gptq(weight, torch.eye(150) * 3, spec=spec)
    assert torch.equal(codes, quantize(weight, params, spec=spec))


def test_inputs_that_are_always_zero_or_fewer_than_columns():
    weight, x, _ = problem()
    x = x[:40].clone()
    x[:, ::7] = 0
    spec = QuantSpec(bits=4, granularity="channel")
    codes, params = gptq(weight, x.T @ x / 40, spec=spec)
    before = output_error(weight, quantize(weight, params, spec=spec), params, spec, x)
    assert output_error(weight, codes, params, spec, x) < 0.3 * before
    codes, params = gptq(weight, torch.zeros(150, 150), spec=spec)
    assert torch.equal(codes, quantize(weight, params, spec=spec))


def test_bad_arguments():
    weight, _, moment = problem(width=20)
    spec = QuantSpec(bits=4, granularity="channel")
    with pytest.raises(ShapeError, match=r"second_moment: expected shape \(20, 20\)"):
        gptq(weight, moment[:3], spec=spec)
    with pytest.raises(ShapeError, match="weight"):
        gptq(weight[0], moment, spec=spec)
    with pytest.raises(ArgumentError, match="tokens"):
        gptq(weight, moment, spec=QuantSpec(granularity="token"))
    with pytest.raises(ArgumentError, match="damping"):
        gptq(weight, moment, spec=spec, damping=0)
    with pytest.raises(ArgumentError, match="symmetric"):
        gptq(weight, moment + torch.ones(20, 20).triu(1), spec=spec)
    with pytest.raises(ArgumentError, match="positive definite"):
        gptq(weight, moment - 9 * torch.eye(20), spec=spec)
    with pytest.raises(NonFiniteError, match="second_moment"):
        gptq(weight, moment * float("nan"), spec=spec)
    with pytest.raises(DtypeError, match="weight"):
        gptq(weight.int(), moment, spec=spec)
