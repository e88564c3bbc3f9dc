"""Block tables: the published networks' by number, every other size by placing cell after cell."""

from itertools import product

import pytest

pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given, settings
from hypothesis import strategies as st

from sparing.errors import ArgumentError
from sparing.pim.crossbar import CrossbarSize, block_grid, num_planes
from sparing.pim.design import dense_design, num_crossbars

# Count × (input channels, output channels, kernel, output side) = blocks each, of ResNet-50 with 1000 classes.
RESNET50 = [
    (1, (3, 64, 7, 112), 1),
    (1, (64, 64, 1, 56), 1),
    (3, (64, 64, 3, 56), 3),
    (4, (64, 256, 1, 56), 1),
    (2, (256, 64, 1, 56), 1),
    (1, (256, 128, 1, 56), 1),
    (4, (128, 128, 3, 28), 5),
    (4, (128, 512, 1, 28), 2),
    (1, (256, 512, 1, 28), 2),
    (3, (512, 128, 1, 28), 2),
    (1, (512, 256, 1, 28), 2),
    (6, (256, 256, 3, 14), 10),
    (6, (256, 1024, 1, 14), 4),
    (1, (512, 1024, 1, 14), 8),
    (5, (1024, 256, 1, 14), 4),
    (1, (1024, 512, 1, 14), 8),
    (3, (512, 512, 3, 7), 38),
    (3, (512, 2048, 1, 7), 16),
    (1, (1024, 2048, 1, 7), 32),
    (2, (2048, 512, 1, 7), 16),
    (1, (2048, 1000, 1, 1), 32),
]


def blocks_of(layer, crossbar):
    elements = layer.kernel[0] * layer.kernel[1]
    return block_grid(layer.in_channels, layer.out_channels, elements, crossbar, groups=layer.groups).num_blocks


def row_places(channels, kernel, crossbar):
    """(crossbar, word line) of every row: a kernel that fits a crossbar is not split."""
    block, line, places = 0, 0, []
    for _ in range(channels):
        if line and line + kernel > crossbar.rows:
            block, line = block + 1, 0
        for _ in range(kernel):
            if line == crossbar.rows:
                block, line = block + 1, 0
            places.append((block, line))
            line += 1
    return places


def placed(in_channels, out_channels, kernel, crossbar, groups=1):
    """Puts each cell somewhere; returns {crossbar: (word lines driven, bit lines read)} by the cells it holds."""
    ins, outs = in_channels // groups, out_channels // groups
    rows, cols = row_places(ins, kernel, crossbar), [divmod(o, crossbar.cols) for o in range(outs)]
    fits_one = rows[-1][0] == 0 and cols[-1][0] == 0
    touched, chip, used_rows, used_cols = {}, -1, crossbar.rows, crossbar.cols
    for group in range(groups):
        # A group that fits one crossbar joins the last one where it still can, else it starts new ones.
        if not fits_one or used_rows + len(rows) > crossbar.rows or used_cols + outs > crossbar.cols:
            chip, used_rows, used_cols = group, 0, 0
        for (row_block, row), (col_block, col) in product(rows, cols):
            lines = touched.setdefault((chip, row_block, col_block), (set(), set()))
            lines[0].add(used_rows + row)
            lines[1].add(used_cols + col)
        used_rows, used_cols = used_rows + len(rows), used_cols + outs
    return {block: (len(lines), len(columns)) for block, (lines, columns) in touched.items()}


@pytest.mark.parametrize(
    ("name", "blocks", "planes"),
    [("resnet18", 206, 6592), ("resnet50", 410, 13120), ("resnet101", 716, 22912)],
)
def test_block_tables(network_of, name, blocks, planes):
    network = network_of(name)
    assert sum(blocks_of(layer, CrossbarSize()) for layer in network.layers) == blocks
    assert num_crossbars(network, dense_design(network), CrossbarSize()) == planes
    assert num_crossbars(network, dense_design(network, bits=3), CrossbarSize()) == 2 * blocks


def test_resnet50_layer_by_layer(network_of):
    found = {}
    for layer in network_of("resnet50", 1000).layers:
        assert layer.kernel[0] == layer.kernel[1]
        assert layer.out_size[0] == layer.out_size[1]
        key = (layer.in_channels, layer.out_channels, layer.kernel[0], layer.out_size[0])
        found.setdefault(key, []).append(blocks_of(layer, CrossbarSize()))
    assert {key: (len(blocks), set(blocks)) for key, blocks in found.items()} == {
        key: (count, {blocks}) for count, key, blocks in RESNET50
    }
    assert sum(count * blocks for count, _, blocks in RESNET50) == 402 + 32


def test_resnet20_on_small_crossbars():
    # The figures for CIFAR-width networks: 3, 5 and 10 crossbars of 64 × 64 for 16, 32 and 64 channels.
    small = CrossbarSize(64, 64)
    assert [block_grid(n, n, 9, small).num_blocks for n in (16, 32, 64)] == [3, 5, 10]


@pytest.mark.parametrize("crossbar", [CrossbarSize(128, 128), CrossbarSize(512, 512), CrossbarSize(64, 32)], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_other_sizes_by_placing_every_cell(network_of, name, crossbar):
    shapes = {(layer.in_channels, layer.out_channels, layer.kernel[0] ** 2) for layer in network_of(name).layers}
    for in_channels, out_channels, elements in shapes:
        # All are cut alike: where there are many, one crossbar and a part of the next are enough.
        outs = min(out_channels, crossbar.cols + 1)
        if in_channels * outs * elements > 30_000:
            in_channels = crossbar.rows // elements + 1  # noqa: PLW2901
        grid = block_grid(in_channels, outs, elements, crossbar)
        assert grid.num_blocks == len(placed(in_channels, outs, elements, crossbar))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_cell_placed(data):
    groups = data.draw(st.integers(1, 6), label="groups")
    in_channels = groups * data.draw(st.integers(1, 9), label="ins")
    out_channels = groups * data.draw(st.integers(1, 9), label="outs")
    kernel = data.draw(st.sampled_from([1, 2, 4, 9, 25, 49]), label="kernel")
    crossbar = CrossbarSize(data.draw(st.integers(1, 40), label="rows"), data.draw(st.integers(1, 12), label="cols"))
    grid = block_grid(in_channels, out_channels, kernel, crossbar, groups=groups)
    expected = placed(in_channels, out_channels, kernel, crossbar, groups)
    assert grid.num_blocks == len(expected)
    assert grid.channels_per_block == crossbar.rows // kernel
    assert max(grid.row_cuts) <= crossbar.rows
    assert max(grid.col_cuts) <= crossbar.cols
    if groups == 1:
        # Word lines and bit lines of each crossbar, not only their number.
        cuts = [(rows, cols) for rows in grid.row_cuts for cols in grid.col_cuts]
        assert sorted(cuts) == sorted(expected.values())


def test_kernels_stay_whole():
    # 7 × 7: five channels of 49 rows fit 256 word lines, eleven do not fit two crossbars.
    assert block_grid(11, 4, 49, CrossbarSize()).row_cuts == (245, 245, 49)
    # 5 × 5 on 16 word lines: each channel is split on its own.
    assert block_grid(2, 4, 25, CrossbarSize(16, 16)).row_cuts == (16, 9, 16, 9)


def test_depthwise_groups_share_a_crossbar():
    # 3 × 3 depthwise: 28 kernels of 9 rows and one column each along the diagonal.
    grid = block_grid(96, 96, 9, CrossbarSize(), groups=96)
    assert (grid.num_blocks, grid.row_cuts, grid.col_cuts) == (4, (252,), (28,))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 600),
    st.integers(1, 600),
    st.sampled_from([1, 9, 25, 49]),
    st.integers(49, 600),
    st.integers(1, 600),
)
def test_formula_and_larger_crossbars(ins, outs, kernel, rows, cols):
    blocks = block_grid(ins, outs, kernel, CrossbarSize(rows, cols)).num_blocks
    assert blocks == -(-outs // cols) * -(-ins // (rows // kernel))
    assert block_grid(ins, outs, kernel, CrossbarSize(2 * rows, cols)).num_blocks <= blocks
    assert block_grid(ins, outs, kernel, CrossbarSize(rows, 2 * cols)).num_blocks <= blocks


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"in_channels": 0}, "in_channels: expected at least 1, got 0"),
        ({"out_channels": -1}, "out_channels"),
        ({"kernel_elements": 0}, "kernel_elements"),
        ({"groups": 0}, "groups"),
        ({"groups": 3}, "a divisor of 8 and 8 channels, got 3"),
    ],
)
def test_grid_errors(numbers, message):
    with pytest.raises(ArgumentError, match=message):
        block_grid(**{"in_channels": 8, "out_channels": 8, "kernel_elements": 9, "crossbar": CrossbarSize(), **numbers})


def test_sizes_are_read_and_written():
    assert CrossbarSize.parse("256") == CrossbarSize(256, 256)
    assert CrossbarSize.parse("64x32") == CrossbarSize(64, 32) == CrossbarSize.parse(str(CrossbarSize(64, 32)))
    assert CrossbarSize.parse("64X32") == CrossbarSize(rows=64, cols=32)


@pytest.mark.parametrize("text", ["", "x", "64x", "x64", "64x32x16", "-64", "6.4", "64 x 32", "²", "0", "70000"])
def test_sizes_that_are_none(text):
    with pytest.raises(ArgumentError, match="crossbar"):
        CrossbarSize.parse(text)


@pytest.mark.parametrize("rows", [0, -1, 65_537, 64.0, "64", None])
def test_size_range(rows):
    with pytest.raises(ArgumentError, match="crossbar rows: expected 1 to 65536"):
        CrossbarSize(rows, 64)


def test_planes():
    assert [num_planes(bits) for bits in (2, 3, 5, 9, 16, 32)] == [1, 2, 4, 8, 15, 32]
    for bits in (-1, 0, 1, 17, 31, 33):
        with pytest.raises(ArgumentError, match=f"bits: expected 2 to 16, or 32 .* got {bits}"):
            num_planes(bits)
