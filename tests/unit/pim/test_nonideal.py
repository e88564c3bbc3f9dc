"""Cells that are stuck or off: by hand, by seed, and what one of them does to a layer."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.faults import StuckAt  # noqa: E402
from sparing.pim.adc import AdcModel  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.datapath import layer_sums  # noqa: E402
from sparing.pim.design import LayerDesign  # noqa: E402
from sparing.pim.epitome import EpitomeShape, epitome_index, repetition_map  # noqa: E402
from sparing.pim.layers import LayerShape  # noqa: E402
from sparing.pim.mapping import NetworkMapping, map_layer  # noqa: E402
from sparing.pim.nonideal import CONDUCTANCE_STEP, CellVariation, change_cells  # noqa: E402
from sparing.pim.readout import layer_program  # noqa: E402

LAYER = LayerShape("layer", "conv", 4, 6, (2, 2), (1, 1), (0, 0), 1, (2, 2), (1, 1))
EPITOME = EpitomeShape(out_channels=3, in_channels=2)
XBAR = CrossbarSize(4, 2)


def mapping_of(codes):
    one = map_layer(codes, torch.ones(2, 2), LAYER, LayerDesign(bits=3, epitome=EPITOME), XBAR, 4)
    return NetworkMapping({"layer": one})


def drawn(change, *, seed=0, size=(2, 2, 60, 50)):
    cells = (np.arange(np.prod(size)) % 2).reshape(size).astype(np.uint8)
    return cells, change(cells, np.random.default_rng(seed))


def test_a_stuck_cell_hits_every_weight_it_gives():
    """With an ideal ADC the layer computes the convolution of the weight whose codes have that cell changed."""
    codes = torch.zeros(3, 2, 2, 2, dtype=torch.int8)
    network = mapping_of(codes)
    index = epitome_index(LAYER.weight_shape, EPITOME)
    uses = repetition_map(index, (3, 2, 2, 2))
    assert uses.max() > 1
    for block_at, plane, sign, row, col in [(0, 1, 0, 2, 1), (3, 0, 1, 3, 0), (1, 1, 1, 0, 0)]:
        block = network.layers["layer"].blocks[block_at]

        def stuck(cells, rng, number=block_at, wanted=block, at=(plane, sign, row, col)):
            changed = cells.astype(float)
            stuck.calls += 1
            if stuck.calls - 1 == number:
                assert cells.shape[2:] == (wanted.num_rows, wanted.num_cols)
                changed[at] = 1.0
            return changed

        stuck.calls = 0
        cells = change_cells(network, stuck, seed=0)
        element = (block.col_start + col) * 8 + block.row_start + row
        changed = torch.zeros(24, dtype=torch.float64)
        changed[element] = 2**plane * (-1 if sign else 1)
        weight = changed[index]
        assert int((weight != 0).sum()) == int(uses.flatten()[element])
        x = torch.randint(-8, 8, (5, 4, 2, 2), generator=torch.Generator().manual_seed(1))
        expected = torch.nn.functional.conv2d(x.double(), weight)
        program = layer_program(network.layers["layer"], AdcModel(bits=None), cells=cells["layer"])
        assert torch.equal(layer_sums(program, x).double(), expected)


def test_ideal_cells_change_nothing():
    cells, found = drawn(CellVariation())
    assert np.array_equal(cells, found)


def test_stuck_cells():
    cells, found = drawn(CellVariation(p_stuck_0=0.1, p_stuck_1=0.3))
    assert set(np.unique(found)) == {0.0, 1.0}
    assert abs((found[cells == 1] == 0).mean() - 0.1) < 0.02
    assert abs((found[cells == 0] == 1).mean() - 0.3) < 0.02
    assert np.all(drawn(CellVariation(p_stuck_0=1.0))[1] == 0)
    assert np.all(drawn(CellVariation(p_stuck_1=1.0))[1] == 1)
    # With a higher probability the same cells are stuck, and more.
    few, more = (drawn(CellVariation(p_stuck_1=p))[1] for p in (0.1, 0.2))
    assert np.all(more[few == 1] == 1)
    # What was not programmed does not vary, and is off as all that are off.
    _, found = drawn(CellVariation(p_stuck_0=0.5, p_stuck_1=0.5, sigma=0.5, on_off_ratio=10.0))
    assert set(np.unique(found)) == {np.float32(0.1), np.float32(1.0)}


@pytest.mark.parametrize("distribution", ["lognormal", "normal"])
def test_programming(distribution):
    cells, found = drawn(CellVariation(sigma=0.2, distribution=distribution, on_off_ratio=20.0), size=(4, 2, 100, 100))
    for value, level in ((1, 1.0), (0, 0.05)):
        ratios = found[cells == value] / level
        if distribution == "lognormal":
            ratios = np.log(ratios) + 1
        assert abs(ratios.mean() - 1) < 0.01
        assert abs(ratios.std() - 0.2) < 0.01
    _, wide = drawn(CellVariation(sigma=2.0, distribution=distribution))
    assert 0 <= wide.min() <= wide.max() <= 16


def test_same_seed_same_bytes_block_by_block():
    network = mapping_of(torch.ones(3, 2, 2, 2, dtype=torch.int8))
    layer = network.layers["layer"]
    both = NetworkMapping({"first": layer, "layer": layer})
    change = CellVariation(p_stuck_0=0.3, sigma=0.1)
    first = change_cells(network, change, seed=5)["layer"]
    again = change_cells(both, change, seed=5)
    other = change_cells(network, change, seed=6)["layer"]
    assert [c.shape for c in first] == [(2, 2, 4, 2), (2, 2, 4, 1)] * 2
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, again["layer"], strict=True))
    assert any(a.tobytes() != b.tobytes() for a, b in zip(first, again["first"], strict=True))
    assert any(a.tobytes() != b.tobytes() for a, b in zip(first, other, strict=True))
    assert first[0].tobytes() != first[2].tobytes()
    steps = np.concatenate([c.ravel() for c in first]).astype(float) / CONDUCTANCE_STEP
    assert np.array_equal(steps, np.rint(steps))


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_stuck_0": -0.1},
        {"p_stuck_1": 1.1},
        {"p_stuck_0": 0.6, "p_stuck_1": 0.6},
        {"p_stuck_0": float("nan")},
        {"sigma": -1.0},
        {"sigma": float("nan")},
        {"distribution": "uniform"},
        {"on_off_ratio": 1.0},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ArgumentError):
        CellVariation(**wrong)


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (ShapeError, lambda cells, rng: cells[:1]),
        (DtypeError, lambda cells, rng: cells.astype(complex)),
        (NonFiniteError, lambda cells, rng: cells * np.nan),
        (ArgumentError, lambda cells, rng: cells * -1.0),
        (ArgumentError, lambda cells, rng: cells * 17.0),
    ],
)
def test_what_a_change_must_give(error, change):
    network = mapping_of(torch.ones(3, 2, 2, 2, dtype=torch.int8))
    with pytest.raises(error, match="cells"):
        change_cells(network, change, seed=0)
    with pytest.raises(ArgumentError, match="seed"):
        change_cells(network, CellVariation(), seed=-1)


def test_stuck_cells_of_a_fault_model():
    variation = CellVariation.of_fault(StuckAt(rate=0.2, form="bit", share_high=0.25), sigma=0.0, on_off_ratio=10)
    cells, found = drawn(variation, size=(2, 2, 200, 200))
    was_on = cells == 1
    assert abs((found[was_on] == np.float32(0.1)).mean() - 0.15) < 0.01
    assert abs((found[~was_on] == 1.0).mean() - 0.05) < 0.01
    for form in ("cell", "one_bit"):
        with pytest.raises(ArgumentError, match="form='bit'"):
            CellVariation.of_fault(StuckAt(form=form))
