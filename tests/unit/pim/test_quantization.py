"""Quantized layers in a network: what they compute, how they come out again, and what is refused without a trace."""

import copy
import json

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError  # noqa: E402
from sparing.pim.block_ranges import spread_steps  # noqa: E402
from sparing.pim.convert import convert_, materialize_  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.design import LayerDesign, NetworkDesign, layer_grid  # noqa: E402
from sparing.pim.epitome import EpitomeShape  # noqa: E402
from sparing.pim.layers import trace_layers  # noqa: E402
from sparing.pim.quantization import calibrate_inputs_, dequantize_, quantize_  # noqa: E402
from sparing.pim.quantized_layers import is_quantized, quantized_layers, stored_weight  # noqa: E402

CROSSBAR = CrossbarSize(32, 8)
EPITOME = EpitomeShape(out_channels=6, in_channels=4, kernel=(4, 4))


def network(seed=0):
    """A convolution that stays dense, one that becomes an epitome, a grouped one, a linear one, one in float."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, groups=4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
            nn.Linear(10, 5),
        ).eval()


def designed(bits=3, activation_bits=8):
    layers = {name: LayerDesign(bits=bits) for name in ("0", "5", "8")} | {"9": LayerDesign()}
    layers["3"] = LayerDesign(bits=bits, epitome=EPITOME)
    return NetworkDesign(layers=layers, activation_bits=activation_bits)


def images(seed=0, count=4):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def hooked_weight_norm(module):
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(module)


@pytest.fixture
def model():
    found = network()
    convert_(found, designed())
    return found


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, before):
    now = model.state_dict()
    return list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in now)


@pytest.mark.parametrize("rule", ["max", "overlap", "weighted_mse"])
def test_layers_compute_with_codes_times_steps(model, rule):
    shapes = trace_layers(model, (3, 6, 6))
    layers = quantize_(model, designed(), crossbar=CROSSBAR, rule=rule, calibration=images())
    assert [layer.name for layer in layers] == ["0", "5", "8", "3"]
    for layer in layers:
        stored = layer.stored
        matrix = layer.codes * spread_steps(layer.weights.steps, layer.weights.grid, tuple(layer.codes.shape))
        rounded = matrix.T.reshape(stored.shape)
        if layer.epitome is not None:
            rounded = rounded.flatten()[layer.epitome.index]
        assert torch.equal(layer.module.weight, rounded)
        assert int(layer.codes.abs().max()) <= 3
        assert layer.weights.grid == layer_grid(shapes[layer.name], designed().layers[layer.name], CROSSBAR)
    kernel = layers[3].module.weight
    unrounded = stored_weight(model[3]).flatten()[layers[3].epitome.index]
    error = float((unrounded - kernel).double().square().sum().detach())
    assert layers[3].squared_error() == pytest.approx(error, rel=1e-5)
    energy = float(unrounded.double().square().sum().detach())
    assert layers[3].relative_error() == pytest.approx(error / energy, rel=1e-5)
    assert layers[3].num_weights == 12 * 8 * 9
    # The whole network, computed by hand.
    by_hand = copy.deepcopy(model)
    dequantize_(by_hand)
    materialize_(by_hand)
    x = images(1)
    for name, module in by_hand.named_children():
        layer = next((found for found in quantized_layers(model) if found.name == name), None)
        if layer is not None:
            module.weight.data = layer.module.weight.detach()
            x = layer.inputs.codes(x) * layer.inputs.step
        x = module(x)
    assert torch.equal(model(images(1)), x)


def test_rules_differ_in_error(model):
    errors = {}
    for rule in ("max", "weighted_mse"):
        errors[rule] = [layer.relative_error() for layer in quantize_(model, designed(), crossbar=CROSSBAR, rule=rule)]
        dequantize_(model)
    assert all(best < worst for best, worst in zip(errors["weighted_mse"], errors["max"], strict=True))


def test_out_again_bit_for_bit(model):
    before, expected = snapshot(model), model(images())
    parameters = list(model.parameters())
    quantize_(model, designed(), crossbar=CROSSBAR, calibration=images())
    assert not torch.equal(model(images()), expected)
    assert {id(parameter) for parameter in model.parameters()} == {id(parameter) for parameter in parameters}
    clone = copy.deepcopy(model)
    assert dequantize_(model) == ["0", "3", "5", "8"]
    assert unchanged(model, before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(images()), expected)
    assert dequantize_(model) == []
    assert all(not module._forward_pre_hooks for module in model.modules())
    # Also out of a copy, without touching its original.
    dequantize_(clone)
    assert unchanged(clone, before)
    quantize_(model, designed(), crossbar=CROSSBAR, calibration=images())


def test_only_what_the_design_quantizes(model):
    layers = quantize_(model, designed(), crossbar=CROSSBAR, inputs=False)
    assert all(layer.inputs is None for layer in layers)
    assert type(model[9]) is nn.Linear
    x = images()
    model(x)
    dequantize_(model)
    assert quantize_(model, designed(bits=32), crossbar=CROSSBAR) == []


def test_state_dict_round_trip(model):
    quantize_(model, designed(), crossbar=CROSSBAR, calibration=images(), refresh_every=2)
    model.train()
    for seed in range(3):
        model(images(seed))
    model.eval()
    other = network(seed=5)
    convert_(other, designed())
    quantize_(other, designed(), crossbar=CROSSBAR)
    assert other.load_state_dict(model.state_dict()).missing_keys == []
    assert torch.equal(other(images(7)), model(images(7)))
    json.dumps({name: tensor.tolist() for name, tensor in model.state_dict().items()})


def test_training_lowers_the_loss(model):
    quantize_(model, designed(), crossbar=CROSSBAR)
    model.train()
    assert all(layer.weights.training and layer.inputs.training for layer in quantized_layers(model))
    labels = torch.arange(40) % 5
    x = images(count=40) + labels[:, None, None, None] / 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(layer.stored.grad.abs().sum() > 0 for layer in quantized_layers(model))
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    assert bool(torch.isfinite(model(x)).all())


def test_modes_are_kept(model):
    model[3].train()
    quantize_(model, designed(), crossbar=CROSSBAR, calibration=[images(0), images(1)])
    assert [module.training for module in model] == [index == 3 for index in range(10)]
    layers = {layer.name: layer for layer in quantized_layers(model)}
    assert layers["3"].weights.training
    assert not layers["0"].weights.training
    assert int(layers["0"].weights.calls) == int(layers["3"].weights.calls) == 0
    assert int(layers["3"].inputs.calls) == 2
    expected = max(float(images(seed).abs().max()) for seed in (0, 1)) / 127
    assert float(layers["0"].inputs.step) == pytest.approx(expected, rel=0.02)


def test_inputs_may_be_named(model):
    quantize_(model, designed(), crossbar=CROSSBAR, calibration=images())
    x = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model[8](input=x), model[8](x))


def test_dry_runs_go_through(model):
    shapes = trace_layers(model, (3, 6, 6))
    quantize_(model, designed(), crossbar=CROSSBAR, calibration=images())
    assert trace_layers(model, (3, 6, 6)) == shapes


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (lambda m, d: d["layers"].update({"7": LayerDesign(bits=3)}), {}, ArgumentError, "7: expected a Conv2d or Lin"),
        (lambda m, d: d["layers"].update({"3": LayerDesign(bits=3)}), {}, ArgumentError, "3: expected a dense weight"),
        (lambda m, d: d["layers"].update({"0": LayerDesign(bits=3, epitome=EPITOME)}), {}, ArgumentError, "convert_"),
        (lambda m, d: d.update(activation_bits=1), {}, ArgumentError, "expected 2 to 16 for quantized inputs"),
        (lambda m, d: m[8].weight.data.fill_(float("nan")), {}, NonFiniteError, "model: 8"),
        (lambda m, d: None, {"rule": "mean"}, ArgumentError, "rule: expected"),
        (lambda m, d: None, {"refresh_every": 0}, ArgumentError, "refresh_every"),
        (lambda m, d: None, {"input_percentile": 3}, ArgumentError, "percentile"),
        (lambda m, d: None, {"calibration": []}, ArgumentError, "calibration: expected at least one batch"),
        (lambda m, d: None, {"calibration": images(), "inputs": False}, ArgumentError, "None with inputs=False"),
        (lambda m, d: None, {"calibration": [3]}, DtypeError, "calibration: expected tensors, got int"),
        (lambda m, d: None, {"calibration": torch.ones(1, 4, 6, 6)}, RuntimeError, "channels"),
        (lambda m, d: None, {"calibration": images() / 0}, NonFiniteError, "inputs of 0"),
        (lambda m, d: m.add_module("aside", nn.Linear(2, 2)), {}, ArgumentError, "never calls aside"),
    ],
)
def test_refusals_leave_no_trace(spoil, options, error, message, model):
    design = {"layers": dict(designed().layers), "activation_bits": 8}
    spoil(model, design)
    if hasattr(model, "aside"):
        # Beside the sequence: it is there, and never called.
        model = nn.ModuleDict({"aside": model.aside, "main": model[:10]})
        model.forward = model["main"].forward
        design["layers"] = {"aside": LayerDesign(bits=3), "main.0": LayerDesign(bits=3)}
        options = {"calibration": images()}
    before = snapshot(model)
    with pytest.raises(error, match=message):
        quantize_(model, NetworkDesign(**design), crossbar=CROSSBAR, **options)
    now = snapshot(model)
    assert list(now) == list(before)
    assert all(torch.equal(now[name].nan_to_num(7), before[name].nan_to_num(7)) for name in now)
    assert quantized_layers(model) == []


def test_refuses_what_is_quantized_or_parametrized(model):
    quantize_(model, designed(), crossbar=CROSSBAR)
    with pytest.raises(ArgumentError, match="0 is quantized already; dequantize_"):
        quantize_(model, designed(), crossbar=CROSSBAR)
    only = NetworkDesign(layers={"3": LayerDesign(bits=3, epitome=EPITOME)})
    with pytest.raises(ArgumentError, match="3 is quantized already"):
        quantize_(model, only, crossbar=CROSSBAR)
    dequantize_(model)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(ArgumentError, match="0: its weight has another parametrization"):
        quantize_(model, designed(), crossbar=CROSSBAR)


@pytest.mark.parametrize("compute", [lambda m: prune.l1_unstructured(m, "weight", 0.3), hooked_weight_norm])
def test_refuses_a_weight_that_a_hook_computes(compute, model):
    compute(model[8])
    before = snapshot(model)
    with pytest.raises(ArgumentError, match="design: 8: expected a weight that is a parameter, got one that is compu"):
        quantize_(model, designed(), crossbar=CROSSBAR, calibration=images())
    assert unchanged(model, before)
    assert not any(is_quantized(module) for module in model.modules())


def test_what_fails_later_leaves_what_is_quantized(model):
    def only(*names):
        return NetworkDesign(layers={name: designed().layers[name] for name in names})

    quantize_(model, only("0", "3"), crossbar=CROSSBAR, calibration=images())
    before, expected = snapshot(model), model(images())
    with pytest.raises(NonFiniteError):
        quantize_(model, only("5", "8"), crossbar=CROSSBAR, calibration=images() / 0)
    assert unchanged(model, before)
    assert torch.equal(model(images()), expected)
    assert [layer.name for layer in quantized_layers(model)] == ["0", "3"]


def test_materialized_as_it_computes(model):
    quantize_(model, designed(), crossbar=CROSSBAR, calibration=images(), refresh_every=1)
    with torch.no_grad():
        stored_weight(model[3]).mul_(1.3)
    expected = model(images())
    # In training mode a look at the weight must not find other steps.
    model.train()
    assert materialize_(model) == ["3"]
    assert torch.equal(model.eval()(images()), expected)
    # Also the quantizer of the inputs comes out, though its layer's weight is plain now.
    assert dequantize_(model) == ["0", "3", "5", "8"]
    assert not any(is_quantized(module) for module in model.modules())
    assert all(not module._forward_pre_hooks for module in model.modules())
    dense = {name: LayerDesign(bits=3) for name in ("0", "3", "5", "8")}
    quantize_(model, NetworkDesign(layers=dense), crossbar=CROSSBAR)


def test_calibration_anew_and_its_refusals(model):
    with pytest.raises(ArgumentError, match="expected quantized inputs, found none"):
        calibrate_inputs_(model, images())
    quantize_(model, designed(), crossbar=CROSSBAR)
    with pytest.raises(ArgumentError, match="no range yet"):
        model(images())
    calibrate_inputs_(model, images() * 10)
    wide = snapshot(model)
    with pytest.raises(NonFiniteError):
        calibrate_inputs_(model, [images(), images() / 0])
    assert unchanged(model, wide)
    model(images())
    calibrate_inputs_(model, images())
    assert float(model[0].input_quantizer.step) == pytest.approx(float(wide["0.input_quantizer.step"]) / 10)
