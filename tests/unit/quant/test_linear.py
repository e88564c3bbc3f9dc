import copy
import io
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, ConfigError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.quant import (  # noqa: E402
    FakeQuantLinear,
    Int8Linear,
    QuantSpec,
    available_kernels,
    fake_quantize,
    find_params,
    integer_matmul,
    quantize,
)
from sparing.quant import linear as linear_module  # noqa: E402
from sparing.quant.kernels import has_onednn_convolution, pack_weight, unpack_weight  # noqa: E402

KERNELS = available_kernels()
TOKEN = QuantSpec(bits=8, granularity="token")
CHANNEL = QuantSpec(bits=8, granularity="channel")


def linear(width=96, out=40, *, bias=True, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(width, out, bias=bias)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact_output(layer, x):
    """Integer products in NumPy int64; both steps and the bias in float64."""
    params = find_params(x.float(), TOKEN)
    codes = quantize(x.float(), params, spec=TOKEN).numpy().astype(np.int64)
    products = codes @ layer.plain_codes().numpy().astype(np.int64).T
    steps = params.scale.numpy().astype(np.float64).reshape(*x.shape[:-1], 1)
    bias = 0 if layer.bias is None else layer.bias.numpy().astype(np.float64)
    return products * layer.weight_scale.numpy().astype(np.float64) * steps + bias


def test_kernels_are_in_order():
    assert KERNELS[-1] == "plain"
    assert set(KERNELS) <= {"onednn", "int_mm", "plain"}
    assert available_kernels("meta") == ("plain",)
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512") and torch.cpu._is_vnni_supported():
        # All others are tested with what was found here: nothing found would be noticed nowhere else.
        assert KERNELS == ("onednn", "int_mm", "plain")
        assert has_onednn_convolution()


_PROBES = """
import torch
from sparing.quant import available_kernels
from sparing.quant.kernels import has_onednn_convolution
found = [torch.autocast("cpu", torch.bfloat16), torch.device("meta")]
with found[int({number})] if {number} < 2 else torch.no_grad():
    if {number} == 2:
        torch.set_default_dtype(torch.float64)
    print(available_kernels(), has_onednn_convolution())
"""


@pytest.mark.parametrize("number", [0, 1, 2])
def test_kernels_are_found_under_autocast_and_other_defaults_too(number):
    found = subprocess.run(
        [sys.executable, "-c", _PROBES.format(number=number)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == f"{KERNELS} {has_onednn_convolution()}"


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_and_defaults_change_nothing(kernel):
    layer = Int8Linear.from_linear(linear(), kernel=kernel, dtype=torch.float32)
    x = normal(5, 96)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
    with torch.device("meta"):
        assert torch.equal(layer(x), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(layer(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    a, b = torch.full((3, 2000), 127, dtype=torch.int8), torch.full((2, 2000), 126, dtype=torch.int8)
    with torch.autocast("cpu", torch.bfloat16):
        assert integer_matmul(a, b, kernel="plain").unique().tolist() == [127 * 126 * 2000]


def test_what_int32_cannot_hold_is_refused():
    a = torch.full((1, 133_145), 127, dtype=torch.int8)
    with pytest.raises(ShapeError, match="a: expected at most 133,144 columns, whose sums int32 holds, got 133,145"):
        integer_matmul(a, a)
    assert integer_matmul(a[:, 1:], a[:, 1:]).item() == 127**2 * 133_144


def test_a_range_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="range"):
        Int8Linear.from_linear(linear(), range="msee")


@pytest.mark.parametrize("step", [1e-60, 1e300])
def test_steps_that_float32_does_not_hold_are_refused(step):
    codes = torch.ones(2, 3, dtype=torch.int8)
    with pytest.raises((ArgumentError, NonFiniteError), match="weight_scale"):
        Int8Linear(codes, torch.full((2,), step, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 7, 64, 1023, 1025, 2100]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_integer_products_are_exact(m, n, k, is_extreme, seed):
    rng = np.random.default_rng(seed)
    draw = (lambda *shape: rng.choice([-127, 127], shape)) if is_extreme else (lambda *s: rng.integers(-127, 128, s))
    a, b = draw(m, k).astype(np.int8), draw(n, k).astype(np.int8)
    if is_extreme:
        b[0] = a[0]
    expected = a.astype(np.int64) @ b.astype(np.int64).T
    for kernel in ("auto", *(name for name in KERNELS if name != "onednn")):
        found = integer_matmul(torch.from_numpy(a), torch.from_numpy(b), kernel=kernel)
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found, expected)


def test_integer_products_of_odd_strides():
    generator = torch.Generator().manual_seed(0)
    for m, n, k in ((1, 5, 6), (4, 1, 6), (1, 1, 6), (4, 5, 1), (1, 1, 1)):
        a, b = (torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator) for shape in ((m, k), (n, k)))
        expected = a.long() @ b.long().T
        for a_strides in ((k, 1), (1, m), (0, 1) if m == 1 else (k, 1)):
            odd = torch.empty_strided((m, k), a_strides, dtype=torch.int8).copy_(a)
            flipped = b.t().contiguous().t()
            for second in (b, flipped):
                assert torch.equal(integer_matmul(odd, second).long(), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_of_odd_strides(kernel):
    layer = Int8Linear.from_linear(linear(), kernel=kernel)
    x = normal(96, 6)
    assert torch.equal(layer(x.t()), layer(x.t().contiguous()))
    one = x[:, :1].t()
    assert torch.equal(layer(one), layer(one.clone(memory_format=torch.contiguous_format)))
    assert torch.equal(layer(one.expand(4, 96)), layer(one.repeat(4, 1)))
    assert torch.equal(layer(one.as_strided((1, 96), (0, 6))), layer(one))


@pytest.mark.skipif("onednn" not in KERNELS, reason="needs AVX-512")
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (40, 600), (130, 1025)])
def test_packed_weights_come_back(shape):
    codes = torch.randint(-127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_weight(pack_weight(codes)), codes)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "width", "out"), [((1, 96), 96, 40), ((2, 9, 33), 33, 17), ((70, 1030), 1030, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_integer_arithmetic_rounded_once(kernel, dtype, shape, width, out, bias):
    layer = Int8Linear.from_linear(linear(width, out, bias=bias), kernel=kernel)
    x = (normal(*shape) * torch.logspace(-3, 3, shape[-2])[:, None]).to(dtype)
    before = x.clone()
    found = layer(x)
    assert torch.equal(x, before)
    assert found.dtype == dtype
    assert found.shape == (*shape[:-1], out)
    expected = exact_output(layer, x)
    # Half a unit of the output's last place, and a few of float32's before the bias cancels any of it.
    size = np.abs(expected) + (0 if layer.bias is None else 2 * layer.bias.abs().numpy())
    allowed = np.abs(expected) * torch.finfo(dtype).eps / 2 + 4 * 2**-24 * size
    assert (np.abs(found.double().numpy() - expected) <= allowed).all()


def test_all_kernels_agree_bit_for_bit_and_with_the_float_layer():
    x = normal(50, 512)
    float_layer = linear(512, 256)
    found = [Int8Linear.from_linear(float_layer, kernel=kernel)(x) for kernel in KERNELS]
    assert all(torch.equal(found[0], other) for other in found[1:])
    expected = float_layer(x).detach()
    assert float((found[0] - expected).norm() / expected.norm()) < 0.015
    back = Int8Linear.from_linear(float_layer).to_linear()
    torch.testing.assert_close(back.weight, fake_quantize(float_layer.weight, CHANNEL).clone(), check_stride=False)
    assert torch.equal(back.bias, float_layer.bias)
    assert back(x).requires_grad


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gelu_is_that_of_the_output_in_float32(kernel, dtype):
    x = 8 * normal(3, 11, 96)
    wide = Int8Linear.from_linear(linear(), dtype=torch.float32, kernel=kernel)(x)
    layer = Int8Linear.from_linear(linear(), gelu=True, dtype=dtype, kernel=kernel)
    found, expected = layer(x), nn.functional.gelu(wide.double(), approximate="tanh")
    assert (found.dtype, found.shape) == (dtype, (3, 11, 40))
    assert wide.min() < -4
    allowed = expected.abs() * (torch.finfo(dtype).eps / 2 + 2e-5) + 1e-6
    assert ((found.double() - expected).abs() <= allowed).all()
    assert "gelu=True" in repr(layer)
    assert torch.equal(copy.deepcopy(layer)(x), found)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("gelu", [False, True])
def test_rows_in_pieces_are_rows_in_one(monkeypatch, kernel, gelu):
    layer = Int8Linear.from_linear(linear(), gelu=gelu, dtype=torch.bfloat16, kernel=kernel)
    x = normal(5, 20, 96)
    whole = layer(x)
    monkeypatch.setattr(linear_module, "_FEWEST_ROWS", 1)
    for sums in (1, 7 * 40, 50 * 40, 99 * 40):
        monkeypatch.setattr(linear_module, "_SUMS_AT_ONCE", sums)
        assert torch.equal(layer(x), whole)
    assert torch.equal(layer(x[:1]), whole[:1])
    assert layer(x[:0]).shape == (0, 20, 40)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own imports
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_compiled_layer_gives_the_same(backend, gelu):
    # The kernel that the class names for it; the core and oneDNN's own weights are nothing to trace through.
    kernel = "int_mm" if "int_mm" in KERNELS else "plain"
    layer = Int8Linear.from_linear(linear(), gelu=gelu, dtype=torch.bfloat16, kernel=kernel)
    x = normal(5, 96)
    expected = layer(x)
    try:
        found = torch.compile(layer, backend=backend, fullgraph=True)(x)
    finally:
        torch.compiler.reset()
    torch.testing.assert_close(found, expected)


def test_output_dtype_is_chosen_or_follows_the_input():
    layer = Int8Linear.from_linear(linear(), dtype=torch.bfloat16)
    assert layer(normal(3, 96)).dtype == torch.bfloat16
    assert Int8Linear.from_linear(linear())(normal(3, 96).half()).dtype == torch.float16
    assert Int8Linear.from_linear(linear().bfloat16())(normal(3, 96).double()).dtype == torch.float64


def test_zero_tiny_and_no_rows():
    layer = Int8Linear.from_linear(linear())
    x = torch.stack([torch.zeros(96), torch.full((96,), 1e-40), torch.ones(96)])
    found = layer(x)
    assert torch.equal(found[0], layer.bias)
    torch.testing.assert_close(found[1], layer.bias)
    assert layer(x[:0]).shape == (0, 40)
    assert layer(torch.empty(2, 0, 96)).shape == (2, 0, 40)
    assert layer(x[0]).shape == (40,)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_that_is_not_finite_stays_so_and_stays_alone(bad, kernel):
    layer = Int8Linear.from_linear(linear(), kernel=kernel)
    x = normal(3, 96)
    clean = layer(x)
    x[1, 5] = bad
    found = layer(x)
    assert not torch.isfinite(found[1]).any()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


def test_saved_copied_and_moved_layers_give_the_same_bytes():
    layer = Int8Linear.from_linear(linear())
    x = normal(4, 96)
    codes = layer.plain_codes().clone()
    expected = layer(x)
    assert torch.equal(layer.plain_codes(), codes)
    state = layer.state_dict()
    assert {name: (value.dtype, value.shape) for name, value in state.items()} == {
        "weight_codes": (torch.int8, (40, 96)),
        "weight_scale": (torch.float32, (40,)),
        "bias": (torch.float32, (40,)),
    }
    assert torch.equal(state["weight_codes"], codes)
    other = Int8Linear.from_linear(linear(seed=1))
    assert not torch.equal(other(x), expected)
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), expected)
    layer.to(torch.bfloat16)
    assert layer.weight_scale.dtype == layer.bias.dtype == torch.float32
    assert torch.equal(layer(x), expected)
    assert layer.to("meta").weight_codes.is_meta


def test_a_packed_layer_holds_one_copy():
    layer = Int8Linear.from_linear(linear(bias=False))
    layer(normal(2, 96))
    assert layer.num_bytes == 40 * 96 + 40 * 4
    if KERNELS[0] == "onednn":
        assert layer.weight_codes is None
    layer.unpack_()
    assert layer.weight_codes.shape == (40, 96)
    assert "in_features=96, out_features=40, bias=False" in repr(layer)


def test_threads_may_share_a_layer(four_at_once):
    x = normal(8, 96)
    expected = Int8Linear.from_linear(linear())(x)
    for _ in range(20):
        layer = Int8Linear.from_linear(linear())
        assert all(torch.equal(result, expected) for result in four_at_once(lambda layer=layer: layer(x)))


def test_bad_int8_arguments():
    layer = Int8Linear.from_linear(linear())
    with pytest.raises(ShapeError, match=r"expected shape \(\.\.\., 96\), got \(2, 95\)"):
        layer(torch.ones(2, 95))
    with pytest.raises(DtypeError, match="input: expected a floating"):
        layer(torch.ones(2, 96, dtype=torch.int8))
    with pytest.raises(DtypeError, match="Linear"):
        Int8Linear.from_linear(nn.ReLU())
    with pytest.raises(ArgumentError, match="kernel"):
        Int8Linear.from_linear(linear(), kernel="fast")
    with pytest.raises(DtypeError, match="dtype"):
        Int8Linear.from_linear(linear(), dtype=torch.int8)
    broken = linear()
    broken.weight.data[3, 4] = float("nan")
    with pytest.raises(NonFiniteError):
        Int8Linear.from_linear(broken)
    codes, scale = torch.ones(3, 4, dtype=torch.int8), torch.ones(3)
    with pytest.raises(DtypeError, match="int8"):
        Int8Linear(codes.int(), scale)
    with pytest.raises(ArgumentError, match="-128"):
        Int8Linear(codes * -128, scale)
    with pytest.raises(ArgumentError, match="> 0"):
        Int8Linear(codes, scale * 0)
    with pytest.raises(ShapeError, match="weight_scale"):
        Int8Linear(codes, scale[:2])
    with pytest.raises(ShapeError, match="bias"):
        Int8Linear(codes, scale, bias=scale[:2])
    with pytest.raises(ShapeError, match="matrix"):
        Int8Linear(codes[0], scale)
    for a, b, error in (
        (codes.int(), codes, DtypeError),
        (codes[0], codes, ShapeError),
        (codes, codes[:, 1:], ShapeError),
    ):
        with pytest.raises(error):
            integer_matmul(a, b)
    with pytest.raises(ArgumentError, match="kernel"):
        integer_matmul(codes, codes, kernel="onednn")


def test_simulated_layer_is_rounding_then_a_float_layer():
    float_layer, x = linear(), normal(2, 5, 96)
    weight_spec = QuantSpec(bits=4, granularity="group", group_size=32, range="mse")
    input_spec = QuantSpec(bits=4, granularity="token", format="dual_sqrt")
    layer = FakeQuantLinear.from_linear(float_layer, weight_spec=weight_spec, input_spec=input_spec)
    expected = nn.functional.linear(
        fake_quantize(x, input_spec), fake_quantize(float_layer.weight, weight_spec), float_layer.bias
    )
    assert torch.equal(layer(x), expected)
    weight_only = FakeQuantLinear.from_linear(float_layer, weight_spec=weight_spec, input_spec=None)
    weight = fake_quantize(float_layer.weight, weight_spec)
    assert torch.equal(weight_only(x), nn.functional.linear(x, weight, float_layer.bias))
    assert torch.equal(FakeQuantLinear.from_linear(float_layer, weight_spec=None, input_spec=None)(x), float_layer(x))
    assert "weight=4-bit uniform a group, input=4-bit dual_sqrt a token" in repr(layer)
    assert layer(x[:0]).shape == (0, 5, 40)


def test_simulated_eight_bits_are_the_real_ones():
    float_layer, x = linear(), normal(20, 96)
    layer = FakeQuantLinear.from_linear(float_layer, weight_spec=CHANNEL, input_spec=TOKEN)
    torch.testing.assert_close(layer(x), Int8Linear.from_linear(float_layer)(x), rtol=1e-5, atol=1e-5)


def test_a_simulation_can_be_undone_and_saved():
    float_layer, x = linear(), normal(3, 96)
    before = float_layer.weight.detach().clone()
    spec = QuantSpec(bits=3, granularity="channel")
    layer = FakeQuantLinear.from_linear(float_layer, weight_spec=spec, input_spec=None)
    back = layer.to_linear()
    assert torch.equal(back.weight, before)
    assert torch.equal(back(x), float_layer(x))
    assert list(layer.state_dict()) == ["weight", "quantized_weight", "bias"]
    assert not list(layer.parameters())
    other = FakeQuantLinear.from_linear(linear(seed=1), weight_spec=spec, input_spec=None)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    given = FakeQuantLinear.from_linear(float_layer, weight_spec=spec, input_spec=None, quantized_weight=before * 0)
    assert torch.equal(given(x), float_layer.bias.detach().expand(3, 40))


def test_bad_simulation_arguments():
    spec = QuantSpec(bits=4, granularity="channel")
    with pytest.raises(ConfigError, match="no tokens"):
        FakeQuantLinear.from_linear(linear(), weight_spec=TOKEN, input_spec=None)
    with pytest.raises(ConfigError, match="for weights"):
        FakeQuantLinear.from_linear(linear(), weight_spec=None, input_spec=spec)
    with pytest.raises(ShapeError, match="quantized_weight"):
        FakeQuantLinear.from_linear(linear(), weight_spec=spec, input_spec=None, quantized_weight=torch.ones(2, 2))
    with pytest.raises(DtypeError, match="Linear"):
        FakeQuantLinear.from_linear(nn.ReLU(), weight_spec=spec, input_spec=None)
    with pytest.raises(ShapeError, match="bias"):
        FakeQuantLinear(torch.ones(2, 3), torch.ones(3), weight_spec=None, input_spec=None)
    with pytest.raises(ShapeError, match="2 axes"):
        FakeQuantLinear(torch.ones(3), None, weight_spec=None, input_spec=None)
    with pytest.raises(NonFiniteError):
        FakeQuantLinear(torch.ones(2, 3) * float("nan"), None, weight_spec=None, input_spec=None)
    layer = FakeQuantLinear.from_linear(linear(), weight_spec=spec, input_spec=TOKEN)
    with pytest.raises(ShapeError, match="input"):
        layer(torch.ones(2, 95))
    with pytest.raises(NonFiniteError):
        layer(torch.full((2, 96), float("inf")))
    layer.check = False
    layer(torch.full((2, 96), float("inf")))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize(("width", "out"), [(1024, 3072), (1030, 17), (5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_products_are_exact(rows, width, out, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert available_kernels("cuda")[0] == "int_mm"
    x = normal(rows, width).to(dtype)
    layer = Int8Linear.from_linear(linear(width, out), kernel="auto")
    expected = layer(x)
    layer.cuda()
    torch.testing.assert_close(layer(x.cuda()).cpu(), expected, rtol=max(torch.finfo(dtype).eps, 1e-5), atol=1e-5)
    codes = torch.randint(-127, 128, (rows, width), dtype=torch.int8)
    products = [integer_matmul(codes.cuda(), layer.plain_codes(), kernel=kernel) for kernel in ("int_mm", "plain")]
    assert torch.equal(products[0], products[1])
    layer.cpu()
    assert torch.equal(layer(x), expected)
