"""Where faults hit: layers, products, outputs behind batch normalization; and what cannot be hit."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.faults import (  # noqa: E402
    BitBias,
    BitFlip,
    StuckAt,
    UnreachedWeightsWarning,
    fault_sites,
    fixed_point_,
    inject,
)
from sparing.faults.sites import select_sites, stored_weight, tell_no_more  # noqa: E402
from sparing.quant import Int8Conv2d, Int8Linear  # noqa: E402


def test_sites_of_a_network(network, images):
    model = network()
    sites = fault_sites(model, images)
    assert [(s.name, s.output, s.num_macs, s.weight_shape) for s in sites] == [
        ("conv1", "bn1", 27, (8, 3, 3, 3)),
        ("conv2", "conv2", 18, (12, 2, 3, 3)),
        ("conv3", "bn3", 12, (6, 12, 1, 1)),
        ("fc", "fc", 6, (5, 6)),
    ]
    assert [s.feature_shape for s in sites] == [(8, 9, 9), (12, 4, 4), (6, 4, 4), None]
    assert [s.is_convolution for s in sites] == [True, True, True, False]
    with torch.no_grad():
        peak = float(model.bn1(model.conv1(images)).abs().max())
    assert 2.0 ** (sites[0].exponent - 1) < peak <= 2.0 ** sites[0].exponent


def test_without_an_example_outputs_are_not_known(network):
    assert [(s.output, s.feature_shape) for s in fault_sites(network())][:1] == [("conv1", None)]


def test_nothing_changes_in_a_trace(network, images):
    model = network().train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fault_sites(model, images)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.bn1.training
    assert model.bn3.training
    assert not any(module._forward_hooks for module in model.modules())


class _Branches(nn.Module):
    """One normalization behind two layers, two behind one, one behind a sum, one layer that never runs."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.shared, self.first, self.second, self.sum = (nn.BatchNorm2d(2) for _ in range(4))
        self.up = nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2)

    def forward(self, x):
        x = self.shared(self.a(x)) + self.shared(self.b(x))
        y = self.c(x)
        return self.up(self.sum(self.first(y) + self.second(y)))


def test_a_normalization_counts_where_it_takes_one_layer_alone():
    sites = {s.name: s for s in fault_sites(_Branches(), torch.randn(2, 2, 4, 4))}
    assert {name: s.output for name, s in sites.items()} == {"a": "a", "b": "b", "c": "c", "d": "d", "up": "up"}
    assert sites["d"].feature_shape is None
    assert sites["up"].feature_shape == (4, 9, 9)
    assert (sites["up"].num_macs, sites["up"].weight_shape) == (2.25, (2, 2, 3, 3))


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(4, 2, 1), (2, 2, 1), (3, 1, 1), (4, 2, 4), (6, 3, 2)])
def test_products_of_transposed_convolutions(kernel, stride, groups):
    layer = nn.ConvTranspose2d(8, 8, kernel, stride=stride, padding=(kernel - stride) // 2, groups=groups).double()
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    # With ones everywhere an output is the number of its products; away from the borders.
    counted = layer(torch.ones(1, 8, 32, 32).double())[..., 12:-12, 12:-12].mean().item()
    assert fault_sites(nn.Sequential(layer))[0].num_macs == pytest.approx(counted)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_of_other_axes(axes, transposed):
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    norm = (nn.BatchNorm1d, nn.BatchNorm3d)[axes == 3]
    model = nn.Sequential(kind(4, 8, 3, groups=2), norm(8), nn.ReLU(), kind(8, 4, 1)).eval()
    x = torch.randn(2, 4, *[5] * axes)
    sites = fault_sites(model, x)
    side = 7 if transposed else 3
    assert [(s.output, s.feature_shape, s.num_macs) for s in sites] == [
        ("1", (8, *[side] * axes), 2 * 3**axes),
        ("3", (4, *[side] * axes), 8),
    ]
    assert sites[0].weight_shape == tuple(model[0].weight.shape)
    fixed_point_(model, x)
    clean = model(x)
    with inject(model, BitFlip(p=0.05) + BitBias(p=0.05), seed=1) as injection:
        assert not torch.equal(model(x), clean)
        assert set(injection.hits) == {"0", "3"}
    assert torch.equal(model(x), clean)
    with pytest.raises(ShapeError, match="expected features n × c"):
        fault_sites(nn.Sequential(kind(4, 8, 1)), x[0])


class TestUnreachedWeights:
    def model(self):
        model = nn.Sequential()
        model.add_module("embed", nn.Embedding(50, 8))
        model.add_module("attend", nn.MultiheadAttention(8, 2))
        model.add_module("norm", nn.LayerNorm(8))
        model.add_module("head", nn.Linear(8, 2))
        return model

    def test_are_told_once(self):
        model = self.model()
        # The head's 16 are reached and the 64 of the attention's own output; 400 and 192 are not.
        message = r"faults reach 11\.9 % of its weights .*; no fault ever hits embed \(Embedding\), attend \(Multi"
        with pytest.warns(UnreachedWeightsWarning, match=message), inject(model, BitFlip(p=0.1)):
            pass
        with inject(model, BitFlip(p=0.1)):
            pass

    def test_not_of_what_is_reached(self, network, images):
        model = network()
        fault_sites(model, images)
        fixed_point_(model, images)
        model.scale = nn.Module()
        model.scale.register_parameter("gamma", nn.Parameter(torch.ones(6, 1, 1)))
        fault_sites(copy.deepcopy(model))

    def test_a_shared_weight_is_reached(self):
        model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
        model[1].weight = model[0].weight
        fault_sites(model)

    def test_workers_do_not_repeat_it(self):
        tell_no_more(model := self.model())
        fault_sites(model)


def test_int8_layers_and_parametrized_ones():
    class Twice(nn.Module):
        def forward(self, stored):
            return torch.cat([stored, stored])

    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 6), nn.Linear(4, 6))
    model[2].weight = nn.Parameter(torch.randn(3, 4))
    parametrize.register_parametrization(model[2], "weight", Twice(), unsafe=True)
    model[0], model[1] = Int8Conv2d.from_conv2d(model[0]), Int8Linear.from_linear(model[1])
    sites = fault_sites(model)
    assert [(s.weight_shape, s.stored_shape, s.num_macs) for s in sites] == [
        ((3, 2, 3, 3), (3, 2, 3, 3), 18),
        ((6, 4), (6, 4), 4),
        ((6, 4), (3, 4), 4),
    ]
    assert stored_weight(model[2]) is model[2].parametrizations.weight.original
    assert stored_weight(model[1]).dtype == torch.int8


def test_sites_are_chosen_by_name_or_pattern(network):
    sites = fault_sites(network())
    names = lambda **how: [s.name for s in select_sites(sites, how.get("include"), how.get("exclude"))]  # noqa: E731
    assert names() == ["conv1", "conv2", "conv3", "fc"]
    assert names(include=["conv3", "conv1"]) == ["conv1", "conv3"]
    assert names(include=["conv*"], exclude=["conv2"]) == ["conv1", "conv3"]
    with pytest.raises(ArgumentError, match="include: no layer is called 'conv4'; there are 'conv1'"):
        names(include=["conv4"])
    with pytest.raises(ArgumentError, match="exclude: no layer"):
        names(exclude=["relu1"])
    with pytest.raises(ArgumentError, match="include: expected a sequence"):
        names(include="conv1")
    with pytest.raises(ArgumentError, match="expected to leave a layer"):
        names(exclude=["*"])


class _Codes(nn.Linear):
    """A quantized layer of somebody else."""

    def __init__(self):
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)


def test_what_cannot_be_hit():
    with pytest.raises(ArgumentError, match="expected at least one convolution"):
        fault_sites(nn.ReLU())
    with pytest.raises(DtypeError, match=r"expected a torch\.nn\.Module, got int"):
        fault_sites(3)
    with pytest.raises(ArgumentError, match="computed from others"):
        fault_sites(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))))
    with pytest.raises(ArgumentError, match="computed from others"):
        fault_sites(nn.Sequential(prune.l1_unstructured(nn.Linear(3, 3), "weight", amount=0.5)))
    with pytest.raises(DtypeError, match=r"expected a weight of floats, got torch\.int8"):
        fault_sites(_Codes())


@pytest.mark.parametrize(
    ("example", "error"),
    [
        (torch.full((1, 3, 9, 9), float("nan")), NonFiniteError),
        (torch.zeros(0, 3, 9, 9), ShapeError),
        ([[1.0]], DtypeError),
    ],
)
def test_examples_that_are_none(network, example, error):
    model = network()
    with pytest.raises(error, match="example"):
        fault_sites(model, example)
    assert not model.training


def test_features_of_one_image_alone():
    with pytest.raises(ShapeError, match="expected features n × c × h × w, got"):
        fault_sites(nn.Conv2d(3, 2, 3), torch.zeros(3, 9, 9))


class _LikeCompiled(nn.Module):
    """What torch.compile leaves, without the seconds that its import takes."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model


def test_compiled_models_are_refused(network, images):
    model = network()
    for bad in (_LikeCompiled(model), nn.Sequential(_LikeCompiled(model))):
        with pytest.raises(ArgumentError, match="compiled or scripted"):
            fixed_point_(bad, images)
        with pytest.raises(ArgumentError, match="compiled or scripted"):
            inject(bad, StuckAt()).__enter__()


@pytest.mark.slow
def test_torch_compile_leaves_what_is_refused(network, images):
    compiled, model = torch.compile(network(), backend="eager"), network()
    model.compile(backend="eager")
    for bad in (compiled, model, nn.Sequential(model)):
        with pytest.raises(ArgumentError, match="compiled or scripted"):
            fault_sites(bad, images)


class TestInPlace:
    def test_ranges_are_those_before_the_next_layer_changes_them(self, images):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval()
        with torch.no_grad():
            model[1].weight.fill_(1e-3)
            model[1].bias.fill_(-100.0)
        (site,) = fault_sites(model, images)
        assert (site.output, site.exponent) == ("1", 7)

    def test_a_relu_in_between(self, images):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)).eval()
        assert fault_sites(model, images)[0].output == "0"

    def test_inference_mode(self, images):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        with torch.inference_mode():
            assert fault_sites(model, images)[0].output == "1"


def test_layers_called_twice(images):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.bn(self.conv(1e-3 * self.bn(self.conv(100 * x))))

    (site,) = fault_sites(Twice().eval(), images)
    assert site.output == "bn"
    assert site.exponent > 5  # of both calls
