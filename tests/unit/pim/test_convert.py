"""Epitomes in a network: states that come back, plain weights bit for bit, training, refusals that change nothing."""

import copy
import io
import math

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from sparing.errors import ArgumentError, NonFiniteError, ShapeError  # noqa: E402
from sparing.pim.convert import convert_, epitomes_of, materialize_  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.design import LayerDesign, NetworkDesign, uniform_design  # noqa: E402
from sparing.pim.epitome import EpitomeShape, fit_epitome  # noqa: E402
from sparing.pim.layers import trace_layers  # noqa: E402
from sparing.vision import resnet8  # noqa: E402


class Small(nn.Module):
    """Two convolutions, one of them with groups, and a linear layer; 5 × 5 images of 4 channels."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(4, 8, 3, padding=1)
            self.grouped = nn.Conv2d(8, 8, 3, groups=2)
            self.fc = nn.Linear(8, 6)

    def forward(self, x):
        return self.fc(self.grouped(self.conv(x).relu()).mean((2, 3)))


CONV = EpitomeShape(out_channels=4, in_channels=2)
FC = EpitomeShape(out_channels=3, in_channels=4)
DESIGN = NetworkDesign(
    layers={
        "conv": LayerDesign(bits=3, epitome=CONV),
        "grouped": LayerDesign(bits=3),
        "fc": LayerDesign(bits=9, epitome=FC),
    }
)


def images(num=2, dtype=torch.float32):
    return torch.randn(num, 4, 5, 5, generator=torch.Generator().manual_seed(7)).to(dtype)


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def tensors_of(model):
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def test_the_weights_are_the_fitted_ones():
    model = Small()
    before = tensors_of(model)
    report = convert_(model, DESIGN)
    assert [(r.name, r.num_weights, r.num_stored) for r in report] == [("conv", 288, 72), ("fc", 48, 12)]
    assert [name for name, _ in epitomes_of(model)] == ["conv", "fc"]
    for result, (name, epitome) in zip(report, epitomes_of(model), strict=True):
        module = getattr(model, name)
        weight = before[f"{name}.weight"]
        stored, residual = fit_epitome(weight.view(epitome.full_shape), epitome.index, epitome.size)
        assert torch.equal(module.parametrizations.weight.original, stored)
        assert module.weight.shape == weight.shape
        assert result.residual == epitome.residual == residual
        error = (module.weight - weight).square().sum() / weight.square().sum()
        assert residual == pytest.approx(float(error.detach()), rel=1e-5)
        assert torch.equal(module.bias, before[f"{name}.bias"])
    assert torch.equal(model.grouped.weight, before["grouped.weight"])
    assert isinstance(model.conv, nn.Conv2d)
    assert isinstance(model.fc, nn.Linear)


def test_a_whole_network():
    model = resnet8(num_classes=10)
    network = trace_layers(model, (3, 32, 32))
    design = uniform_design(network, CrossbarSize(64, 64), bits=3, max_rows=128, max_cols=32, min_weights=2000)
    plain = sum(p.numel() for p in model.parameters())
    report = convert_(model, design)
    assert {r.name for r in report} == {name for name, layer in design.layers.items() if layer.epitome}
    assert len(report) >= 4
    assert sum(p.numel() for p in model.parameters()) == plain - sum(r.num_weights - r.num_stored for r in report)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).isfinite().all()
    assert trace_layers(model, (3, 32, 32)) == network


def test_a_full_epitome_changes_nothing():
    model = Small()
    before = model(images())
    full = NetworkDesign(layers={"conv": LayerDesign(epitome=EpitomeShape(out_channels=8, in_channels=4))})
    assert convert_(model, full)[0].residual == 0
    assert torch.equal(model(images()), before)


def test_designs_without_epitomes():
    model = Small()
    before = tensors_of(model)
    assert convert_(model, NetworkDesign(layers={"conv": LayerDesign(bits=3), "not there": LayerDesign()})) == []
    assert same(model.state_dict(), before)
    assert materialize_(model) == []


def test_states_come_back():
    model, other = Small(), Small(seed=1)
    convert_(model, DESIGN)
    convert_(other, DESIGN)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    # Only the epitome is saved: no index, no gathered weight.
    assert {name: tuple(t.shape) for name, t in state.items() if name.startswith("conv")} == {
        "conv.bias": (8,),
        "conv.parametrizations.weight.original": (4, 2, 3, 3),
    }
    assert not torch.equal(model(images()), other(images()))
    other.load_state_dict(state, strict=True)
    assert torch.equal(model(images()), other(images()))
    assert same(model.state_dict(), other.state_dict())


def test_materialized_bit_for_bit():
    model = Small()
    plain_names = list(model.state_dict())
    convert_(model, DESIGN)
    with torch.no_grad():  # away from the fit, to numbers that no mean gives
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) / 3)
    weights, outputs = {name: getattr(model, name).weight.clone() for name in ("conv", "fc")}, model(images())
    assert materialize_(model) == ["conv", "fc"]
    assert list(model.state_dict()) == plain_names  # and in order: optimizers go by it
    assert all(torch.equal(getattr(model, name).weight, weight) for name, weight in weights.items())
    assert torch.equal(model(images()), outputs)
    assert type(model.conv) is nn.Conv2d
    assert type(model.fc) is nn.Linear
    assert all(isinstance(p, nn.Parameter) and p.is_leaf and p.requires_grad for p in model.parameters())
    assert not epitomes_of(model)
    # A plain network takes the state, and the plain network can become epitomes again without loss.
    plain = Small(seed=1)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(images()), outputs)
    assert all(r.residual < 1e-12 for r in convert_(model, DESIGN))


def test_copies_are_apart():
    model = Small()
    convert_(model, DESIGN)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images()), model(images()))
    before = tensors_of(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1)
    assert same(model.state_dict(), before)
    assert [name for name, _ in epitomes_of(twin)] == ["conv", "fc"]
    third = copy.deepcopy(model)
    # Copies share PyTorch's class of a parametrized layer: what is taken from one must stay in the others.
    materialize_(twin)
    assert [name for name, _ in epitomes_of(model)] == ["conv", "fc"]
    assert same(model.state_dict(), before)
    materialize_(model)
    assert torch.equal(third(images()), model(images()))
    assert not torch.equal(twin.conv.weight, model.conv.weight)


def test_a_step_of_training_changes_the_epitome_alone():
    model = Small()
    model.grouped.requires_grad_(False)
    convert_(model, DESIGN)
    before = tensors_of(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    model(images()).square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert gradients["conv.parametrizations.weight.original"].shape == (4, 2, 3, 3)
    optimizer.step()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.detach(), before[name] - 0.5 * gradients[name], rtol=0, atol=1e-6)
            assert not torch.equal(p, before[name])
        else:
            assert torch.equal(p, before[name])
    # Every weight is still one that the epitome holds.
    for name, epitome in epitomes_of(model):
        module = getattr(model, name)
        expected = module.parametrizations.weight.original.flatten()[epitome.index].view(module.weight.shape)
        assert torch.equal(module.weight, expected)


def test_training_fits_what_an_epitome_can_hold():
    teacher = Small(seed=5)
    convert_(teacher, DESIGN)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for _, p in student.named_parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    x = images(16)
    target = teacher(x).detach()
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = (student(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20


def test_frozen_layers_stay_frozen():
    model = Small()
    model.conv.weight.requires_grad_(False)
    convert_(model, DESIGN)
    assert not model.conv.parametrizations.weight.original.requires_grad
    assert model.fc.parametrizations.weight.original.requires_grad
    materialize_(model)
    assert not model.conv.weight.requires_grad
    assert model.fc.weight.requires_grad


def test_gradients_of_another_shape_are_dropped():
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images()).sum().backward()
    convert_(model, DESIGN)
    assert model.conv.parametrizations.weight.original.grad is None
    assert model.grouped.weight.grad is not None
    optimizer.step()
    model(images()).sum().backward()
    materialize_(model)
    assert model.conv.weight.grad is None
    optimizer.step()
    assert model(images()).isfinite().all()


def test_half_precision():
    model = Small().to(torch.bfloat16)
    residuals = [r.residual for r in convert_(Small(), DESIGN)]
    found = [r.residual for r in convert_(model, DESIGN)]
    assert found == pytest.approx(residuals, rel=0.02)
    assert model.conv.weight.dtype == model.conv.parametrizations.weight.original.dtype == torch.bfloat16
    outputs = model(images(dtype=torch.bfloat16))
    assert outputs.dtype == torch.bfloat16
    outputs.float().sum().backward()
    assert model.conv.parametrizations.weight.original.grad.dtype == torch.bfloat16
    materialize_(model)
    assert torch.equal(model(images(dtype=torch.bfloat16)), outputs)


def test_moving_a_converted_model():
    model = Small()
    convert_(model, DESIGN)
    model.to(torch.float64)
    assert model.conv.weight.dtype == torch.float64
    assert dict(epitomes_of(model))["conv"].index.dtype == torch.int64
    assert model.half().conv.weight.dtype == torch.float16


def test_channels_last():
    model = Small().to(memory_format=torch.channels_last)
    convert_(model, DESIGN)
    other = Small()
    convert_(other, DESIGN)
    assert torch.equal(model.conv.weight, other.conv.weight)


# Refusals: the good layer stands before the bad one each time.


def refused(model, name, error, message, epitome=CONV):
    before, kinds = tensors_of(model), [type(m) for m in model.modules()]
    identities = [id(p) for p in model.parameters()]
    layers = {"fc": LayerDesign(epitome=FC), name: LayerDesign(epitome=epitome)}
    with pytest.raises(error, match=message):
        convert_(model, NetworkDesign(layers=layers))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before)
    assert kinds == [type(m) for m in model.modules()]
    assert identities == [id(p) for p in model.parameters()]


def test_refuses_layers_that_are_not_there():
    refused(Small(), "nope", ArgumentError, "design: nope: expected a Conv2d or Linear of the model, got NoneType")


def test_refuses_other_layers():
    model = Small()
    model.norm = nn.BatchNorm2d(8)
    model.up = nn.ConvTranspose2d(4, 8, 3)
    refused(model, "norm", ArgumentError, "norm: expected a Conv2d or Linear of the model, got BatchNorm2d")
    refused(model, "up", ArgumentError, "got ConvTranspose2d")


def test_refuses_groups():
    refused(Small(), "grouped", ArgumentError, "design: grouped cannot be an epitome: it has 2 groups")


def test_refuses_what_does_not_fit():
    refused(Small(), "conv", ShapeError, "at most 8 output and 4 input", EpitomeShape(out_channels=9, in_channels=1))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_what_is_no_number(bad):
    model = Small()
    with torch.no_grad():
        model.conv.weight[3, 2, 1, 0] = bad
    refused(model, "conv", NonFiniteError, "weight: expected finite numbers")


def test_refuses_shared_weights():
    model = Small()
    model.twin = nn.Conv2d(4, 8, 3)
    model.twin.weight = model.conv.weight
    refused(model, "conv", ArgumentError, "design: conv shares its weight with another layer; leave it dense")
    assert model.twin.weight is model.conv.weight


def test_refuses_weights_shared_with_an_embedding():
    model = Small()
    model.words = nn.Embedding(8, 4)
    model.out = nn.Linear(4, 8)
    model.out.weight = model.words.weight
    epitome = EpitomeShape(out_channels=4, in_channels=2)
    refused(model, "out", ArgumentError, "out shares its weight with another layer", epitome)


def test_a_module_in_two_places_is_converted_once():
    conv = nn.Conv2d(4, 4, 3)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    report = convert_(model, NetworkDesign(layers={"0": LayerDesign(epitome=CONV)}))
    assert [r.name for r in report] == ["0"]
    assert model[2].weight.unique().numel() <= CONV.out_channels * CONV.in_channels * 9
    assert materialize_(model) == ["0"]


def test_refuses_a_second_conversion():
    model = Small()
    convert_(model, NetworkDesign(layers={"conv": LayerDesign(epitome=CONV)}))
    refused(model, "conv", ArgumentError, "conv: its weight is parametrized already; materialize_ the model first")
    materialize_(model)
    convert_(model, DESIGN)


def test_refuses_another_parametrization():
    model = Small()
    parametrizations.orthogonal(model.conv)
    refused(model, "conv", ArgumentError, "conv: its weight is parametrized already")


@pytest.mark.parametrize("kind", ["prune", "spectral_norm"])
def test_refuses_weights_that_a_hook_computes(kind):
    model = Small()
    if kind == "prune":
        prune.l1_unstructured(model.conv, "weight", 0.5)
    else:
        nn.utils.spectral_norm(model.conv)
    refused(
        model, "conv", ArgumentError, "design: conv: expected a weight that is a parameter, got one that is computed"
    )


def test_other_parametrizations_stay():
    model = Small()
    parametrizations.orthogonal(model.grouped)
    convert_(model, DESIGN)
    assert [name for name, _ in epitomes_of(model)] == ["conv", "fc"]
    assert materialize_(model) == ["conv", "fc"]
    assert parametrize.is_parametrized(model.grouped, "weight")


# Export.


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_after_materializing():
    model = Small().eval()
    convert_(model, DESIGN)
    expected = model(images())
    materialize_(model)
    program = torch.export.export(model, (images(),))
    assert set(program.state_dict) == set(Small().state_dict())
    torch.testing.assert_close(program.module()(images()), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_after_materializing(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = Small().eval()
    convert_(model, DESIGN)
    weight = model.conv.weight.detach().clone()
    materialize_(model)
    path = tmp_path / "small.onnx"
    torch.onnx.export(model, (images(),), path, dynamo=True, external_data=False)
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    # A plain convolution with a plain weight: nothing is gathered.
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Conv") == 2
    assert not {"Gather", "GatherElements", "GatherND"} & set(kinds)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    assert any(a.shape == weight.shape and (a == weight.numpy()).all() for a in stored.values())
