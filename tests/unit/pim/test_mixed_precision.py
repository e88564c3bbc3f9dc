"""Bits a layer: traces against whole Hessians, losses by their definition, and the best design by trying all."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from torch import nn  # noqa: E402
from torch.autograd.functional import hessian  # noqa: E402
from torch.func import functional_call  # noqa: E402

from sparing.errors import ArgumentError, NonFiniteError, ShapeError  # noqa: E402
from sparing.pim.convert import convert_  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.design import LayerDesign, NetworkDesign, num_crossbars  # noqa: E402
from sparing.pim.epitome import EpitomeShape  # noqa: E402
from sparing.pim.layers import trace_layers  # noqa: E402
from sparing.pim.mixed_precision import (  # noqa: E402
    BitSensitivity,
    hessian_traces,
    measure_bit_sensitivity,
    mixed_precision_design,
)
from sparing.pim.quantization import dequantize_, quantize_  # noqa: E402

CROSSBAR = CrossbarSize(16, 4)
LAYERS = ("0", "3", "6")


def designed(bits=32):
    layers = {name: LayerDesign(bits=bits) for name in LAYERS}
    layers["3"] = LayerDesign(bits=bits, epitome=EpitomeShape(out_channels=3, in_channels=3, kernel=(3, 3)))
    return NetworkDesign(layers=layers)


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = nn.Sequential(
            nn.Conv2d(3, 4, 2),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 6, 2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, 3),
        )
    convert_(found, designed())
    return found


@pytest.fixture(scope="module")
def data():
    x = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(12) % 3


def test_traces_are_those_of_the_hessian(model, data):
    # A little way down, where curvature is positive and large beside its chance.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    model.zero_grad()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    single = torch.tensor([hessian_traces(model, *data, LAYERS, num_samples=1, seed=seed) for seed in range(150)])
    several = torch.tensor(hessian_traces(model, *data, LAYERS, num_samples=150, seed=1))
    spread = single.std(0) / 150**0.5
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval()
    parameters = dict(model.named_parameters())
    for layer, name in enumerate(("0.weight", "3.parametrizations.weight.original", "6.weight")):

        def loss(weight, name=name):
            logits = functional_call(model, {**parameters, name: weight}, (data[0],))
            return nn.functional.cross_entropy(logits, data[1])

        size = parameters[name].numel()
        exact = float(hessian(loss, parameters[name].detach()).reshape(size, size).trace())
        for found in (single.mean(0), several):
            assert float(found[layer]) == pytest.approx(exact, abs=4 * float(spread[layer]))
        # Sharp enough to tell a trace from its half and its double.
        assert 8 * float(spread[layer]) < exact


def test_the_same_seed_gives_the_same_traces(model, data):
    first, second, other = (hessian_traces(model, *data, LAYERS, num_samples=2, seed=seed) for seed in (3, 3, 4))
    assert first == second != other


def test_expected_losses_by_their_definition(model, data):
    found = measure_bit_sensitivity(model, designed(), *data, crossbar=CROSSBAR, bits=(5, 3), num_samples=4, seed=2)
    assert found.layers == LAYERS
    assert found.bits == (3, 5)
    assert list(found.traces) == hessian_traces(model, *data, LAYERS, num_samples=4, seed=2)
    for choice, bits in enumerate(found.bits):
        quantized = quantize_(model, designed(bits), crossbar=CROSSBAR, inputs=False)
        for layer, one in enumerate(quantized):
            assert found.errors[layer][choice] == one.squared_error()
            if found.traces[layer] > 0:
                expected = 0.5 * found.traces[layer] / one.module.weight.numel() * one.squared_error()
                assert found.loss[layer][choice] == pytest.approx(expected)
        dequantize_(model)
    assert all(few > many > 0 for few, many in found.loss)


def test_no_layer_is_free(model, data, monkeypatch):
    monkeypatch.setattr("sparing.pim.mixed_precision.hessian_traces", lambda *a, **k: [-5.0, 108.0, 72.0])
    found = measure_bit_sensitivity(model, designed(), *data, crossbar=CROSSBAR, bits=(3,))
    # Traces a weight 108 / 96 and 72 / 72; the lower of the two middle ones is the median.
    assert found.loss[0][0] == pytest.approx(0.5 * 0.01 * 1 * found.errors[0][0])
    assert found.traces == (-5.0, 108.0, 72.0)


def every_design(network, options, sensitivity):
    for bits in itertools.product(*options):
        layers = {
            name: layer.model_copy(update={"bits": b})
            for (name, layer), b in zip(designed().layers.items(), bits, strict=True)
        }
        loss = sum(sensitivity.loss[i][sensitivity.bits.index(b)] for i, b in enumerate(bits))
        design = NetworkDesign(layers=layers)
        yield num_crossbars(network, design, CROSSBAR), loss, design


def test_the_best_design_of_all(model):
    network = trace_layers(model, (3, 4, 4))
    loss = ((0.9, 0.2, 0.1, 0.0), (0.5, 0.4, 0.2, 0.1), (3.0, 0.3, 0.2, 0.1))
    known = BitSensitivity(LAYERS, (3, 5, 7, 9), (1.0,) * 3, loss, loss)
    tried = list(every_design(network, [known.bits] * 3, known))
    least, most = min(t[0] for t in tried), max(t[0] for t in tried)
    for budget in range(least, most + 4, 3):
        found = mixed_precision_design(network, designed(), known, crossbar=CROSSBAR, max_crossbars=budget)
        best = min(loss for count, loss, _ in tried if count <= budget)
        count, cost, _ = next(t for t in tried if t[2].layers == found.layers)
        assert count <= budget
        assert cost == pytest.approx(best)
        greedy = mixed_precision_design(
            network, designed(), known, crossbar=CROSSBAR, max_crossbars=budget, exact=False
        )
        assert num_crossbars(network, greedy, CROSSBAR) <= budget
        assert greedy.layers["3"].epitome == found.layers["3"].epitome == designed().layers["3"].epitome
    assert found.activation_bits == designed().activation_bits
    with pytest.raises(ArgumentError, match=f"max_crossbars: expected at least {least}, .* got {least - 1}"):
        mixed_precision_design(network, designed(), known, crossbar=CROSSBAR, max_crossbars=least - 1)


def test_settled_bits_stay(model):
    network = trace_layers(model, (3, 4, 4))
    known = BitSensitivity(LAYERS[:2], (3, 9), (1.0,) * 2, ((1.0, 0.1),) * 2, ((1.0, 0.1),) * 2)
    options = {"crossbar": CROSSBAR, "max_crossbars": 10_000}
    found = mixed_precision_design(network, designed(), known, bits_of={"6": 4, "0": 3}, **options)
    assert [layer.bits for layer in found.layers.values()] == [3, 9, 4]
    with pytest.raises(ArgumentError, match="sensitivity: nothing is known of 6"):
        mixed_precision_design(network, designed(), known, **options)
    with pytest.raises(ArgumentError, match="bits_of: the design has no layer 7"):
        mixed_precision_design(network, designed(), known, bits_of={"7": 3}, **options)
    with pytest.raises(ArgumentError, match="bits: expected 2 to 16"):
        mixed_precision_design(network, designed(), known, bits_of={"6": 1}, **options)


def test_refusals(model, data):
    x, labels = data
    with pytest.raises(ArgumentError, match="num_samples: expected at least 1, got 0"):
        hessian_traces(model, x, labels, LAYERS, num_samples=0)
    with pytest.raises(ShapeError, match="labels: expected one for each of 12 images, got 11"):
        hessian_traces(model, x, labels[:11], LAYERS)
    with pytest.raises(ArgumentError, match="layers: 1: expected a Conv2d or Linear of the model, got BatchNorm2d"):
        hessian_traces(model, x, labels, ["1"])
    with pytest.raises(ArgumentError, match="layers: expected each stored weight once"):
        hessian_traces(model, x, labels, ["0", "0"])
    with pytest.raises(NonFiniteError, match="model: expected a finite loss on these images, got nan"):
        hessian_traces(model, x * float("nan"), labels, LAYERS)
    for bits in ((), (3, 32)):
        with pytest.raises(ArgumentError, match="bits"):
            measure_bit_sensitivity(model, designed(), x, labels, crossbar=CROSSBAR, bits=bits)
    quantize_(model, designed(3), crossbar=CROSSBAR)
    with pytest.raises(ArgumentError, match="dequantize_ it first"):
        hessian_traces(model, x, labels, LAYERS)
    dequantize_(model)
    first = designed(3).model_copy(update={"layers": {"0": LayerDesign(bits=3)}})
    others = designed().model_copy(update={"layers": {"6": LayerDesign()}})
    quantize_(model, first, crossbar=CROSSBAR)
    with pytest.raises(ArgumentError, match="dequantize_ it first"):
        measure_bit_sensitivity(model, others, x, labels, crossbar=CROSSBAR)
    assert dequantize_(model) == ["0"]
