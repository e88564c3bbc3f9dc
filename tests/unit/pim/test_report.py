"""Whole networks on a chip: the published reference, counts known from arithmetic, and reports that add up."""

import dataclasses
import json
import math
import time

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ShapeError  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.design import LayerDesign, NetworkDesign, dense_design, uniform_design  # noqa: E402
from sparing.pim.epitome import EpitomeShape  # noqa: E402
from sparing.pim.hardware import load_hardware  # noqa: E402
from sparing.pim.layers import trace_layers  # noqa: E402
from sparing.pim.report import hardware_report  # noqa: E402

SIZE = CrossbarSize()
# MNSIM 2.0 at its defaults, ResNet-50 of 1000 classes, 9-bit activations, as reported.
REFERENCE = {
    9: {"ms": 41.6, "mJ": 30.3, "adc": 22.0, "buffers": 8.2, "mm2": 3756, "tiles": 870, "crossbars": 3472},
    7: {"ms": 41.3, "mJ": 28.4},
}
# More digits and more bits: a replay of the same description, pixel by pixel in plain Python, written apart from this.
REPLAY = {
    9: {"ms": 41.6404, "mJ": 30.3400, "mm2": 3756.484, "tiles": 870, "crossbars": 3472},
    7: {"ms": 41.3091, "mJ": 28.4480, "mm2": 2928.399, "tiles": 661, "crossbars": 2604},
    5: {"ms": 38.73, "mJ": 17.63, "mm2": 1931.6, "tiles": 436, "crossbars": 1736},
    3: {"ms": 29.76, "mJ": 11.37, "mm2": 1085.8, "tiles": 227, "crossbars": 868},
}
ENERGY = {
    9: {"adc": 21.97, "buffers": 8.18, "crossbar": 0.117, "dac": 0.032, "digital": 0.035, "pooling": 0.001},
    7: {"adc": 17.55, "buffers": 10.75, "crossbar": 0.091, "dac": 0.025, "digital": 0.029, "pooling": 0.001},
}


@pytest.fixture(scope="module")
def hardware():
    return load_hardware("mnsim")


@pytest.fixture(scope="module")
def resnet50(network_of):
    return network_of("resnet50", 1000)


def in_the_reference_s_order(network):
    """The reference lays a shortcut's convolution behind the third of its block; PyTorch calls it first."""
    steps, waiting = [], []
    for step in network.steps:
        if "downsample" in step.name:
            waiting.append(step)
            continue
        if step.kind == "sum":
            steps, waiting = steps + waiting, []
        steps.append(step)
    return dataclasses.replace(network, steps=tuple(steps))


@pytest.mark.parametrize("bits", REFERENCE)
def test_the_reference_is_met(bits, resnet50, hardware):
    """Within a hundredth, where five are the goal; the layers lie in the order of their calls."""
    found, expected = hardware_report(resnet50, dense_design(resnet50, bits=bits), hardware).design, REFERENCE[bits]
    assert found.latency_s * 1e3 == pytest.approx(expected["ms"], rel=0.01)
    assert found.energy_j * 1e3 == pytest.approx(expected["mJ"], rel=0.01)
    if bits == 9:
        assert found.area_m2 * 1e6 == pytest.approx(expected["mm2"], rel=0.01)
        for name in ("adc", "buffers"):
            assert found.energy_by_component_j[name] * 1e3 == pytest.approx(expected[name], rel=0.01)
        assert (found.num_crossbars, found.num_tiles) == (expected["crossbars"], expected["tiles"])


@pytest.mark.parametrize("bits", REPLAY)
def test_a_replay_pixel_by_pixel_is_met_to_its_digits(bits, resnet50, hardware):
    found = hardware_report(in_the_reference_s_order(resnet50), dense_design(resnet50, bits=bits), hardware).design
    expected = REPLAY[bits]
    assert (found.num_crossbars, found.num_tiles) == (expected["crossbars"], expected["tiles"])
    assert found.latency_s * 1e3 == pytest.approx(expected["ms"], rel=2e-4)
    assert found.energy_j * 1e3 == pytest.approx(expected["mJ"], rel=5e-4)
    assert found.area_m2 * 1e6 == pytest.approx(expected["mm2"], rel=5e-5)


@pytest.mark.parametrize("bits", ENERGY)
def test_energy_by_component(bits, resnet50, hardware):
    found = hardware_report(resnet50, dense_design(resnet50, bits=bits), hardware).design
    parts = {name: value * 1e3 for name, value in found.energy_by_component_j.items() if value}
    assert parts == pytest.approx(ENERGY[bits], abs=0.006)
    assert {"tables", "links"} == set(found.energy_by_component_j) - set(parts)
    assert found.input_buffer_bytes == {9: 2048, 7: 4096}[bits]


def test_steps_of_the_replay(resnet50, hardware):
    """First and last pixel of steps along the network, in ms, of the replay."""
    network = in_the_reference_s_order(resnet50)
    steps = {step.name: step for step in hardware_report(network, dense_design(network, bits=9), hardware).steps}
    expected = {
        "conv1": (0.002, 25.322),
        "pool:1": (0.242, 25.325),
        "layer1.0.conv3": (0.713, 33.012),
        "sum:1": (0.719, 33.018),
        "layer2.0.downsample.0": (1.979, 34.756),
        "layer3.5.conv2": (20.114, 39.129),
        "layer4.2.conv3": (32.656, 40.770),
        "pool:2": (41.624, 41.624),
        "fc": (41.640, 41.640),
    }
    for name, (first, last) in expected.items():
        assert (steps[name].first_s * 1e3, steps[name].last_s * 1e3) == pytest.approx((first, last), abs=6e-4), name


@pytest.mark.parametrize(("name", "count"), [("resnet18", 6592), ("resnet50", 13120), ("resnet101", 22912)])
def test_unquantized_networks_take_32_planes(name, count, network_of, hardware):
    network = network_of(name)
    report = hardware_report(network, dense_design(network), hardware)
    assert report.num_crossbars == report.num_crossbars_float == report.dense.num_crossbars == count
    assert (report.ratio.bits, report.ratio.epitome, report.ratio.total) == (1, 1, 1)


def test_a_uniform_design_has_the_counts_of_the_arithmetic(network_of, resnet50, hardware):
    """17 layers replaced: 168 blocks at 10 classes; 1.10 times the rounds, 1.05 times wrapped."""
    network = network_of("resnet50")
    report = hardware_report(network, uniform_design(network, SIZE, bits=3), hardware)
    assert report.num_crossbars == 336
    assert report.ratio.total == pytest.approx(39.05, abs=0.01)
    assert report.ratio.bits == 16
    assert report.ratio.bits * report.ratio.epitome == pytest.approx(report.ratio.total)
    assert sum(step.epitome is not None for step in report.steps) == 17
    plain, wrapped = (
        hardware_report(resnet50, uniform_design(resnet50, SIZE, bits=3, wrapped=w), hardware) for w in (False, True)
    )
    assert plain.ratio.epitome == pytest.approx(2.26, abs=0.005)
    assert plain.design.num_rounds / plain.dense.num_rounds == pytest.approx(1.10, abs=0.005)
    assert wrapped.design.num_rounds / wrapped.dense.num_rounds == pytest.approx(1.05, abs=0.005)
    assert wrapped.design.adc_conversions < wrapped.dense.adc_conversions < plain.design.adc_conversions
    assert wrapped.design.energy_j < plain.design.energy_j
    assert wrapped.design.latency_s < plain.design.latency_s
    assert plain.dense == wrapped.dense
    assert 0 < wrapped.design.table_bits < plain.design.table_bits
    assert plain.design.area_by_component_m2["tables"] == pytest.approx(17 * 4.05803e-8)


@pytest.mark.parametrize("preset", ["mnsim", "isaac"])
def test_parts_add_up(preset, network_of):
    network, chip = network_of("resnet18"), load_hardware(preset)
    report = hardware_report(network, uniform_design(network, chip.crossbar, bits=3), chip)
    for cost in (report.design, report.dense):
        assert math.fsum(cost.energy_by_component_j.values()) == pytest.approx(cost.energy_j)
        assert math.fsum(cost.area_by_component_m2.values()) == pytest.approx(cost.area_m2)
        assert math.fsum(cost.latency_by_component_s.values()) == pytest.approx(cost.serial_s)
        assert cost.energy_delay_js == pytest.approx(cost.energy_j * cost.latency_s)
        assert 0 < cost.utilization <= 1
        assert cost.latency_s < cost.serial_s
    for name in ("num_crossbars", "num_tiles", "adc_conversions", "table_bits"):
        assert sum(getattr(step, name) for step in report.steps) == getattr(report.design, name)
    assert math.fsum(step.serial_s for step in report.steps) == pytest.approx(report.design.serial_s)
    assert math.fsum(math.fsum(s.energy_j.values()) for s in report.steps) == pytest.approx(report.design.energy_j)
    assert math.fsum(step.area_m2 for step in report.steps) == pytest.approx(report.design.area_m2)
    assert max(step.last_s for step in report.steps) == report.design.latency_s
    for step in report.steps:
        assert step.serial_s == pytest.approx(math.fsum(step.latency_s.values()))
        if step.kind in ("sum", "pool"):  # nothing is merged in them: all that travels is what is sent
            bits = step.latency_s["send"] * chip.links.link_bits_per_s
            assert step.energy_j["links"] == pytest.approx(bits * chip.links.energy_j_per_bit)
        if step.ratio is not None:
            assert step.ratio.total == pytest.approx(step.ratio.bits * step.ratio.epitome)


def test_the_dense_network_is_compared_at_the_layers_own_bits(network_of, hardware):
    network = network_of("resnet18")
    base = dense_design(network, bits=3)
    layers = dict(base.layers, fc=LayerDesign(bits=9))
    layers["layer4.1.conv2"] = LayerDesign(bits=5, epitome=EpitomeShape(out_channels=256, in_channels=112))
    report = hardware_report(network, base.model_copy(update={"layers": layers}), hardware)
    steps = {step.name: step for step in report.steps}
    assert (steps["fc"].bits, steps["fc"].ratio.bits) == (9, 4)
    assert steps["layer4.1.conv2"].ratio.bits == 8
    assert steps["layer4.1.conv2"].ratio.epitome == 38 / 4
    assert steps["layer4.1.conv2"].epitome == (256, 112, 3, 3)
    assert report.num_crossbars_float == 6592
    assert report.dense.num_crossbars - report.num_crossbars == (38 - 4) * 4


def test_layers_that_are_not_named_stay_off_the_chip(network_of, hardware):
    network = network_of("resnet18")
    whole = dense_design(network, bits=3)
    layers = {name: layer for name, layer in whole.layers.items() if name not in ("conv1", "fc")}
    report = hardware_report(network, whole.model_copy(update={"layers": layers}), hardware)
    assert report.off_chip == ("conv1", "fc")
    assert not {"conv1", "fc"} & {step.name for step in report.steps}
    full = hardware_report(network, whole, hardware)
    assert full.off_chip == ()
    assert (
        0
        < full.num_crossbars - report.num_crossbars
        == sum(step.num_crossbars for step in full.steps if step.name in ("conv1", "fc"))
    )
    assert report.design.latency_s < full.design.latency_s


def test_designs_that_do_not_fit_are_refused(network_of, hardware):
    network = network_of("resnet18")
    with pytest.raises(ArgumentError, match="at least one layer"):
        hardware_report(network, NetworkDesign(layers={}), hardware)
    with pytest.raises(ArgumentError, match="no mapped layer conv9"):
        hardware_report(network, NetworkDesign(layers={"conv9": LayerDesign()}), hardware)
    large = LayerDesign(epitome=EpitomeShape(out_channels=65, in_channels=3))
    with pytest.raises(ShapeError, match="epitome"):
        hardware_report(network, NetworkDesign(layers={"conv1": large}), hardware)


def test_a_report_is_a_frozen_value_and_json(network_of, hardware):
    network = network_of("resnet18")
    design = uniform_design(network, SIZE, bits=3, wrapped=True)
    report = hardware_report(network, design, hardware)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.num_crossbars = 1
    assert report == hardware_report(network, design, hardware)
    found = json.loads(report.to_json())
    assert found["num_crossbars"] == report.num_crossbars
    assert found["ratio"] == {"bits": 16.0, "epitome": report.ratio.epitome, "total": report.ratio.total}
    assert len(found["steps"]) == len(report.steps)
    assert any(step["wrapped"] for step in found["steps"])


class Branches(torch.nn.Module):
    """Concatenated branches, groups, a squeeze that multiplies, a layer used twice."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.stem, self.depth = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.left, self.right = nn.Conv2d(16, 8, 1, stride=2), nn.Conv2d(16, 8, 5, stride=2, padding=2)
        self.again, self.gate, self.fc = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, x):
        x = self.depth(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.again(self.again(x)) + x
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("preset", ["mnsim", "isaac"])
def test_any_traced_network_has_a_report(preset):
    network = trace_layers(Branches(), (3, 12, 12))
    report = hardware_report(network, dense_design(network, bits=4), load_hardware(preset))
    steps = {step.name: step for step in report.steps}
    assert steps["fc"].last_s == report.design.latency_s
    assert steps["gate"].first_s > steps["sum:1"].last_s
    assert steps["again"].num_rounds == 1
    assert report.design.num_rounds == 144 * 2 + 36 * 2 + 36 * 2 + 1 + 1


def test_a_chip_grows_where_its_grid_is_too_small(network_of, hardware):
    network = network_of("resnet18")
    design = dense_design(network, bits=9)
    small = hardware.model_copy(update={"links": hardware.links.model_copy(update={"grid_side": 1})})
    found, usual = (hardware_report(network, design, chip).design for chip in (small, hardware))
    assert found.num_tiles == usual.num_tiles > 1
    assert found.latency_s < usual.latency_s  # the accumulator is nearer


def test_smaller_crossbars_are_counted(network_of, hardware):
    network = network_of("resnet18")
    small = hardware.with_crossbar(CrossbarSize(64, 64))
    report = hardware_report(network, dense_design(network, bits=3), small)
    assert report.crossbar == "64x64"
    assert report.num_crossbars > 10 * 412
    assert report.design.area_m2 > 0


def test_a_report_is_quick(resnet50, hardware):
    """The floor of two seconds; the time itself stands in the decision."""
    design = uniform_design(resnet50, SIZE, bits=3)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        hardware_report(resnet50, design, hardware)
        times.append(time.perf_counter() - start)
    assert min(times) < 2
