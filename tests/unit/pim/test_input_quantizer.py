"""Rounding inputs: codes by hand, ranges that follow, gradients, state."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError, DtypeError  # noqa: E402
from sparing.pim.input_quantizer import InputQuantizer  # noqa: E402


def observed(bits, *batches, **options):
    quantizer = InputQuantizer(bits, **options).eval()
    quantizer.observing = True
    for batch in batches:
        assert quantizer(batch) is batch
    quantizer.observing = False
    return quantizer


def test_codes_by_hand():
    quantizer = observed(3, torch.tensor([0.0, 6.0]))
    assert float(quantizer.step) == 2
    x = torch.tensor([-100.0, -8.9, -8.0, -3.1, -2.9, 0.0, 1.1, 6.9, 100.0])
    assert quantizer.codes(x).tolist() == [-4, -4, -4, -2, -1, 0, 1, 3, 3]
    assert quantizer(x).tolist() == [-8, -8, -8, -4, -2, 0, 2, 6, 6]
    # The lowest code reaches further than the highest.
    assert float(observed(3, torch.tensor([-8.0, 6.0])).step) == 2
    assert float(observed(3, torch.tensor([-12.0, 6.0])).step) == 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 16), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_rounded_inputs_are_near(seed, bits, dtype):
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    quantizer = observed(bits, x)
    rounded, codes = quantizer(x), quantizer.codes(x)
    assert rounded.dtype == dtype
    assert codes.dtype == torch.int16
    assert rounded.shape == codes.shape == x.shape
    assert int(codes.min()) >= -(2 ** (bits - 1))
    assert int(codes.max()) <= 2 ** (bits - 1) - 1
    slack = float(x.abs().max()) * torch.finfo(dtype if dtype == torch.bfloat16 else torch.float32).eps
    assert float((rounded - x).abs().max()) <= float(quantizer.step) / 2 + slack
    assert torch.equal(rounded, (codes * quantizer.step.to(torch.promote_types(dtype, torch.float32))).to(dtype))


def test_gradients_pass_but_where_values_are_clipped():
    quantizer = observed(4, torch.tensor([7.0]))
    x = torch.tensor([-20.0, -8.0, -1.3, 0.4, 7.4, 7.6]).requires_grad_()
    (quantizer(x) * torch.arange(1.0, 7)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_maps_are_rounded_part_by_part(monkeypatch, dtype, layout):
    monkeypatch.setattr("sparing.pim.input_quantizer._PART", 3 * 5 * 7 * 2)
    generator = torch.Generator().manual_seed(0)
    x, slope = torch.randn(2, 11, 3, 5, 7, generator=generator).to(dtype)
    x[4, 1, 2, 3] = 50.0
    x = x.contiguous(memory_format=layout).requires_grad_()
    quantizer = observed(4, torch.tensor([2.1]))
    rounded = quantizer(x)
    rounded.backward(slope)
    codes = quantizer.codes(x)
    wide = torch.promote_types(dtype, torch.float32)
    assert torch.equal(rounded, (codes * quantizer.step.to(wide)).to(dtype))
    assert rounded.stride() == x.stride()
    inside = (x.to(wide) / quantizer.step).round().clamp(-8, 7) == (x.to(wide) / quantizer.step).round()
    assert not inside.all()
    assert torch.equal(x.grad, slope * inside)
    assert quantizer(torch.empty(0, 3, 5, 7)).shape == (0, 3, 5, 7)


def test_gradients_can_be_differentiated_again():
    x = torch.tensor([-20.0, 1.3, 2.6]).requires_grad_()
    (slope,) = torch.autograd.grad(observed(4, torch.tensor([7.0]))(x).square().sum(), x, create_graph=True)
    slope.sum().backward()
    assert x.grad.tolist() == [0, 2, 2]


def test_calibration_takes_the_largest_and_training_a_moving_average():
    batches = [torch.tensor([0.0, n]) for n in (7.0, 14.0, 3.5)]
    assert float(observed(4, *batches).step) == 2
    quantizer = InputQuantizer(4)
    steps = []
    for batch in batches:
        quantizer(batch)
        steps.append(float(quantizer.step))
    assert steps == pytest.approx([1, 1.1, 1.04])
    quantizer.eval()(batches[1])
    assert float(quantizer.step) == pytest.approx(1.04)
    assert int(quantizer.calls) == 3


def test_percentiles():
    x = torch.arange(1.0, 1001)
    assert float(observed(4, x, percentile=90).step) == pytest.approx(900 / 7)
    assert float(observed(4, -x, percentile=99).step) == pytest.approx(990 / 7)
    large = torch.arange(300_000.0)
    assert float(observed(4, large, percentile=50).step) == pytest.approx(150_000 / 7, rel=1e-3)


@pytest.mark.parametrize("shape", [(1024, 512), (128, 16, 32, 32), (96, 3, 50, 50), (2048, 7, 64)])
def test_percentiles_see_every_place_of_every_axis(shape):
    for axis in range(1, len(shape)):
        for place in {0, 1, shape[axis] // 2, shape[axis] - 1}:
            x = torch.ones(shape)
            x.select(axis, place).fill_(64.0)
            share = 100 / shape[axis]
            for percentile, expected in ((100 - share / 2, 64), (100 - share * 2, 1)):
                assert float(observed(8, x, percentile=max(50, percentile)).step) * 127 == pytest.approx(expected)


def test_zeros_stay_zeros():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        quantizer = observed(4, torch.zeros(5)).to(dtype)
        assert quantizer(torch.zeros(5, dtype=dtype)).tolist() == [0] * 5


def test_the_step_is_float32_in_a_model_of_any_dtype():
    quantizer = observed(6, torch.tensor([0.3]))
    before = quantizer.step.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        quantizer.to(dtype)
        assert quantizer.step.dtype == torch.float32
        assert torch.equal(quantizer.step, before)
    quantizer.bfloat16().train()(torch.ones(3, dtype=torch.bfloat16))
    assert float(quantizer.step) > float(before)
    assert InputQuantizer(4, device=torch.device("meta")).to_empty(device="cpu").step.device.type == "cpu"


def test_an_empty_batch_says_nothing_of_the_range():
    for percentile in (100, 99):
        quantizer = observed(4, torch.ones(2), percentile=percentile).train()
        before = quantizer.step.clone()
        assert quantizer(torch.empty(0, 3)).shape == (0, 3)
        assert torch.equal(quantizer.step, before)
        assert int(quantizer.calls) == 1
    with pytest.raises(ArgumentError, match="no range yet"):
        InputQuantizer(4)(torch.empty(0, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_without_gradients_the_same_bits(dtype):
    quantizer = observed(4, torch.tensor([2.1]))
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype) * 2
    assert torch.equal(quantizer(x), quantizer(x.clone().requires_grad_()).detach())


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_graphs_depend_on_their_input():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), observed(4, torch.tensor([2.1])), torch.nn.Linear(4, 2)).eval()
    few, many = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (2, 5))
    assert torch.equal(torch.jit.trace(layers, few)(many), layers(many))
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(layers, (few,), dynamic_shapes=(batch,)).module()
    assert torch.equal(exported(many), layers(many))


def test_state_dict():
    quantizer = observed(5, torch.tensor([3.0]))
    other = InputQuantizer(5).eval()
    with pytest.raises(ArgumentError, match="no range yet"):
        other(torch.ones(2))
    with pytest.raises(ArgumentError, match="no range yet"):
        other.codes(torch.ones(2))
    other.load_state_dict(quantizer.state_dict())
    x = torch.randn(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(other(x), quantizer(x))
    other.forget_()
    with pytest.raises(ArgumentError, match="no range yet"):
        other(x)


def test_refusals():
    for bits in (1, 17):
        with pytest.raises(ArgumentError, match=f"bits: expected 2 to 16 for quantized inputs, got {bits}"):
            InputQuantizer(bits)
    for percentile in (49, 101, float("nan")):
        with pytest.raises(ArgumentError, match="percentile: expected 50 to 100"):
            InputQuantizer(8, percentile=percentile)
    with pytest.raises(DtypeError, match="floating"):
        observed(4, torch.ones(2))(torch.ones(2, dtype=torch.int64))
