"""Int8Conv2d against integer arithmetic in NumPy, and against the layer that it was made from."""

import copy
import io
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.quant import Int8Conv2d, QuantSpec, conv, fake_quantize, rounding  # noqa: E402
from sparing.quant.kernels import has_onednn_convolution  # noqa: E402
from sparing.quant.rounding import quantize_image  # noqa: E402

KERNELS = ["onednn", "plain"] if has_onednn_convolution() else ["plain"]
# In, out, kernel, and what else there is.
SETTINGS = [
    (3, 5, 3, {"padding": 1}),
    (1, 1, 1, {}),
    (17, 33, 3, {"padding": 2, "dilation": 2}),
    (33, 7, 3, {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    (4, 6, 3, {"stride": 2, "padding": 1, "groups": 2}),
    (8, 16, 5, {"padding": 2, "groups": 8, "bias": False}),
    (4, 4, (1, 3), {"padding": (0, 1), "groups": 4}),
    (64, 32, 1, {"bias": False}),
]


def convolution(inputs=6, outputs=10, kernel=3, *, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(inputs, outputs, kernel, **{"padding": 1, **options})


def int8(*arguments, kernel="auto", dtype=None, **options):
    return Int8Conv2d.from_conv2d(convolution(*arguments, **options), kernel=kernel, dtype=dtype)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def group_norm(channels, groups=2):
    norm = nn.GroupNorm(groups, channels, eps=1e-6).requires_grad_(False)
    norm.weight.copy_(1 + 0.2 * normal(channels, seed=1))
    norm.bias.copy_(0.3 * normal(channels, seed=2))
    return norm


def exact_output(layer, image):
    """One image: codes times codes in int64; both steps and the bias in float64. Also the size of what is added up."""
    codes, step, zero_point = quantize_image(image, norm=None, silu=False)
    x = np.pad(codes[0].numpy().astype(np.int64) - zero_point, ((0, 0), *((p, p) for p in layer.padding)))
    weight = layer.plain_codes().numpy().astype(np.int64)
    size = [
        (x.shape[1 + a] - layer.dilation[a] * (layer.kernel_size[a] - 1) - 1) // layer.stride[a] + 1 for a in (0, 1)
    ]
    sums = np.zeros((len(weight), *size), dtype=np.int64)
    per_group = len(weight) // layer.groups
    for o, (i, j) in ((o, at) for o in range(len(weight)) for at in np.ndindex(*layer.kernel_size)):
        first = o // per_group * weight.shape[1]
        rows, columns = (
            slice(at * d, at * d + s * (n - 1) + 1, s)
            for at, d, s, n in zip((i, j), layer.dilation, layer.stride, size, strict=True)
        )
        sums[o] += np.einsum("c,chw->hw", weight[o, :, i, j], x[first : first + weight.shape[1], rows, columns])
    scaled = sums * (layer.weight_scale.numpy().astype(np.float64) * step)[:, None, None]
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.numpy().astype(np.float64)
    return scaled + bias[:, None, None], np.abs(scaled) + np.abs(bias)[:, None, None]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize(("inputs", "outputs", "size", "options"), SETTINGS, ids=str)
def test_output_is_integer_arithmetic_rounded_once(kernel, dtype, inputs, outputs, size, options):
    layer = int8(inputs, outputs, size, **{"padding": 0, **options}, kernel=kernel)
    x = (normal(3, inputs, 9, 8) * torch.tensor([1e-2, 1, 30])[:, None, None, None] + 0.1).to(dtype)
    before = x.clone()
    found = layer(x)
    assert torch.equal(x, before)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    for i in range(3):
        expected, parts = exact_output(layer, x[i : i + 1])
        assert found[i].shape == expected.shape
        # Half a unit of the output's last place, and a few of float32's before the bias cancels any of it.
        places = torch.finfo(dtype)
        allowed = np.abs(expected) * places.eps / 2 + 4 * 2**-24 * parts + places.smallest_normal * places.eps
        assert (np.abs(found[i].double().numpy() - expected) <= allowed).all()


@pytest.mark.parametrize(("inputs", "outputs", "size", "options"), SETTINGS, ids=str)
def test_settings_are_those_of_the_float_layer(inputs, outputs, size, options):
    float_layer = convolution(inputs, outputs, size, **{"padding": 0, **options})
    x = normal(2, inputs, 9, 8)
    expected = float_layer(x).detach()
    found = Int8Conv2d.from_conv2d(float_layer)(x)
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.skipif(len(KERNELS) == 1, reason="needs AVX-512")
@pytest.mark.parametrize(("inputs", "outputs", "size", "options"), SETTINGS, ids=str)
def test_kernels_agree(inputs, outputs, size, options):
    # The sums are the same integers: what follows them is rounded in another order.
    layers = [int8(inputs, outputs, size, **{"padding": 0, **options}, kernel=kernel) for kernel in KERNELS]
    x = 3 * normal(2, inputs, 9, 8)
    found, expected = (layer(x) for layer in layers)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    codes = layers[1].plain_codes()
    assert layers[0].weight_codes is None
    assert torch.equal(layers[0].plain_codes(), codes)
    assert layers[0].plain_codes().shape == codes.shape


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_does_not_depend_on_its_batch(kernel, dtype):
    layer, norm = int8(kernel=kernel), group_norm(6)
    x = (normal(4, 6, 7, 5) * torch.logspace(-3, 3, 4)[:, None, None, None]).to(dtype)
    for options in ({}, {"norm": norm, "silu": True}):
        together = layer(x, **options)
        for i in range(4):
            assert torch.equal(layer(x[i : i + 1], **options)[0], together[i])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_no_images(kernel, dtype):
    found = int8(kernel=kernel, stride=2)(torch.empty(0, 6, 8, 9, dtype=dtype))
    assert (found.shape, found.dtype) == ((0, 10, 4, 5), dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [{}, {"silu": True}, {"norm": group_norm(6), "silu": True}], ids=len)
def test_an_image_that_is_not_finite_stays_so_and_stays_alone(kernel, bad, options):
    layer, x = int8(kernel=kernel), normal(3, 6, 7, 5)
    clean = layer(x, **options)
    x[1, 4, 6, 0] = bad
    found = layer(x, **options)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_of_odd_strides(kernel):
    layer, x = int8(kernel=kernel), normal(2, 12, 9, 9)
    for odd in (
        x[:, ::2],
        x[:, :6].transpose(2, 3),
        x[:, 6:].contiguous(memory_format=torch.channels_last),
        x[:, :1].expand(2, 6, 9, 9),
        x[:, :6, 4:5, 3:4],
        x[:, :6, ::2, 1::3].requires_grad_(),
    ):
        expected = layer(odd.detach().clone(memory_format=torch.contiguous_format))
        assert torch.equal(layer(odd), expected)
        assert not layer(odd).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_norm_and_silu_in_one_go(monkeypatch, dtype, groups):
    layer, norm = int8(), group_norm(6, groups)
    x = (2 * normal(2, 6, 16, 16) + 0.5).to(dtype)
    apart = layer(F.silu(F.group_norm(x.float(), groups, norm.weight, norm.bias, norm.eps))).to(dtype)
    found = layer(x, norm=norm, silu=True)
    assert found.dtype == dtype
    # A code that fell the other way at a tie moves an output by a step at most times a weight.
    difference = (found.float() - apart.float()).norm() / apart.float().norm()
    assert difference < (2e-3 if dtype == torch.float32 else 5e-3)
    only_silu = layer(x, silu=True).float()
    assert (only_silu - layer(F.silu(x.float()))).norm() / only_silu.norm() < 5e-3
    # Without the core they are the same operators in the same order.
    monkeypatch.setattr(rounding, "_level", lambda: None)
    apart = layer(F.silu(F.group_norm(x.float(), groups, norm.weight, norm.bias, norm.eps))).to(dtype)
    torch.testing.assert_close(layer(x, norm=norm, silu=True), apart)


def test_zeros_and_tiny_values():
    layer = int8()
    x = torch.stack([torch.zeros(6, 5, 5), torch.full((6, 5, 5), 1e-42), torch.ones(6, 5, 5)])
    found = layer(x)
    bias = layer.bias[:, None, None].expand(10, 5, 5)
    assert torch.equal(found[0], bias)
    torch.testing.assert_close(found[1], bias, rtol=0, atol=1e-6)
    assert torch.equal(int8(bias=False)(x[:1]), torch.zeros(1, 10, 5, 5))


def test_a_channel_of_zeros():
    float_layer = convolution()
    float_layer.weight.data[3] = 0
    found = Int8Conv2d.from_conv2d(float_layer)(normal(1, 6, 5, 5))
    assert torch.equal(found[0, 3], float_layer.bias.detach()[3].expand(5, 5))


def test_the_float_layer_is_left_alone():
    float_layer = convolution().bfloat16()
    before = float_layer.weight.detach().clone()
    layer = Int8Conv2d.from_conv2d(float_layer)
    assert torch.equal(float_layer.weight, before)
    weight = layer.plain_codes() * layer.weight_scale[:, None, None, None]
    torch.testing.assert_close(weight, fake_quantize(before.float(), QuantSpec(bits=8, granularity="channel")))
    layer.weight_scale.fill_(9)
    layer.bias.fill_(9)
    assert float_layer.bias.abs().max() < 1


def test_output_dtype_is_chosen_or_follows_the_input():
    assert int8(dtype=torch.bfloat16)(normal(1, 6, 4, 4)).dtype == torch.bfloat16
    assert int8(dtype=torch.float16)(normal(1, 6, 4, 4).bfloat16()).dtype == torch.float16
    assert int8(dtype=torch.float32)(normal(1, 6, 4, 4).double()).dtype == torch.float32


@pytest.mark.parametrize("groups", [1, 2])
def test_saved_copied_and_moved_layers_give_the_same_bytes(groups):
    layer, x = int8(groups=groups), normal(2, 6, 7, 7)
    codes = layer.plain_codes().clone()
    expected = layer(x)
    assert torch.equal(layer.plain_codes(), codes)
    state = layer.state_dict()
    assert {name: (value.dtype, value.shape) for name, value in state.items()} == {
        "weight_codes": (torch.int8, (10, 6 // groups, 3, 3)),
        "weight_scale": (torch.float32, (10,)),
        "bias": (torch.float32, (10,)),
    }
    assert torch.equal(state["weight_codes"], codes)
    other = int8(groups=groups, seed=1)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)
    for twin in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
    layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = int8(groups=groups, seed=1)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), expected)
    layer.to(torch.bfloat16)
    assert layer.weight_scale.dtype == layer.bias.dtype == torch.float32
    assert torch.equal(layer(x), expected)
    assert layer.to("meta").weight_codes.is_meta


def test_a_packed_layer_holds_one_copy():
    layer = int8(bias=False)
    layer(normal(1, 6, 5, 5))
    assert layer.num_bytes == 10 * 6 * 9 + 10 * 4
    if len(KERNELS) > 1:
        assert layer.weight_codes is None
    layer.unpack_()
    assert layer.weight_codes.shape == (10, 6, 3, 3)
    assert "6, 10, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=1" in repr(layer)


def test_threads_may_share_a_layer(four_at_once):
    x = normal(2, 6, 7, 7)
    expected = int8()(x)
    for _ in range(10):
        layer = int8()
        assert all(torch.equal(result, expected) for result in four_at_once(lambda layer=layer: layer(x)))


def test_bad_layers():
    codes, scale = torch.ones(4, 3, 3, 3, dtype=torch.int8), torch.ones(4)
    for arguments, options, error, words in (
        ((codes.int(), scale), {}, DtypeError, "weight_codes: expected int8"),
        ((codes * -128, scale), {}, ArgumentError, "expected codes in .*, got -128"),
        ((codes, scale * 0), {}, ArgumentError, "weight_scale: expected numbers > 0"),
        ((codes, scale * torch.nan), {}, NonFiniteError, "weight_scale"),
        ((codes, scale[:3]), {}, ShapeError, "weight_scale"),
        ((codes, scale), {"bias": scale[:3]}, ShapeError, "bias"),
        ((codes[0], scale), {}, ShapeError, "weight_codes: expected 4 axes with elements"),
        ((codes[:0], scale[:0]), {}, ShapeError, "weight_codes: expected 4 axes with elements"),
        ((codes, scale), {"groups": 3}, ArgumentError, "groups: expected a divisor of 4 output channels, got 3"),
        ((codes, scale), {"groups": 0}, ArgumentError, "groups: expected a divisor"),
        ((codes, scale), {"kernel": "int_mm"}, ArgumentError, "kernel: expected 'auto', 'onednn' or 'plain'"),
        ((codes, scale), {"dtype": torch.int32}, DtypeError, "dtype: expected a floating dtype"),
    ):
        with pytest.raises(error, match=words):
            Int8Conv2d(*arguments, **options)


def test_layers_that_cannot_be_rounded():
    broken = convolution()
    broken.weight.data[3, 4, 0, 1] = torch.inf
    for layer, error, words in (
        (nn.Linear(2, 3), DtypeError, r"conv: expected a torch\.nn\.Conv2d, got Linear"),
        (nn.Conv1d(2, 3, 3), DtypeError, "got Conv1d"),
        (convolution(padding="same"), ArgumentError, "expected zero padding by numbers, got 'zeros', 'same'"),
        (convolution(padding_mode="reflect"), ArgumentError, "got 'reflect'"),
        (broken, NonFiniteError, "NaN or infinity"),
    ):
        with pytest.raises(error, match=words):
            Int8Conv2d.from_conv2d(layer)


def test_bad_inputs(monkeypatch):
    layer = int8()
    for x, error, words in (
        (torch.ones(1, 5, 4, 4), ShapeError, r"input: expected shape \(n, 6, h, w\), got \(1, 5, 4, 4\)"),
        (torch.ones(6, 4, 4), ShapeError, r"got \(6, 4, 4\)"),
        (torch.ones(1, 6, 4, 4, dtype=torch.uint8), DtypeError, "input: expected a floating dtype, got torch.uint8"),
    ):
        with pytest.raises(error, match=words):
            layer(x)
    monkeypatch.setattr(conv, "has_onednn_convolution", lambda: False)
    with pytest.raises(ArgumentError, match="'onednn' does not work on device 'cpu' here; take 'auto'"):
        int8(kernel="onednn")(torch.ones(1, 6, 4, 4))
    assert int8()(torch.ones(1, 6, 4, 4)).shape == (1, 10, 4, 4)


@pytest.mark.gpu
def test_cuda_gives_the_same():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layer, norm, x = int8(), group_norm(6), normal(3, 6, 20, 20)
    expected = layer(x, norm=norm, silu=True)
    found = layer.cuda()(x.cuda(), norm=norm.cuda(), silu=True).cpu()
    assert (found - expected).norm() / expected.norm() < 2e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_changes_nothing(kernel):
    layer, x = int8(kernel=kernel, dtype=torch.float32), normal(2, 6, 9, 9)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), expected)
