"""Designs: the published uniform form by its numbers, documents that come back as they were, and refusals."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, FormatError, ShapeError, VersionError  # noqa: E402
from sparing.pim.crossbar import CrossbarSize, block_grid  # noqa: E402
from sparing.pim.design import (  # noqa: E402
    LayerDesign,
    NetworkDesign,
    capped_epitome,
    dense_design,
    epitome_refusal,
    layer_grid,
    load_design,
    num_crossbars,
    uniform_design,
)
from sparing.pim.epitome import EpitomeShape, patches_of  # noqa: E402
from sparing.pim.layers import LayerShape, trace_layers  # noqa: E402


def conv(in_channels, out_channels, kernel=3, *, groups=1, side=8):
    size, pad = (side, side), (kernel // 2, kernel // 2)
    return LayerShape(
        "conv", "conv", in_channels, out_channels, (kernel, kernel), (1, 1), pad, groups, size, size, 1, ("",)
    )


@pytest.fixture
def small():
    """conv 3→8, depthwise 8, conv 8→16, linear 16→4."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model.append(nn.Linear(16, 4))
    return trace_layers(model, (3, 8, 8))


EXAMPLE = NetworkDesign(
    layers={
        "0": LayerDesign(bits=9),
        "2": LayerDesign(bits=3, epitome=EpitomeShape(out_channels=8, in_channels=4, kernel=(2, 2), wrapped=True)),
        "5": LayerDesign(),
    },
    activation_bits=7,
    notes="für Menschen\n\u2192 \U0001f642",
)


# The uniform 1024 × 256 epitome.


def rounds(network, design):
    """Rounds of the convolutions for one image: patches of a layer times its output positions."""
    total = 0
    for layer in network.layers:
        epitome = design.layers[layer.name].epitome
        if layer.kind == "conv":
            found = patches_of(layer.weight_shape, epitome) if epitome else [None]
            firsts = [p for p in found if p is None or p.out_start == 0] if epitome and epitome.wrapped else found
            total += len(firsts) * layer.out_size[0] * layer.out_size[1]
    return total


def test_uniform_epitome_of_resnet50(network_of):
    network, crossbar = network_of("resnet50"), CrossbarSize()
    design = uniform_design(network, crossbar, bits=3)
    design.check(network)
    replaced = {name: layer.epitome for name, layer in design.layers.items() if layer.epitome}
    assert len(replaced) == 17
    assert set(design.layers) == {layer.name for layer in network.layers}
    assert not {"conv1", "fc"} & set(replaced)
    for name, epitome in replaced.items():
        layer = network[name]
        assert layer.num_weights > 262_144
        # The spec's own count of an epitome's blocks, from rows and columns alone.
        expected = -(-min(1024, layer.in_channels * layer.kernel[0] ** 2) // 256) * -(
            -min(256, layer.out_channels) // 256
        )
        assert layer_grid(layer, design.layers[name], crossbar).num_blocks == expected
        assert epitome.in_channels * layer.kernel[0] ** 2 <= 1024
        assert epitome.out_channels <= 256
    assert num_crossbars(network, design, crossbar) == 336
    assert num_crossbars(network, uniform_design(network, crossbar, bits=2), crossbar) == 168
    assert num_crossbars(network, uniform_design(network, crossbar, bits=32), crossbar) == 32 * 168


def test_uniform_epitome_of_resnet50_against_the_dense_one(network_of):
    network, crossbar = network_of("resnet50", 1000), CrossbarSize()
    dense, plain = dense_design(network, bits=3), uniform_design(network, crossbar, bits=3)
    wrapped = uniform_design(network, crossbar, bits=3, wrapped=True)
    assert num_crossbars(network, dense, crossbar) / num_crossbars(network, plain, crossbar) == pytest.approx(
        2.26, abs=0.005
    )
    assert num_crossbars(network, wrapped, crossbar) == num_crossbars(network, plain, crossbar)
    assert rounds(network, plain) / rounds(network, dense) == pytest.approx(1.10, abs=0.005)
    assert rounds(network, wrapped) / rounds(network, dense) == pytest.approx(1.05, abs=0.005)


def test_uniform_design_of_chosen_layers(small):
    design = uniform_design(
        small, CrossbarSize(16, 8), bits=5, max_rows=4, max_cols=8, min_weights=0, bits_of={"5": 9}, activation_bits=8
    )
    for name in ("max_rows", "max_cols"):
        with pytest.raises(ArgumentError, match=f"{name}: expected at least 1, got 0"):
            uniform_design(small, CrossbarSize(), bits=3, **{name: 0})
    # The first convolution's kernels are longer than 4 rows, the depthwise one has groups, the last layer is linear.
    assert design == NetworkDesign(
        layers={
            "0": LayerDesign(bits=5),
            "1": LayerDesign(bits=5),
            "2": LayerDesign(bits=5, epitome=EpitomeShape(out_channels=8, in_channels=4)),
            "5": LayerDesign(bits=9),
        },
        activation_bits=8,
    )


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_capped_epitomes_are_the_largest_within_the_cap(data):
    layer = conv(data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 3, 5])))
    crossbar = CrossbarSize(data.draw(st.integers(4, 64)), data.draw(st.integers(4, 64)))
    # Whole crossbars: what is left of one depends on where a cap ends inside it.
    blocks, max_cols = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 48))
    elements = layer.kernel[0] ** 2
    if elements > crossbar.rows:
        blocks *= -(-elements // crossbar.rows)
    found = capped_epitome(layer, crossbar, max_rows=blocks * crossbar.rows, max_cols=max_cols)

    def row_blocks(channels):
        return len(block_grid(channels, 1, elements, crossbar).row_cuts)

    def fits(channels):
        # A long kernel is split, and its rows count rather than its crossbars.
        rows = channels * elements
        return rows <= blocks * crossbar.rows if elements > crossbar.rows else row_blocks(channels) <= blocks

    most = max((n for n in range(1, layer.in_channels + 1) if fits(n)), default=0)
    columns = min(max_cols, layer.out_channels)
    if (most, columns) == (layer.in_channels, layer.out_channels) or not most:
        assert found is None
    else:
        assert (found.in_channels, found.out_channels) == (most, columns)
        found.check(layer.weight_shape)


def test_capped_epitome_inside_a_crossbar():
    crossbar, layer = CrossbarSize(), conv(512, 512)
    # 28 kernels of 9 rows fit one crossbar, 12 the 108 rows that are left of the cap.
    assert capped_epitome(layer, crossbar, max_rows=256 + 108, max_cols=256).in_channels == 28 + 12
    assert capped_epitome(layer, crossbar, max_rows=8, max_cols=256) is None
    assert capped_epitome(layer, crossbar, max_rows=0, max_cols=256) is None
    assert capped_epitome(layer, crossbar, max_rows=256, max_cols=0) is None
    # Longer than a crossbar: 25 rows a kernel.
    assert capped_epitome(conv(8, 8, 5), CrossbarSize(16, 16), max_rows=80, max_cols=8).in_channels == 3


def test_capped_epitome_wraps_only_where_there_is_something_to_repeat():
    crossbar = CrossbarSize()
    assert capped_epitome(conv(512, 512), crossbar, max_rows=512, max_cols=256, wrapped=True).wrapped
    assert not capped_epitome(conv(512, 256), crossbar, max_rows=512, max_cols=256, wrapped=True).wrapped
    assert capped_epitome(conv(8, 8), crossbar, max_rows=512, max_cols=256, wrapped=True) is None


# Counting.


def test_dense_layers_are_epitomes_of_full_size():
    layer, crossbar = conv(70, 90), CrossbarSize(64, 32)
    whole = LayerDesign(bits=3, epitome=EpitomeShape(out_channels=90, in_channels=70))
    assert layer_grid(layer, whole, crossbar) == layer_grid(layer, LayerDesign(bits=3), crossbar)


def test_larger_kernels_of_epitomes_count():
    grid = layer_grid(
        conv(70, 90),
        LayerDesign(epitome=EpitomeShape(out_channels=32, in_channels=10, kernel=(4, 4))),
        CrossbarSize(64, 32),
    )
    assert (grid.row_cuts, grid.col_cuts) == ((64, 64, 32), (32,))


def test_crossbars_are_counted_layer_by_layer(small):
    crossbar = CrossbarSize(16, 8)
    one = {name: num_crossbars(small, NetworkDesign(layers={name: LayerDesign(bits=2)}), crossbar) for name in "0125"}
    # 3 kernels of 9 rows; 8 groups of one kernel; 8 rows × 16 columns; 16 rows × 4 columns.
    assert one == {"0": 3, "1": 8, "2": 2, "5": 1}
    bits = {"0": 3, "1": 5, "2": 9, "5": 32}
    design = NetworkDesign(layers={name: LayerDesign(bits=b) for name, b in bits.items()})
    assert num_crossbars(small, design, crossbar) == 3 * 2 + 8 * 4 + 2 * 8 + 1 * 32
    assert num_crossbars(small, NetworkDesign(layers={}), crossbar) == 0


# Documents.


def test_json_round_trip():
    assert NetworkDesign.model_validate_json(EXAMPLE.to_json()) == EXAMPLE
    assert json.loads(EXAMPLE.to_json())["layers"]["5"] == {"bits": 32, "epitome": None}


names = st.text(max_size=12)
shapes = st.builds(
    EpitomeShape,
    out_channels=st.integers(1, 4096),
    in_channels=st.integers(1, 4096),
    kernel=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    wrapped=st.booleans(),
)
designs = st.builds(
    NetworkDesign,
    layers=st.dictionaries(
        names,
        st.builds(LayerDesign, bits=st.sampled_from([*range(2, 17), 32]), epitome=st.none() | shapes),
        max_size=5,
    ),
    activation_bits=st.integers(1, 16),
    notes=st.text(),
)


@settings(max_examples=25, deadline=None)
@given(designs)
def test_every_design_comes_back(tmp_path_factory, design):
    path = tmp_path_factory.mktemp("designs", numbered=True) / "design.json"
    design.save(path)
    assert load_design(path) == design
    first = path.read_bytes()
    load_design(path).save(path)
    assert path.read_bytes() == first


def test_saving_replaces_the_file_as_a_whole(tmp_path):
    path = tmp_path / "design.json"
    path.write_text("something longer than the design " * 1000)
    EXAMPLE.save(path)
    assert load_design(str(path)) == EXAMPLE
    assert [file.name for file in tmp_path.iterdir()] == ["design.json"]
    with pytest.raises(OSError, match="missing"):
        EXAMPLE.save(tmp_path / "missing" / "design.json")
    with pytest.raises(FileNotFoundError):
        load_design(tmp_path / "missing.json")


def set_at(document, path, value):
    *parents, last = path
    for key in parents:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("schema_name",), "sparing.var.plan", "sparing.pim.design"),
        (("activation_bits",), 0, "activation_bits"),
        (("activation_bits",), 17, "activation_bits"),
        (("activation_bits",), None, "activation_bits"),
        (("notes",), 3, "notes"),
        (("extra",), 1, "extra"),
        (("layers",), [], "layers"),
        (("layers", "0"), 3, "layers.0"),
        (("layers", "0", "bits"), 1, "layers.0.bits.*expected 2 to 16"),
        (("layers", "0", "bits"), 17, "layers.0.bits"),
        (("layers", "0", "bits"), 33, "layers.0.bits"),
        (("layers", "0", "bits"), 3.5, "layers.0.bits"),
        (("layers", "0", "bitz"), 3, "layers.0.bitz"),
        (("layers", "2", "epitome", "in_channels"), 0, "in_channels"),
        (("layers", "2", "epitome", "kernel"), [3], "kernel"),
        (("layers", "2", "epitome", "wrapped"), "perhaps", "wrapped"),
    ],
)
def test_altered_files(tmp_path, path, value, field):
    document = json.loads(EXAMPLE.to_json())
    set_at(document, path, value)
    file = tmp_path / "altered.json"
    file.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=field) as caught:
        load_design(file)
    assert "altered.json" in str(caught.value)
    assert not isinstance(caught.value, VersionError)


@pytest.mark.parametrize("version", [0, 2, "one"])
def test_other_versions(tmp_path, version):
    file = tmp_path / "later.json"
    file.write_text(json.dumps({**json.loads(EXAMPLE.to_json()), "version": version, "unheard": 1}))
    with pytest.raises(VersionError, match=r"later.json: a network design in version"):
        load_design(file)


def test_files_that_are_none(tmp_path):
    file, text = tmp_path / "cut.json", EXAMPLE.to_json().encode()
    for data in (b"", b"null", b"[]", b"\xff\xfe", text[:-3], text[: len(text) // 2], text + b"{}", b"[" * 10_000):
        file.write_bytes(data)
        with pytest.raises(FormatError, match=r"cut\.json: not a network design"):
            load_design(file)


# Refusals.


@pytest.mark.parametrize("bits", [-1, 0, 1, 17, 31, 33])
def test_bits_out_of_range(small, bits):
    with pytest.raises(ValidationError, match=f"expected 2 to 16, or 32 for unquantized weights, got {bits}"):
        LayerDesign(bits=bits)
    with pytest.raises(ArgumentError, match="bits"):
        dense_design(small, bits=bits)
    with pytest.raises(ArgumentError, match="bits"):
        uniform_design(small, CrossbarSize(), bits=bits)
    with pytest.raises(ArgumentError, match="bits"):
        uniform_design(small, CrossbarSize(), bits=3, bits_of={"0": bits})


@pytest.mark.parametrize("bits", [0, 17])
def test_activation_bits_out_of_range(small, bits):
    with pytest.raises(ArgumentError, match=rf"design: activation_bits: .*got {bits}"):
        dense_design(small, bits=3, activation_bits=bits)
    with pytest.raises(ArgumentError, match="activation_bits"):
        uniform_design(small, CrossbarSize(), bits=3, activation_bits=bits)


def test_designs_do_not_change():
    for value, field in ((EXAMPLE, "notes"), (EXAMPLE.layers["0"], "bits"), (EXAMPLE.layers["2"].epitome, "wrapped")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(value, field, getattr(value, field))


def test_unknown_layers(small):
    with pytest.raises(ArgumentError, match=r"design: the network has no mapped layer 3, nope"):
        NetworkDesign(layers={"0": LayerDesign(), "nope": LayerDesign(), "3": LayerDesign()}).check(small)
    with pytest.raises(ArgumentError, match=r"bits_of: the network has no mapped layer nope"):
        uniform_design(small, CrossbarSize(), bits=3, bits_of={"nope": 3})


def test_groups_are_not_shared_across(small):
    assert epitome_refusal(small["1"]) == "it has 8 groups, and what an epitome shares lies across channels"
    assert epitome_refusal(small["2"]) is None
    assert capped_epitome(small["1"], CrossbarSize(), max_rows=1, max_cols=1) is None
    epitome = EpitomeShape(out_channels=4, in_channels=1)
    with pytest.raises(ArgumentError, match="design: 1 cannot be an epitome: it has 8 groups"):
        NetworkDesign(layers={"1": LayerDesign(epitome=epitome)}).check(small)
    NetworkDesign(layers={"1": LayerDesign(bits=3)}).check(small)


@pytest.mark.parametrize(
    ("name", "epitome"),
    [
        ("2", EpitomeShape(out_channels=17, in_channels=8)),
        ("2", EpitomeShape(out_channels=16, in_channels=9)),
        ("0", EpitomeShape(out_channels=8, in_channels=3, kernel=(2, 3))),
        ("5", EpitomeShape(out_channels=5, in_channels=16)),
    ],
)
def test_epitomes_that_are_too_large(small, name, epitome):
    with pytest.raises(ShapeError, match="epitome: expected"):
        NetworkDesign(layers={name: LayerDesign(epitome=epitome)}).check(small)


def test_epitomes_that_fit(small):
    NetworkDesign(
        layers={
            "0": LayerDesign(epitome=EpitomeShape(out_channels=8, in_channels=3, kernel=(5, 3))),
            "2": LayerDesign(epitome=EpitomeShape(out_channels=16, in_channels=8)),
            "5": LayerDesign(epitome=EpitomeShape(out_channels=1, in_channels=1)),
        }
    ).check(small)
