"""Networks that compute with what their cells hold: the executor with an ideal ADC, and by hand."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError  # noqa: E402
from sparing.pim.adc import AdcModel  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.design import LayerDesign  # noqa: E402
from sparing.pim.executor import execute  # noqa: E402
from sparing.pim.layers import LayerShape  # noqa: E402
from sparing.pim.mapping import NetworkMapping, map_layer  # noqa: E402
from sparing.pim.nonideal import CellVariation, change_cells  # noqa: E402
from sparing.pim.programmed import cell_weights, programmed  # noqa: E402
from sparing.pim.quantization import dequantize_  # noqa: E402


@pytest.mark.parametrize(
    "variation",
    [
        CellVariation(),
        CellVariation(p_stuck_0=0.05, p_stuck_1=0.02),
        CellVariation(p_stuck_1=0.01, sigma=0.2, on_off_ratio=50.0),
    ],
)
def test_as_the_executor_with_an_ideal_adc(network, variation):
    model, mapping, images = network
    cells = change_cells(mapping, variation, seed=3)
    expected = execute(model, mapping, images, adc=AdcModel(bits=None), cells=cells)
    before = model(images).detach()
    with programmed(model, mapping, cells):
        found = model(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    if variation == CellVariation():
        assert torch.equal(found, before)
    else:
        assert not torch.allclose(found, before, atol=1e-3)
    assert torch.equal(model(images), before)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_unchanged_cells_are_the_codes(mapped, data):
    (layer, design), crossbar = data.draw(mapped.layers()), data.draw(mapped.crossbars)
    codes, _, mapping = mapped.mapped(layer, design, crossbar, activation_bits=4, seed=data.draw(st.integers(0, 99)))
    cells = change_cells(NetworkMapping({"layer": mapping}), CellVariation(), seed=0)["layer"]
    found = torch.from_numpy(cell_weights(mapping, cells))
    # Steps are powers of two: what is left of a weight over its code tells the block's step.
    matrix = codes.flatten(1).T.double()
    assert torch.equal(found.double() == 0, matrix == 0)
    steps = (found.double() / matrix)[matrix != 0]
    assert set(steps.tolist()) <= set(mapping.steps.ravel().tolist())
    for block in mapping.blocks if layer.groups == 1 else ():
        rows = slice(block.row_start, block.row_start + block.num_rows)
        cols = slice(block.col_start, block.col_start + block.num_cols)
        assert torch.equal(found[rows, cols].double(), matrix[rows, cols] * block.step)


def test_cells_between_groups_are_refused():
    layer = LayerShape("layer", "conv", 2, 2, (1, 1), (1, 1), (0, 0), 2, (1, 1), (1, 1))
    mapping = map_layer(torch.ones(1, 2).int(), torch.ones(1, 1), layer, LayerDesign(bits=2), CrossbarSize(2, 2), 2)
    assert len(mapping.blocks) == 1
    assert cell_weights(mapping, [mapping.block_cells(mapping.blocks[0]).astype(np.float32)]).tolist() == [[1, 1]]
    with pytest.raises(ArgumentError, match="between groups"):
        cell_weights(mapping, [np.stack([np.ones((1, 2, 2)), np.zeros((1, 2, 2))], 1).astype(np.float32)])
    with pytest.raises(ArgumentError, match="blocks"):
        cell_weights(mapping, [np.ones((1, 2, 1, 2), np.float32)])


def test_restored_also_after_errors(network):
    model, mapping, _ = network
    cells = change_cells(mapping, CellVariation(p_stuck_1=0.1), seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with pytest.raises(ZeroDivisionError), programmed(model, mapping, cells):
        assert not model.training
        with pytest.raises(ArgumentError, match="already"), programmed(model, mapping, cells):
            pass
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())
    model.eval()
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_refuses_what_does_not_fit(network):
    model, mapping, _ = network
    cells = change_cells(mapping, CellVariation(), seed=0)
    with (
        pytest.raises(ArgumentError, match="differs in fc"),
        programmed(model, mapping, {name: own for name, own in cells.items() if name != "fc"}),
    ):
        pass
    other = copy.deepcopy(model)
    other.stem.input_quantizer.step.mul_(2)
    with (
        pytest.raises(ArgumentError, match="stem: expected a model quantized like this"),
        programmed(other, mapping, cells),
    ):
        pass
    dequantize_(other)
    with pytest.raises(ArgumentError, match="call quantize_ first"), programmed(other, mapping, cells):
        pass
