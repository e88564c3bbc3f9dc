"""Layers of a network: sizes against hooks on a real run, who feeds whom, and that nothing of a model changes."""

import copy
import threading

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

from sparing.errors import ArgumentError, ShapeError  # noqa: E402
from sparing.pim.convert import convert_  # noqa: E402
from sparing.pim.design import LayerDesign, NetworkDesign  # noqa: E402
from sparing.pim.epitome import EpitomeShape  # noqa: E402
from sparing.pim.layers import trace_layers  # noqa: E402
from sparing.vision import resnet8, resnet18  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


class Grouped(nn.Module):
    """Groups, dilation, uneven kernels, strides and paddings."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2))
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding="same", dilation=2, bias=False)
        self.pointwise = nn.Conv2d(8, 12, 1, padding="valid")
        self.grouped = nn.Conv2d(12, 6, 3, groups=3, stride=2)
        self.even = nn.Conv2d(6, 6, (4, 2), padding="same")

    def forward(self, x):
        return self.even(self.grouped(self.pointwise(self.depthwise(self.stem(x)))))


class Tokens(nn.Module):
    """A small vision transformer's parts: linear layers on vectors in rows."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.down(torch.relu(self.up(self.norm(tokens))))
        return self.head(tokens.mean(1))


class Paths(nn.Module):
    """Sums, pools, concatenations, parts written in place, and a branch that sees the image."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 1)
        self.d = nn.Conv2d(8, 4, 1)
        self.e = nn.Conv2d(8, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.image = nn.Conv2d(7, 2, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        a = self.bn(self.a(x)).relu()
        b = torch.max_pool2d(self.b(a), 3, stride=1, padding=1)
        c = self.c(a + b)
        d = self.d(torch.cat([b, c], 1))
        e = x.new_zeros(1, 8, 8, 8)
        e[:, :4] = c
        e[:, 4:] = d.mul_(2)
        e = self.e(e)
        self.image(torch.cat([x, c], 1))
        return self.fc(e.mean((2, 3)))


class WithoutMeta(Paths):
    """Makes a constant on the CPU and looks at numbers, which fails without them."""

    def forward(self, x):
        factor = torch.linspace(0.5, 2, x.shape[-1], dtype=x.dtype)
        if (x * factor).sum().item() > 1e9:
            return x
        return super().forward(x)


NETWORKS = {
    "resnet18": (resnet18, (3, 64, 48)),
    "resnet8": (resnet8, (3, 32, 32)),
    "grouped": (Grouped, (3, 18, 15)),
    "tokens": (Tokens, (3, 16, 20)),
    "paths": (Paths, (3, 8, 8)),
    "without_meta": (WithoutMeta, (3, 8, 8)),
}


def hooked(model, input_shape):
    """What the layers get and give on numbers."""
    seen, model = {}, copy.deepcopy(model).eval()

    def note(name, x, y):
        seen[name] = x[0].shape, y.shape

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _, x, y, name=name: note(name, x, y))
    with torch.no_grad():
        model(torch.zeros(1, *input_shape))
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_those_of_a_real_run(name):
    factory, input_shape = NETWORKS[name]
    model = factory()
    seen, network = hooked(model, input_shape), trace_layers(model, input_shape)
    assert network.input_shape == input_shape
    assert [layer.name for layer in network.layers] == list(seen)
    assert not network.skipped
    modules = dict(model.named_modules())
    for layer in network.layers:
        module, (given, got) = modules[layer.name], seen[layer.name]
        assert network[layer.name] is layer
        assert layer.num_calls == 1
        assert layer.num_weights == module.weight.numel()
        assert layer.out_channels == (got[1] if layer.kind == "conv" else got[-1])
        if layer.kind == "linear":
            assert layer.in_size == layer.out_size == (1, got[:-1].numel())
            assert layer.weight_shape == (*module.weight.shape, 1, 1)
            continue
        assert layer.weight_shape == tuple(module.weight.shape)
        assert (layer.in_size, layer.out_size) == (tuple(given[2:]), tuple(got[2:]))
        assert (layer.stride, layer.dilation, layer.groups) == (module.stride, module.dilation, module.groups)
        assert layer.macs == module.weight[0].numel() * got.numel()
        # The rows of padding say which input the first output pixel sees.
        if not isinstance(module.padding, str):
            assert layer.padding == module.padding


def test_paddings_by_name():
    network = trace_layers(Grouped(), (3, 18, 15))
    # As PyTorch does it: of an odd number of rows the smaller half above.
    assert {name: network[name].padding for name in ("depthwise", "pointwise", "even")} == {
        "depthwise": (2, 2),
        "pointwise": (0, 0),
        "even": (1, 0),
    }


def test_paddings_by_the_first_pixel():
    # An impulse response: the kernel element that falls on the first input pixel stands at the padding.
    for kernel, dilation in [((4, 2), (1, 1)), ((3, 3), (2, 3)), ((5, 1), (1, 1))]:
        conv = nn.Conv2d(1, 1, kernel, padding="same", dilation=dilation, bias=False)
        padding = trace_layers(conv, (1, 9, 9)).layers[0].padding
        x = torch.zeros(1, 1, 9, 9)
        x[..., 0, 0] = 1
        with torch.no_grad():
            assert conv(x)[0, 0, 0, 0] == conv.weight[0, 0, padding[0] // dilation[0], padding[1] // dilation[1]]


@pytest.mark.parametrize("factory", [Paths, WithoutMeta])
def test_inputs_through_what_lies_between(factory):
    network = trace_layers(factory(), (3, 8, 8))
    assert {layer.name: layer.inputs for layer in network.layers} == {
        "a": ("",),
        "b": ("a",),
        "c": ("a", "b"),
        "d": ("b", "c"),
        "e": ("", "c", "d"),  # made by `x.new_zeros`
        "image": ("", "c"),
        "fc": ("e",),
    }


def test_inputs_of_residual_blocks():
    network = trace_layers(resnet8(), (3, 32, 32))
    assert network["layer1.0.conv1"].inputs == ("conv1",)
    assert network["layer2.0.conv1"].inputs == ("conv1", "layer1.0.conv2")
    assert network["layer2.0.downsample.0"].inputs == ("conv1", "layer1.0.conv2")
    assert network["fc"].inputs == ("layer3.0.conv2", "layer3.0.downsample.0")


def test_inputs_of_tokens():
    network = trace_layers(Tokens(), (3, 16, 20))
    assert [layer.inputs for layer in network.layers] == [("",), ("patch",), ("up",), ("down", "patch")]


def test_a_layer_called_several_times():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.again = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return self.again(input=self.again(self.again(x)))

    layer = trace_layers(Twice(), (3, 6, 5))["again"]
    assert layer.num_calls == 3
    assert layer.inputs == ("again", "stem")
    assert layer.num_pixels == 3 * 30
    assert layer.macs == 3 * 30 * 4 * 4 * 9


def test_maps_in_place_of_a_batch_are_counted():
    class Crops(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            crops = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
            return self.fc(self.conv(crops).mean((2, 3))).mean(0)

    network = trace_layers(Crops(), (3, 8, 12))
    assert (network["conv"].num_calls, network["conv"].out_size) == (6, (2, 2))
    assert network["conv"].num_pixels == 24
    assert network["fc"].num_pixels == 6


def test_a_layer_on_maps_of_several_sizes_is_refused():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x).mean() + self.head(torch.max_pool2d(x, 2)).mean()

    with pytest.raises(ArgumentError, match="on maps of one size, got several sizes in head"):
        trace_layers(Pyramid(), (3, 8, 8))


def test_shared_weights_are_two_layers():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight = model[0].weight
    assert [layer.name for layer in trace_layers(model, (3, 4, 4)).layers] == ["0", "1"]


def test_a_module_in_two_places_is_one_layer():
    conv = nn.Conv2d(3, 3, 1)
    network = trace_layers(nn.Sequential(conv, nn.ReLU(), conv), (3, 4, 4))
    assert [(layer.name, layer.num_calls) for layer in network.layers] == [("0", 2)]


def test_a_single_layer_is_a_network():
    layer = trace_layers(nn.Linear(6, 4), (6,)).layers[0]
    assert (layer.name, layer.inputs, layer.out_size) == ("", ("",), (1, 1))


def test_other_layers_are_skipped_with_a_reason():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.unused = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
            self.up = nn.ConvTranspose2d(4, 4, 2)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
            self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)])

        def forward(self, x):
            x = self.norms[0](self.up(self.conv(x))).flatten(2).transpose(1, 2)
            return self.attention(x, x, x)[0]

    skipped = {layer.name: layer.reason for layer in trace_layers(Odd(), (3, 4, 4)).skipped}
    assert skipped == {
        "unused": "its forward is never called",
        "up": "a ConvTranspose2d: only Conv2d and Linear layers are mapped",
        "attention": "a MultiheadAttention: only Conv2d and Linear layers are mapped",
        "attention.out_proj": "its forward is never called",
    }


def test_the_run_is_without_numbers_where_it_can_be():
    seen = []

    class Watched(Paths):
        def forward(self, x):
            seen.append((x.device.type, self.bn.running_mean.device.type))
            return super().forward(x)

    trace_layers(Watched(), (3, 8, 8))
    assert seen == [("meta", "meta")]


def state_of(model):
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), module.training)
        for name, module in model.named_modules()
    ]
    return hooks, {name: (id(t), t.clone()) for name, t in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("factory", [Paths, WithoutMeta])
def test_the_model_stays_as_it_is(factory):
    model = factory().train()
    model.c.eval()  # a mixture of modes is kept, not made one
    before, tensors = state_of(model)
    trace_layers(model, (3, 8, 8))
    after, others = state_of(model)
    assert before == after
    assert tensors.keys() == others.keys()
    assert all(tensors[name][0] == others[name][0] for name in tensors)
    assert all(torch.equal(tensors[name][1], others[name][1]) for name in tensors)
    assert model.bn.num_batches_tracked == 0
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_the_model_stays_as_it_is_after_an_error():
    model = Paths().train()
    before, _ = state_of(model)
    with pytest.raises(ShapeError):
        trace_layers(model, (5, 8, 8))
    assert state_of(model)[0] == before


class Remembers(nn.Module):
    """Keeps a table from the first call, counts calls, and updates a buffer whatever its mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.table, self.calls = nn.Conv2d(3, 4, 1), None, 0
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.calls += 1
        if self.table is None:
            self.table = torch.ones(x.shape[-1], device=x.device)
        self.mean += 1
        return self.conv(x * self.table)


@pytest.mark.parametrize("needs_numbers", [False, True])
def test_what_a_model_remembers_is_not_touched(needs_numbers):
    model = Remembers()
    if needs_numbers:
        model.register_forward_pre_hook(lambda _, x: (x[0] * float(x[0].sum() + 1),))
    assert len(trace_layers(model, (3, 4, 4)).layers) == 1
    assert (model.table, model.calls) == (None, 0)
    assert not model.mean.any()
    model(torch.zeros(1, 3, 4, 4))


def test_a_model_that_cannot_be_copied_runs_itself():
    model = WithoutMeta().train()
    model.lock = threading.Lock()
    before, _ = state_of(model)
    assert trace_layers(model, (3, 8, 8))["fc"].inputs == ("e",)
    assert state_of(model)[0] == before
    assert model.bn.num_batches_tracked == 0


def test_a_pruned_model_keeps_its_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    prune.l1_unstructured(model[1], "weight", 0.5)
    weight, seen = model[1].weight.clone(), []
    model.register_forward_pre_hook(lambda _, x: seen.append(x[0].device.type))
    assert len(trace_layers(model, (3, 4, 4)).layers) == 2
    assert torch.equal(model[1].weight, weight)
    # The weight that pruning computes cannot be copied: it is shared, and the copy runs all the same.
    assert seen == ["meta"]


def test_a_converted_model_has_the_same_layers():
    model = Paths()
    before = trace_layers(model, (3, 8, 8))
    convert_(model, NetworkDesign(layers={"b": LayerDesign(epitome=EpitomeShape(out_channels=2, in_channels=2))}))
    assert parametrize.is_parametrized(model.b)
    assert trace_layers(model, (3, 8, 8)) == before


def test_weights_without_memory():
    with torch.device("meta"):
        model = resnet8()
    assert trace_layers(model, (3, 32, 32)) == trace_layers(resnet8(), (3, 32, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    assert trace_layers(WithoutMeta().to(dtype), (3, 8, 8)) == trace_layers(Paths(), (3, 8, 8))
    assert trace_layers(resnet8().to(dtype), (3, 32, 32)) == trace_layers(resnet8(), (3, 32, 32))


@pytest.mark.parametrize("shape", [(), (3, 0, 8), (3, -1, 8)])
def test_input_shapes_that_are_none(shape):
    with pytest.raises(ArgumentError, match="input_shape: expected sizes of at least 1"):
        trace_layers(Paths(), shape)


@pytest.mark.parametrize("shape", [(4, 8, 8), (3, 8), (8,)])
def test_inputs_that_a_network_does_not_take(shape):
    with pytest.raises(ShapeError, match=r"input_shape: the network does not take an input of \(1, "):
        trace_layers(Paths(), shape)


def test_networks_without_layers():
    for model in (nn.Identity(), nn.BatchNorm2d(3), nn.Sequential(nn.ReLU())):
        with pytest.raises(ArgumentError, match="expected a network that calls a Conv2d or Linear layer, found none"):
            trace_layers(model, (3, 4, 4))


def test_an_unknown_name():
    with pytest.raises(KeyError, match="nope"):
        trace_layers(Paths(), (3, 8, 8))["nope"]
