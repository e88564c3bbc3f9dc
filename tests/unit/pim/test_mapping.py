"""Cells, blocks and tables of a layer; saved mappings, and what is altered in them."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, FormatError, ShapeError, VersionError  # noqa: E402
from sparing.pim.convert import convert_  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.design import LayerDesign, NetworkDesign, dense_design, layer_grid, num_crossbars, uniform_design  # noqa: E402
from sparing.pim.epitome import EpitomeShape, epitome_index, patches_of  # noqa: E402
from sparing.pim.layers import LayerShape, trace_layers  # noqa: E402
from sparing.pim.mapping import NetworkMapping, map_layer, map_network  # noqa: E402
from sparing.pim.mapping_files import load_mapping, save_mapping  # noqa: E402
from sparing.pim.quantization import quantize_  # noqa: E402
from sparing.pim.rounds import layer_rounds as rounds_of  # noqa: E402
from sparing.pim.tables import round_tables, stored_size  # noqa: E402
from sparing.runs.artifact import read_artifact, write_artifact  # noqa: E402
from sparing.vision import resnet8, resnet20  # noqa: E402

CONV = LayerShape("conv", "conv", 6, 8, (3, 3), (1, 1), (1, 1), 1, (4, 4), (4, 4))


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_cells_give_the_codes_back(mapped, data):
    (layer, design), crossbar = data.draw(mapped.layers()), data.draw(mapped.crossbars)
    codes, steps, mapping = mapped.mapped(layer, design, crossbar, activation_bits=4, seed=data.draw(st.integers(0, 9)))
    assert np.array_equal(mapping.codes(), codes.flatten(1).T.numpy())
    assert not (mapping.cells[:, 0] & mapping.cells[:, 1]).any()
    # The blocks hold each cell of the matrix once, and nothing but zeros beside.
    found = np.zeros((*mapping.cells.shape[:2], mapping.cells.shape[2] * layer.groups, mapping.cells.shape[3]), int)
    for block in mapping.blocks:
        assert block.num_rows <= crossbar.rows
        assert block.num_cols <= crossbar.cols
        rows, cols = (
            slice(block.row_start, block.row_start + block.num_rows),
            slice(block.col_start, block.col_start + block.num_cols),
        )
        found[:, :, rows, cols] += mapping.block_cells(block)
    each, outs = mapping.cells.shape[2], layer.out_channels // layer.groups
    for group in range(layer.groups):
        cols = slice(group * outs, (group + 1) * outs) if layer.groups > 1 else slice(None)
        assert np.array_equal(found[:, :, group * each : (group + 1) * each, cols], mapping.cells[..., cols])
    assert found.sum() == mapping.cells.sum()
    assert len(mapping.blocks) == mapping.grid.num_blocks
    assert {block.step for block in mapping.blocks} == set(steps.flatten().tolist())


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_tables_lead_to_the_index(mapped, data):
    layer, design = data.draw(mapped.layers(grouped=False))
    tables, size = round_tables(layer, design), stored_size(layer, design)
    index = np.full(layer.weight_shape, -1)
    for at, ((in_start, num_in), (from_out, out_start, num_out)) in enumerate(
        zip(tables.ifat.tolist(), tables.ofat.tolist(), strict=True)
    ):
        lines = tables.word_lines(at, size, layer.kernel)
        places = (from_out + np.arange(num_out))[:, None, None, None] * (size[1] * size[2] * size[3]) + lines
        for repeat in range(tables.repeats):
            width = int((tables.ofat[:, 1] + tables.ofat[:, 2]).max())
            part = index[out_start + repeat * width :, in_start : in_start + num_in][:num_out]
            part[:] = places[: len(part)]
    if design.epitome is None:
        assert np.array_equal(index.ravel(), np.arange(index.size))
        assert (tables.num_rounds, tables.bits) == (1, (0, 0, 0))
    else:
        assert np.array_equal(index, epitome_index(layer.weight_shape, design.epitome))
        assert tables.num_rounds <= len(patches_of(layer.weight_shape, design.epitome))
    # The cost model counts the same rounds and the same bits.
    cost = rounds_of(layer, design, CrossbarSize())
    assert (tables.num_rounds, sum(tables.bits)) == (cost.num_rounds, cost.table_bits)


def test_tables_by_hand():
    # 3 output groups of an epitome of 3 outputs, 2 input groups of 4 and 2 channels; kernel 4 × 3 gives two corners.
    design = LayerDesign(bits=3, epitome=EpitomeShape(out_channels=3, in_channels=3, kernel=(4, 3)))
    tables = round_tables(CONV, design)
    assert tables.ifat.tolist() == [[0, 3], [3, 3]] * 3
    assert tables.ofat[:, 1:].tolist() == [[0, 3], [0, 3], [3, 3], [3, 3], [6, 2], [6, 2]]
    # 6 rounds; 6 channels 3 bits, 3 channels 2 bits, 2 corners 1 bit, 8 outputs 3 bits.
    assert tables.bits == (6 * (3 + 2), 6 * (2 + 1 + 0), 6 * (2 + 3 + 2))
    wrapped = LayerDesign(bits=3, epitome=EpitomeShape(out_channels=3, in_channels=3, wrapped=True))
    tables = round_tables(CONV, wrapped)
    assert (tables.num_rounds, tables.repeats) == (2, 3)
    assert tables.ofat.tolist() == [[0, 0, 3], [0, 0, 3]]


def test_map_layer_refuses():
    design, xbar, ones = LayerDesign(bits=3), CrossbarSize(), torch.ones(1, 1)
    codes = torch.zeros(8, 6, 3, 3, dtype=torch.int8)
    # 54 rows of the matrix: codes may come as stored or as the matrix.
    assert np.array_equal(
        map_layer(codes, ones, CONV, design, xbar, 9).cells,
        map_layer(codes.flatten(1).T, ones, CONV, design, xbar, 9).cells,
    )
    for error, changed in [
        (DtypeError, {"codes": codes.float()}),
        (DtypeError, {"steps": ones.int()}),
        (ShapeError, {"codes": codes[:7]}),
        (ShapeError, {"steps": torch.ones(2, 1)}),
        (ArgumentError, {"codes": codes + 4}),
        (ArgumentError, {"codes": codes - 4}),
        (ArgumentError, {"steps": ones * 0}),
        (ArgumentError, {"steps": ones / 0}),
        (ArgumentError, {"design": LayerDesign()}),
        (ArgumentError, {"activation_bits": 17}),
        (ArgumentError, {"input_step": 0.0}),
        (ArgumentError, {"input_step": float("nan")}),
    ]:
        given_ = {
            "codes": codes,
            "steps": ones,
            "layer": CONV,
            "design": design,
            "crossbar": xbar,
            "activation_bits": 9,
        }
        with pytest.raises(error):
            map_layer(**(given_ | changed))


@pytest.fixture(scope="module")
def network():
    model = resnet8(width=8).eval()
    xbar = CrossbarSize(64, 64)
    shapes = trace_layers(model, (3, 8, 8))
    design = dense_design(shapes, bits=3)
    quantize_(model, design, crossbar=xbar, calibration=torch.randn(2, 3, 8, 8))
    return model, shapes, design, xbar


def test_map_network(network):
    model, shapes, design, xbar = network
    mapping = map_network(model, shapes, design, xbar)
    assert list(mapping.layers) == [layer.name for layer in shapes.layers]
    assert mapping.num_crossbars == num_crossbars(shapes, design, xbar)
    assert mapping.table_bits == (0, 0, 0)
    some = {name: layer if name != "fc" else LayerDesign() for name, layer in design.layers.items()}
    partly = NetworkDesign(layers=some, activation_bits=9)
    assert set(mapping.layers) - set(map_network(model, shapes, partly, xbar).layers) == {"fc"}
    for wrong in [
        (resnet8(width=8), shapes, design, xbar),
        (model, shapes, design, CrossbarSize(32, 32)),
        (model, shapes, dense_design(shapes, bits=4), xbar),
        (model, shapes, dense_design(shapes, bits=3, activation_bits=8), xbar),
        (model, shapes, dense_design(shapes), xbar),
    ]:
        with pytest.raises(ArgumentError):
            map_network(*wrong)


@pytest.mark.parametrize("asked", [{"wrapped": True}, {"kernel": (3, 4)}])
def test_another_epitome_of_the_same_size_is_refused(asked):
    model = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1))
    shapes, xbar = trace_layers(model, (6, 4, 4)), CrossbarSize(64, 8)

    def design(**fields):
        shape = EpitomeShape(out_channels=3, in_channels=3, **{"kernel": (4, 3), **fields})
        return NetworkDesign(layers={"0": LayerDesign(bits=4, epitome=shape)}, activation_bits=5)

    convert_(model, design())
    quantize_(model, design(), crossbar=xbar, calibration=torch.randn(2, 6, 4, 4))
    assert list(map_network(model, shapes, design(), xbar).layers) == ["0"]
    with pytest.raises(ArgumentError, match="model: 0 has another epitome than the design"):
        map_network(model, shapes, design(**asked), xbar)


def random_mapping(seed=0):
    """Two small layers: a wrapped epitome and a grouped convolution."""
    rng = np.random.default_rng(seed)
    xbar = CrossbarSize(20, 4)
    epitome = LayerDesign(bits=4, epitome=EpitomeShape(out_channels=3, in_channels=3, wrapped=True))
    grouped = LayerShape("two.groups", "conv", 6, 4, (1, 3), (1, 2), (0, 1), 2, (4, 4), (4, 2), inputs=("conv",))
    found = {}
    for layer, design, size, steps in [
        (CONV, epitome, (3, 3, 3, 3), (2, 1)),
        (grouped, LayerDesign(bits=2), (4, 3, 1, 3), (1, 1)),
    ]:
        most = 2 ** (design.bits - 1) - 1
        codes = torch.from_numpy(rng.integers(-most, most + 1, size))
        found[layer.name] = map_layer(codes, torch.rand(steps) + 0.1, layer, design, xbar, 5, input_step=0.3)
    return NetworkMapping(found)


def test_saved_mappings_come_back(tmp_path):
    mapping = random_mapping()
    save_mapping(mapping, tmp_path / "a")
    save_mapping(mapping, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_mapping(tmp_path / "a")
    assert list(found.layers) == list(mapping.layers)
    for old, new in zip(mapping.layers.values(), found.layers.values(), strict=True):
        assert (old.layer, old.design, old.crossbar) == (new.layer, new.design, new.crossbar)
        assert (old.activation_bits, old.input_step) == (new.activation_bits, new.input_step)
        assert np.array_equal(old.cells, new.cells)
        assert np.array_equal(old.steps, new.steps)
        assert old.tables.bits == new.tables.bits
        for table in ("ifat", "ifrt", "ofat"):
            assert np.array_equal(getattr(old.tables, table), getattr(new.tables, table))


def test_a_network_padded_to_the_same_size_comes_back(tmp_path, mapped):
    _, mapping, _ = mapped.quantized_network()
    save_mapping(mapping, tmp_path / "mapping")
    found = load_mapping(tmp_path / "mapping")
    assert {name: one.layer for name, one in found.layers.items()} == {n: x.layer for n, x in mapping.layers.items()}


def test_every_altered_byte_is_refused(tmp_path):
    path = tmp_path / "mapping"
    save_mapping(random_mapping(), path)
    data = path.read_bytes()
    for place in itertools.chain(range(0, 4096, 97), range(4096, len(data), 5)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with pytest.raises(FormatError):
            load_mapping(path)
    for length in (0, 10, 70, 4096, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError):
            load_mapping(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError):
        load_mapping(path)


def test_files_with_right_checksums_and_wrong_parts(tmp_path):
    path = tmp_path / "mapping"
    save_mapping(random_mapping(), path)
    good = read_artifact(path, schema="sparing.pim.mapping", versions={1})

    def write(arrays=None, version=1, schema="sparing.pim.mapping", **layer):
        meta = {"layers": [good.meta["layers"][0] | layer, good.meta["layers"][1]]}
        write_artifact(path, schema=schema, version=version, arrays=good.arrays | (arrays or {}), meta=meta)

    side = [2**22, 2**22]
    huge = {
        "in_channels": 2**23,
        "out_channels": 2**23,
        "kernel": side,
        "in_size": side,
        "out_size": [1, 1],
        "groups": 1,
    }
    huge |= {"padding": [0, 0], "dilation": [1, 1]}
    write()
    assert load_mapping(path).layers
    for change, match in [
        ({"arrays": {"0.ifrt": np.full((2, 3), 7, np.int32)}}, "IFRT: from_in"),
        ({"arrays": {"0.ofat": np.array([[0, 0, 3], [0, 6, 3]], np.int32)}}, "OFAT: out_start"),
        ({"arrays": {"0.ofat": np.array([[0, 0, 2], [0, 0, 2]], np.int32)}}, "do not fill"),
        ({"arrays": {"0.ifat": np.array([[0, 3], [-1, 3]], np.int32)}}, "IFAT: in_start of round 1"),
        ({"arrays": {"0.ifat": np.array([[0, 3]], np.int32)}}, "IFRT: expected int32"),
        ({"arrays": {"0.steps": good.arrays["0.steps"] * np.float32(-1)}}, "steps"),
        ({"arrays": {"0.cells": good.arrays["0.cells"][:-1]}}, "cells"),
        ({"arrays": {"2.cells": good.arrays["0.cells"]}}, "2.cells"),
        ({"activation_bits": 17}, "activation_bits"),
        ({"crossbar": [0, 4]}, "crossbar"),
        ({"input_step": -1.0}, "input_step"),
        ({"colour": "red"}, "colour"),
        ({"layer": good.meta["layers"][1]["layer"]}, "group"),
        (
            {"layer": good.meta["layers"][0]["layer"] | {"out_size": [99, 1]}},
            r"out_size: expected \(.*\), .*got \(99, 1\)",
        ),
        ({"layer": good.meta["layers"][1]["layer"] | huge}, "cells: expected 118747255799808 bytes"),
        ({"schema": "other"}, "schema"),
    ]:
        write(**change)
        with pytest.raises(FormatError, match=match):
            load_mapping(path)
    write(version=2)
    with pytest.raises(VersionError):
        load_mapping(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "mapping"
    save_mapping(random_mapping(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_mapping(random_mapping(1), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mapping"]


def test_resnet20_blocks():
    model = resnet20().eval()
    shapes, xbar = trace_layers(model, (3, 32, 32)), CrossbarSize(64, 64)
    design = uniform_design(shapes, xbar, bits=3, max_rows=128, max_cols=32, min_weights=4000)
    for layer in shapes.layers:
        own = design.layers[layer.name]
        codes = torch.zeros(stored_size(layer, own), dtype=torch.int8)
        grid = layer_grid(layer, own, xbar)
        mapping = map_layer(codes, torch.ones(len(grid.row_cuts), len(grid.col_cuts)), layer, own, xbar, 9)
        assert mapping.num_crossbars == 2 * grid.num_blocks == 2 * len(mapping.blocks)
