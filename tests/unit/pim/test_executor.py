"""The executor: PyTorch's convolution if the ADC is ideal, plain loops over cells if not; models are left as found."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, NonFiniteError, ShapeError  # noqa: E402
from sparing.pim import readout  # noqa: E402
from sparing.pim.adc import AdcModel  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.datapath import layer_sums  # noqa: E402
from sparing.pim.design import LayerDesign  # noqa: E402
from sparing.pim.epitome import EpitomeShape  # noqa: E402
from sparing.pim.executor import execute, executing  # noqa: E402
from sparing.pim.layers import LayerShape  # noqa: E402
from sparing.pim.mapping import NetworkMapping, map_layer  # noqa: E402
from sparing.pim.nonideal import CellVariation, change_cells  # noqa: E402
from sparing.pim.readout import layer_program  # noqa: E402

IDEAL = AdcModel(bits=None, num_dacs=5)
XBAR = CrossbarSize(64, 64)


@pytest.fixture(params=["any", "plain"])
def kernel(request, monkeypatch):
    """The kernel that this machine takes, and the one that works everywhere."""
    if request.param == "plain":
        monkeypatch.setattr(readout, "available_kernels", lambda device: ("plain",))
    return request.param


# With each kernel: Hypothesis and fixtures of a function do not go together.
def _plain(mapping, adc, **where):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readout, "available_kernels", lambda device: ("plain",))
        return layer_program(mapping, adc, **where)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ideal_adc_is_the_integer_convolution(mapped, data):
    (layer, design), crossbar = data.draw(mapped.layers()), data.draw(mapped.crossbars)
    bits, seed, num_dacs = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 99)), data.draw(st.integers(1, 40))
    codes, _, mapping = mapped.mapped(layer, design, crossbar, activation_bits=bits, seed=seed, unit=True)
    x = mapped.input_codes(layer, bits, count=2, seed=seed)
    expected = mapped.convolved(layer, mapped.weight_of(layer, design, codes), x)
    adc = AdcModel(bits=None, num_dacs=num_dacs)
    for program in (layer_program(mapping, adc), layer_program(mapping, adc, fast=True), _plain(mapping, adc)):
        assert torch.equal(layer_sums(program, x).double(), expected)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_steps_of_blocks(mapped, data):
    (layer, design), crossbar = data.draw(mapped.layers()), data.draw(mapped.crossbars)
    codes, _, mapping = mapped.mapped(layer, design, crossbar, activation_bits=5, seed=data.draw(st.integers(0, 99)))
    x = mapped.input_codes(layer, 5, count=1, seed=3)
    each = torch.empty(mapping.cells.shape[2] * layer.groups, mapping.cells.shape[3])
    for block in mapping.blocks:
        rows, cols = (
            slice(a, a + n) for a, n in ((block.row_start, block.num_rows), (block.col_start, block.num_cols))
        )
        each[rows, cols] = block.step
    group = torch.arange(each.shape[1]) // (layer.out_channels // layer.groups) if layer.groups > 1 else 0
    lines = torch.arange(mapping.cells.shape[2])[:, None] + group * mapping.cells.shape[2]
    steps = each.gather(0, lines.expand(-1, each.shape[1])).T.reshape(codes.shape).double()
    expected = mapped.convolved(layer, mapped.weight_of(layer, design, codes.double() * steps), x * 0.5)
    assert torch.equal(layer_sums(layer_program(mapping, IDEAL), x).double(), expected)
    assert torch.equal(layer_sums(layer_program(mapping, IDEAL, fast=True), x).double(), expected)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_tables_by_loops_over_cells(mapped, data):
    layer, design = data.draw(mapped.layers(most=4, side=1))
    crossbar, seed = data.draw(mapped.crossbars), data.draw(st.integers(0, 99))
    _, _, mapping = mapped.mapped(layer, design, crossbar, activation_bits=3, seed=seed)
    x = mapped.input_codes(layer, 3, count=1, seed=seed)
    adc = data.draw(
        st.builds(
            AdcModel,
            bits=st.sampled_from([1, 2, 3, 6]),
            full_scale=st.sampled_from([None, 1.0, 5.0, 7.5, 20.0]),
            num_dacs=st.integers(1, 40),
        )
    )
    expected = mapped.cell_sums(mapping, x[0].numpy(), adc)
    for program in (layer_program(mapping, adc), _plain(mapping, adc)):
        # Steps are powers of two; other full scales round once for each block, in float32.
        np.testing.assert_allclose(layer_sums(program, x)[0].numpy(), expected, rtol=2e-6, atol=1e-4)
        if adc.full_scale is None or adc.bits == 1:
            np.testing.assert_array_equal(layer_sums(program, x)[0].numpy(), expected)


def test_word_lines_are_driven_in_their_own_order(mapped):
    # Rounds whose channels go round: features come in another order than the lines they drive, two lines at once.
    layer = LayerShape("layer", "conv", 6, 8, (1, 1), (1, 1), (0, 0), 1, (2, 2), (2, 2))
    design = LayerDesign(bits=4, epitome=EpitomeShape(out_channels=2, in_channels=3))
    _, _, mapping = mapped.mapped(layer, design, CrossbarSize(8, 8), activation_bits=4, seed=1)
    assert (mapping.tables.ifrt[:, 0] + mapping.tables.ifat[:, 1] > 3).any()
    x = mapped.input_codes(layer, 4, count=1, seed=1)
    adc = AdcModel(bits=1, num_dacs=2)
    found = layer_sums(layer_program(mapping, adc), x)[0].numpy()
    np.testing.assert_array_equal(found, mapped.cell_sums(mapping, x[0].numpy(), adc))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_changed_cells_by_loops(mapped, data):
    layer, design = data.draw(mapped.layers(most=4, side=1))
    crossbar, seed = data.draw(mapped.crossbars), data.draw(st.integers(0, 99))
    _, _, mapping = mapped.mapped(layer, design, crossbar, activation_bits=3, seed=seed)
    x = mapped.input_codes(layer, 3, count=1, seed=seed)
    change = CellVariation(p_stuck_0=0.2, p_stuck_1=0.2, sigma=data.draw(st.sampled_from([0.0, 0.3])))
    cells = change_cells(NetworkMapping({"layer": mapping}), change, seed=seed)["layer"]
    for adc in (AdcModel(num_dacs=7), AdcModel(bits=None)):
        expected = mapped.cell_sums(mapping, x[0].numpy(), adc, cells)
        found = layer_sums(layer_program(mapping, adc, cells=cells), x)[0].numpy()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("fast", [True, False])
def test_sums_beyond_float32(mapped, fast):
    layer = LayerShape("layer", "conv", 40, 3, (3, 3), (1, 1), (1, 1), 1, (3, 3), (3, 3))
    codes, _, mapping = mapped.mapped(
        layer, LayerDesign(bits=9), CrossbarSize(128, 2), activation_bits=16, seed=0, unit=True
    )
    x = mapped.input_codes(layer, 16, count=2, seed=0)
    found = layer_sums(layer_program(mapping, IDEAL, fast=fast), x)
    expected = mapped.convolved(layer, codes.double(), x)
    assert expected.abs().max() > 2**24
    assert found.dtype == torch.float64
    assert torch.equal(found, expected)


def test_sums_of_groups_beyond_float32(mapped):
    # 128 channels of a group lie in several blocks: one block's rows alone would seem to fit float32.
    layer = LayerShape("layer", "conv", 512, 4, (3, 3), (1, 1), (1, 1), 4, (3, 3), (3, 3))
    crossbar, steps = CrossbarSize(64, 4), torch.ones(19, 4)
    codes = torch.full((4, 128, 3, 3), 7)
    mapping = map_layer(codes, steps, layer, LayerDesign(bits=4), crossbar, 12)
    x = torch.full((1, 512, 3, 3), 2047)
    program = layer_program(mapping, IDEAL)
    assert mapped.convolved(layer, codes.double(), x).max() < 2**24  # only sums of planes apart are larger
    assert program.dtype == torch.float64
    assert torch.equal(layer_sums(program, x).double(), mapped.convolved(layer, codes.double(), x))


def test_six_bits_lose_something(mapped, kernel):
    # 100 rows of ones on one crossbar, driven at once: 6 bits with lsb 1 stop at 63.
    layer = LayerShape("layer", "linear", 100, 1, (1, 1), (1, 1), (0, 0), 1, (1, 1), (1, 1))
    mapping = map_layer(torch.ones(100, 1).int(), torch.ones(1, 1), layer, LayerDesign(bits=2), CrossbarSize(), 3)
    x = torch.ones(1, 100, 1, 1).int()

    def sums(**adc):
        return float(layer_sums(layer_program(mapping, AdcModel(**adc)), x))

    assert sums(bits=None) == 100
    assert sums(bits=6) == sums(bits=6, full_scale=63.0) == 63
    assert sums(bits=6, full_scale=126.0) == 100  # lsb 2
    assert sums(bits=6, num_dacs=64) == 63 + 36
    assert sums(bits=6, num_dacs=50) == 100
    assert sums(bits=1) == 1


def test_lsb():
    assert AdcModel(bits=6).lsb == 1
    assert AdcModel(bits=6, full_scale=126).lsb == 2
    assert AdcModel(bits=None).lsb == 1


@pytest.mark.parametrize("wrong", [{"bits": 0}, {"bits": 17}, {"full_scale": 0.0}, {"num_dacs": 0}])
def test_adc_refuses(wrong):
    with pytest.raises(ArgumentError):
        AdcModel(**wrong)
    with pytest.raises(ArgumentError, match="full_scale"):
        AdcModel(bits=None, full_scale=3.0)


def test_network_is_the_quantized_network(network):
    model, mapping, images = network
    with torch.no_grad():
        expected = model(images)
    for fast in (True, False):
        found = execute(model, mapping, images, adc=IDEAL, fast=fast)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found, execute(model, mapping, images, adc=IDEAL, fast=True))
    # 6 bits hold any sum of 63 word lines; 1 bit does not.
    assert torch.equal(found, execute(model, mapping, images, adc=AdcModel(bits=6, full_scale=63.0, num_dacs=63)))
    assert not torch.allclose(expected, execute(model, mapping, images, adc=AdcModel(bits=1)), atol=1e-3)


def test_same_bytes_whatever_the_batch_and_the_kernel(network, kernel):
    model, mapping, images = network
    cells = change_cells(mapping, CellVariation(p_stuck_1=0.02, sigma=0.2, on_off_ratio=50.0), seed=4)
    again = change_cells(mapping, CellVariation(p_stuck_1=0.02, sigma=0.2, on_off_ratio=50.0), seed=4)
    for own in (None, cells):
        adc = AdcModel(bits=4)
        whole = execute(model, mapping, images, adc=adc, cells=own)
        single = torch.cat([execute(model, mapping, image[None], adc=adc, cells=own) for image in images])
        # The digital parts between (here the mean of vectors) are PyTorch's own.
        assert torch.allclose(whole, single, rtol=1e-6, atol=1e-6)
        layer = mapping.layers["even"]
        program = layer_program(layer, adc, cells=None if own is None else own["even"])
        x = torch.randint(-32, 32, (5, 8, 9, 9))
        together = layer_sums(program, x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sparing.pim.datapath._SUMS", 2000)  # a few rows of one image at once
            assert torch.equal(together, layer_sums(program, x))
        assert torch.equal(together, torch.cat([layer_sums(program, one[None]) for one in x]))
    for name in cells:
        assert all(np.array_equal(a, b) for a, b in zip(cells[name], again[name], strict=True))


def test_model_is_restored(network):
    model, mapping, images = network
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        with executing(model, mapping, adc=AdcModel()):
            assert not model.training
            model(images)
        assert all(m.training for m in model.modules())
        with pytest.raises(ShapeError, match="as traced"):
            execute(model, mapping, images[..., :7], adc=AdcModel())
        with pytest.raises(NonFiniteError, match="stem"):
            execute(model, mapping, images * float("nan"), adc=AdcModel())
        assert all("forward" not in vars(m) for m in model.modules())
        assert all(m.training for m in model.modules())
    finally:
        model.eval()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_replaced_forward_comes_back(network):
    model, mapping, images = network
    own = model.fc.forward
    model.fc.forward = own
    try:
        execute(model, mapping, images, adc=AdcModel())
        assert vars(model.fc)["forward"] is own
    finally:
        del model.fc.forward


def test_a_linear_layer_takes_any_layout(network):
    model, mapping, _ = network
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    with executing(model, mapping, adc=IDEAL, fast=True):
        assert torch.equal(model.fc(x), model.fc(x.contiguous()))


def test_refusals(network, mapped):
    model, mapping, images = network
    with pytest.raises(ArgumentError, match="fast"):
        execute(model, mapping, images, adc=AdcModel(), fast=True)
    with pytest.raises(ArgumentError, match="stem"):
        execute(nn.Sequential(), mapping, images, adc=AdcModel())
    with pytest.raises(ArgumentError, match="cells"):
        execute(model, mapping, images, adc=AdcModel(), cells={})
    cells = change_cells(mapping, CellVariation(), seed=0)
    with pytest.raises(ArgumentError, match="blocks"):
        execute(model, mapping, images, adc=AdcModel(), cells={**cells, "stem": cells["fc"]})
    other = mapped.Net()

    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    class Doubled(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(2 * x, weight, bias)

    for kind in (Standardized, Doubled):
        other.down = kind(12, 8, 3, stride=2, padding=1)
        with pytest.raises(
            ArgumentError, match=f"down: expected a Conv2d that computes as PyTorch's, got a {kind.__name__}"
        ):
            execute(other, mapping, images, adc=AdcModel())
    for stride, padding in ((1, 1), (2, 0), (2, "valid")):
        other.down = nn.Conv2d(12, 8, 3, stride=stride, padding=padding)
        with pytest.raises(ArgumentError, match="down: expected the model's layer to be"):
            execute(other, mapping, images, adc=AdcModel())
    assert all("forward" not in vars(m) for m in (*model.modules(), *other.modules()))
