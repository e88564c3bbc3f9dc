"""Costs of single steps: against the reference's figures by hand, against cells counted one by one, and as rules."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError, ShapeError  # noqa: E402
from sparing.pim.cost import layer_cost, pooling_cost, sum_cost  # noqa: E402
from sparing.pim.crossbar import CrossbarSize, num_planes  # noqa: E402
from sparing.pim.design import LayerDesign, dense_design, num_crossbars, uniform_design  # noqa: E402
from sparing.pim.epitome import EpitomeShape, epitome_index  # noqa: E402
from sparing.pim.hardware import load_hardware  # noqa: E402
from sparing.pim.layers import LayerShape  # noqa: E402
from sparing.pim.option_costs import option_costs  # noqa: E402
from sparing.pim.report import hardware_report  # noqa: E402
from sparing.pim.rounds import layer_rounds  # noqa: E402
from sparing.pim.step_cost import buffer_energy  # noqa: E402
from sparing.pim.steps import Step  # noqa: E402

MNSIM, ISAAC = load_hardware("mnsim"), load_hardware("isaac")
NS = 1e-9


def conv(in_channels, out_channels, kernel=3, size=8, stride=1, groups=1, num_calls=1, **more):
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    sizes = {"in_size": (size, size), "out_size": (out, out), "padding": (pad, pad), "stride": (stride, stride)}
    shape = {"kind": "conv", "kernel": (kernel, kernel), "groups": groups, "num_calls": num_calls, **sizes, **more}
    return LayerShape(name="layer", in_channels=in_channels, out_channels=out_channels, **shape)


def linear(in_features, out_features, vectors=1):
    one, size = (1, 1), (1, vectors)
    return LayerShape("fc", "linear", in_features, out_features, one, one, (0, 0), 1, size, size)


# name, layer, then of one pixel in ns: analog, digital, input buffer (mean), output buffer, merging and sending a hop.
REFERENCE = [
    ("conv1", conv(3, 64, 7, 224, 2), 255, 94, 164, 1360, 117, 29),
    ("l1.0.c1", conv(64, 64, 1, 56), 127, 50, 360, 1360, 117, 29),
    ("l1.0.c2", conv(64, 64, 3, 56), 255, 94, 333, 1360, 117, 29),
    ("l1.0.c3", conv(64, 256, 1, 56), 255, 98, 360, 5440, 463, 115),
    ("l2.0.c1", conv(256, 128, 1, 56), 255, 95, 1440, 2720, 232, 58),
    ("l2.0.down", conv(256, 512, 1, 56, 2), 510, 186, 4192, 5440, 463, 230),
    ("l3.0.c2", conv(256, 256, 3, 28, 2), 510, 186, 828, 5440, 463, 115),
    ("l4.0.down", conv(1024, 2048, 1, 14, 2), 510, 186, 3820, 5440, 463, 922),
    ("fc", linear(2048, 1000), 510, 186, 1440, 5440, 463, 450),
]


@pytest.mark.parametrize(("layer", "expected"), [(row[1], row[2:]) for row in REFERENCE], ids=[r[0] for r in REFERENCE])
def test_a_pixel_of_the_reference(layer, expected):
    cost = layer_cost(layer, LayerDesign(bits=9), MNSIM)
    names = ("analog", "digital", "input_buffer", "output_buffer")
    found = [cost.latency_s[name] / layer.num_pixels / NS for name in names]
    assert [*found, cost.merge_s / NS, cost.send_s / NS] == pytest.approx(expected, abs=0.51)
    weights = [1, *((n - 1) for n in layer.out_size)]
    counts = np.array([1, layer.out_size[1] - 1, layer.out_size[0] - 1, weights[1] * weights[2]])
    assert float(np.array(cost.pixel_s) @ counts) == pytest.approx(sum(cost.latency_s.values()))


def test_the_analog_part_by_hand():
    """9 cycles, two turns of word lines and of bit lines, 3 + 3.16 + 8 ns each."""
    cost = layer_cost(conv(64, 256, 3, 7), LayerDesign(bits=9), MNSIM)
    assert cost.latency_s["analog"] == pytest.approx(49 * 9 * 4 * 14.16 * NS)
    # 3 blocks of 252, 252 and 72 word lines, 8 planes: 24 pairs in 6 tiles, each with 128 ADCs at work.
    assert (cost.num_crossbars, cost.num_tiles) == (24, 6)
    assert cost.energy_j["adc"] == pytest.approx(24 * 128 * 36 * 1.26e-3 * 8 * NS * 49)
    assert cost.energy_j["dac"] == pytest.approx(24 * 126 * 36 * 3.9e-6 * 3 * NS * 49)
    cells = 2 * 252 * 256 / 4
    assert cost.energy_j["crossbar"] == pytest.approx(24 * cells * 7.57575e-8 * 36 * 3.16 * NS * 49)
    assert cost.utilization == (252 + 252 + 72) / (3 * 256)
    # Conversions are those of bit lines in use, in the turns that each block needs.
    assert cost.adc_conversions == 49 * 9 * 8 * 256 * (2 + 2 + 1)


def test_tiles_are_charged_whole():
    """6 planes of one block stand in two tiles of four PEs, and the second is charged like the first."""
    six, eight = (layer_cost(conv(16, 16, 3), LayerDesign(bits=bits), MNSIM) for bits in (7, 9))
    assert (six.num_crossbars, eight.num_crossbars, six.num_tiles, eight.num_tiles) == (6, 8, 2, 2)
    assert six.energy_j["adc"] == eight.energy_j["adc"]


def test_poolings_and_sums_of_the_reference():
    largest = Step("pool:1", "pool", 64, (3, 3), (2, 2), (1, 1), (112, 112), (56, 56))
    found = pooling_cost(largest, MNSIM)
    assert sum(found.latency_s.values()) / 3136 / NS == pytest.approx(100 + 1810 + 360, abs=1)
    average = Step("pool:2", "pool", 2048, (7, 7), (7, 7), (0, 0), (7, 7), (1, 1))
    found = pooling_cost(average, MNSIM)
    assert found.pixel_s[0] / NS == pytest.approx(19200 + 564480 + 2 * 5760)
    assert found.energy_j["pooling"] == pytest.approx(19200 * NS * 3.082e-3)
    assert (found.num_tiles, found.num_crossbars) == (1, 0)
    added = Step("sum:1", "sum", 256, (1, 1), (1, 1), (0, 0), (56, 56), (56, 56))
    found = sum_cost(added, MNSIM)
    assert found.pixel_s[3] / NS == pytest.approx(10 + 2 * 1440)
    assert (found.num_tiles, sum(found.energy_j.values())) == (0, 0)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([(1, 1), (2, 3), (3, 3)]))


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_rounds_use_the_cells_that_the_index_says(data):
    """Word lines and bit lines of each round, counted cell by cell from the epitome's index."""
    out, in_, (kh, kw) = data.draw(shapes)
    epitome = EpitomeShape(
        out_channels=data.draw(st.integers(1, out)),
        in_channels=data.draw(st.integers(1, in_)),
        kernel=(kh + data.draw(st.integers(0, 2)), kw + data.draw(st.integers(0, 2))),
        wrapped=data.draw(st.booleans()),
    )
    crossbar = CrossbarSize(data.draw(st.integers(2, 40)), data.draw(st.integers(1, 8)))
    one = (1, 1)
    layer = LayerShape("layer", "conv", in_, out, (kh, kw), one, (0, 0), 1, (8, 8), (6, 6))
    rounds = layer_rounds(layer, LayerDesign(bits=3, epitome=epitome), crossbar)
    found = [one for group in rounds.groups for one in group]

    eo, ei, p, q = epitome.size_of(layer.weight_shape)
    index = epitome_index(layer.weight_shape, epitome).numpy()
    per_block = crossbar.rows // (p * q)
    outs = epitome.out_channels if epitome.wrapped else math.ceil(out / math.ceil(out / eo))
    ins = math.ceil(in_ / math.ceil(in_ / ei))
    expected, needed = [], {}
    for o0 in range(0, min(outs, out) if epitome.wrapped else out, outs):
        for i0 in range(0, in_, ins):
            rows, cols = set(), set()
            for i in range(i0, min(i0 + ins, in_)):
                for e in index[o0 : o0 + outs, i].ravel().tolist():
                    channel, place = e // (p * q) % ei, e % (p * q)
                    pieces = math.ceil(p * q / crossbar.rows)
                    block = channel // per_block if per_block else channel * pieces + place // crossbar.rows
                    rows.add((block, channel, place))
                    cols.add((e // (ei * p * q) // crossbar.cols, e // (ei * p * q)))
                    needed.setdefault(channel // max(1, per_block), set()).add(i)
            expected.append((counted(rows), counted(cols)))
    assert [(one.rows, one.cols) for one in found] == expected
    assert rounds.fetched_channels == max(map(len, needed.values()))
    assert rounds.num_rounds == len(expected)
    assert rounds.computed_channels == (eo if epitome.wrapped else out)


def counted(lines):
    blocks = [line[0] for line in lines]
    return tuple(blocks.count(block) for block in sorted(set(blocks)))


def test_an_epitome_takes_a_round_a_patch():
    """512 → 512 of 3 × 3 from 256 × 112: 2 output groups of 5 rounds of at most 4 blocks, against 19 × 2 blocks."""
    layer = conv(512, 512, 3, 7)
    dense = layer_cost(layer, LayerDesign(bits=3), MNSIM)
    shape = EpitomeShape(out_channels=256, in_channels=112)
    plain = layer_cost(layer, LayerDesign(bits=3, epitome=shape), MNSIM)
    wrapped = layer_cost(layer, LayerDesign(bits=3, epitome=shape.model_copy(update={"wrapped": True})), MNSIM)
    assert (dense.num_crossbars, plain.num_crossbars) == (38 * 2, 4 * 2)
    assert (dense.num_rounds, plain.num_rounds, wrapped.num_rounds) == (1, 10, 5)
    # All rounds of one pixel one after the other.
    assert plain.latency_s["analog"] == pytest.approx(10 * dense.latency_s["analog"])
    # Wrapped: half of all that is done, and all that is sent.
    for name in ("analog", "output_buffer", "tables"):
        assert wrapped.latency_s[name] == pytest.approx(plain.latency_s[name] / 2)
    assert wrapped.energy_j["adc"] == pytest.approx(plain.energy_j["adc"] / 2)
    assert wrapped.adc_conversions * 2 == pytest.approx(plain.adc_conversions, rel=0.1)
    assert wrapped.merge_s == pytest.approx(plain.merge_s / 2)
    assert wrapped.sent_bits == plain.sent_bits == dense.sent_bits == 512 * 9
    assert wrapped.output_buffer_bytes == plain.output_buffer_bytes / 2


def test_sums_of_one_output_group_are_read_again_in_each_round_but_the_first():
    layer = conv(512, 256, 1, 1)
    shape = EpitomeShape(out_channels=256, in_channels=128)
    cost = layer_cost(layer, LayerDesign(bits=9, epitome=shape), MNSIM)
    # 8 pairs, 4 a tile: 8-bit sums of 256 bit lines of 4 PEs in 128 words, results of 9 bits in 144.
    write_s, result_s = 128 * 20 * NS, 144 * 20 * NS
    assert cost.latency_s["output_buffer"] == pytest.approx(4 * write_s + 3 * write_s + result_s)
    # Inputs: 512 channels written once into each PE, 128 read in each round.
    assert cost.latency_s["input_buffer"] == pytest.approx((72 + 4 * 18) * 20 * NS)


def test_tables_are_read_and_stored():
    layer = conv(512, 512, 1, 4)
    shape = EpitomeShape(out_channels=256, in_channels=256)
    cost = layer_cost(layer, LayerDesign(bits=3, epitome=shape), MNSIM)
    row = (
        (9 + 8) + 8 + (8 + 9 + 8)
    )  # first of 512 and how many of 256; first channel; first bit line, channel, how many
    assert cost.table_bits == 4 * row
    assert cost.latency_s["tables"] == pytest.approx(16 * 4 * 20 * NS)  # one word of 64 bits
    # Two output groups of two rounds; 2 PEs, 7-bit sums of 256 bit lines in 56 words, results in 72.
    assert cost.latency_s["output_buffer"] == pytest.approx(16 * 2 * (2 * 56 + 56 + 72) * 20 * NS)
    read_w = 1.006428e-3 + 7.5695e-12 / (20 * NS)
    assert cost.energy_j["tables"] == pytest.approx(16 * 4 * 20 * NS * read_w)
    dense = layer_cost(layer, LayerDesign(bits=3), MNSIM)
    assert (dense.table_bits, dense.latency_s["tables"], dense.energy_j["tables"]) == (0, 0, 0)


def test_an_epitome_of_full_size_is_the_dense_layer_and_its_tables():
    layer = conv(64, 96, 3, 9, 2)
    dense = layer_cost(layer, LayerDesign(bits=5), MNSIM)
    full = LayerDesign(bits=5, epitome=EpitomeShape(out_channels=96, in_channels=64))
    found = layer_cost(layer, full, MNSIM)
    assert found.num_crossbars == dense.num_crossbars
    assert found.adc_conversions == dense.adc_conversions
    assert found.buffer_use == dense.buffer_use
    for parts in ("latency_s", "energy_j"):
        without = {name: value for name, value in getattr(found, parts).items() if name != "tables"}
        assert without == pytest.approx({name: getattr(dense, parts)[name] for name in without})


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_more_bits_never_cost_less(data):
    layer = conv(
        data.draw(st.integers(1, 80)),
        data.draw(st.integers(1, 80)),
        data.draw(st.sampled_from([1, 3, 5])),
        data.draw(st.integers(1, 9)),
        data.draw(st.sampled_from([1, 2])),
    )
    size = CrossbarSize(data.draw(st.sampled_from([16, 64, 256])), data.draw(st.sampled_from([8, 64])))
    hardware = data.draw(st.sampled_from([MNSIM, ISAAC])).with_crossbar(size)
    shape = EpitomeShape(
        out_channels=data.draw(st.integers(1, layer.out_channels)),
        in_channels=data.draw(st.integers(1, layer.in_channels)),
        wrapped=data.draw(st.booleans()),
    )
    epitome = data.draw(st.sampled_from([None, shape]))
    few, many = sorted(data.draw(st.lists(st.integers(2, 16), min_size=2, max_size=2, unique=True)))
    costs = [layer_cost(layer, LayerDesign(bits=bits, epitome=epitome), hardware) for bits in (few, many)]
    a, b = costs
    assert a.num_crossbars * num_planes(many) == b.num_crossbars * num_planes(few)
    assert a.num_tiles <= b.num_tiles
    assert a.adc_conversions < b.adc_conversions
    assert all(a.energy_j[name] <= b.energy_j[name] * (1 + 1e-9) for name in a.energy_j)
    for cost in costs:
        assert 0 < cost.utilization <= 1
        assert all(value >= 0 for value in (*cost.latency_s.values(), *cost.energy_j.values(), *cost.pixel_s))
        assert min(cost.latency_s["analog"], cost.energy_j["adc"], cost.output_buffer_bytes) > 0


def test_overlapped_conversions_take_the_slower_of_two():
    cost = layer_cost(conv(128, 128, 1, 1), LayerDesign(bits=9), ISAAC)
    sweep = 128 / 1.2e9  # 128 bit lines on one ADC take longer than the 100 ns of a read
    assert cost.latency_s["analog"] == pytest.approx(9 * sweep + sweep)
    assert cost.energy_j["adc"] == pytest.approx(8 * 128 * 9 * 1.67e-12)
    narrow = layer_cost(conv(128, 12, 1, 1), LayerDesign(bits=9), ISAAC)
    assert narrow.latency_s["analog"] == pytest.approx(9 * 100 * NS + 10 * NS)


def test_grouped_convolutions_have_a_cost():
    cost = layer_cost(conv(32, 32, 3, 8, groups=32), LayerDesign(bits=9), MNSIM)
    # 28 of the 9-row kernels stand on the diagonal of one crossbar.
    assert (cost.num_crossbars, cost.num_rounds) == (2 * 8, 1)
    # Two such crossbars of 28 bit lines in two turns of word lines; the second is counted as full.
    assert cost.adc_conversions == 64 * 9 * 8 * 2 * 28 * 2
    # What is off the diagonal holds no weight.
    assert cost.utilization == 32 * 9 / (2 * 256 * 256)
    with pytest.raises(ArgumentError, match="cannot be an epitome: it has 32 groups"):
        layer_cost(
            conv(32, 32, groups=32), LayerDesign(bits=9, epitome=EpitomeShape(out_channels=8, in_channels=1)), MNSIM
        )


def test_calls_multiply():
    once, thrice = (layer_cost(conv(8, 8, num_calls=n), LayerDesign(bits=3), MNSIM) for n in (1, 3))
    assert thrice.num_crossbars == once.num_crossbars
    assert thrice.energy_j["adc"] == pytest.approx(3 * once.energy_j["adc"])
    assert thrice.latency_s["input_buffer"] == pytest.approx(3 * once.latency_s["input_buffer"])
    assert thrice.pixel_s == once.pixel_s


def test_bad_arguments_are_named():
    for bits in (0, 17):
        with pytest.raises(ArgumentError, match="activation_bits"):
            layer_cost(conv(8, 8), LayerDesign(bits=3), MNSIM, activation_bits=bits)
    with pytest.raises(ShapeError, match="epitome"):
        layer_cost(conv(8, 8), LayerDesign(epitome=EpitomeShape(out_channels=9, in_channels=8)), MNSIM)


def test_columns_for_a_search_add_up_to_the_report(network_of):
    network = network_of("resnet18")
    design = uniform_design(network, CrossbarSize(), bits=3)
    report = hardware_report(network, design, MNSIM)
    total = report.design
    sizes = {"input_buffer_bytes": total.input_buffer_bytes, "output_buffer_bytes": total.output_buffer_bytes}
    costs = option_costs(MNSIM, **sizes)
    rows = [costs(layer, design.layers[layer.name]) for layer in network.layers]
    summed = {name: sum(row[name] for row in rows) for name in rows[0]}
    layers = [step for step in report.steps if step.ratio is not None]
    assert summed["tiles"] == sum(step.num_tiles for step in layers)
    assert (summed["rounds"], summed["adc_conversions"]) == (total.num_rounds, total.adc_conversions)
    assert summed["table_bits"] == total.table_bits > 0
    assert summed["energy_j"] == pytest.approx(sum(sum(step.energy_j.values()) for step in layers))
    assert summed["area_m2"] == pytest.approx(sum(step.area_m2 for step in layers))
    at_home = [sum(v for name, v in step.latency_s.items() if name not in ("merge", "send")) for step in layers]
    assert summed["serial_s"] == pytest.approx(sum(at_home))
    farther = option_costs(MNSIM, inside_hops=2, outside_hops=3)(
        network.layers[5], design.layers[network.layers[5].name]
    )
    assert farther["serial_s"] > rows[5]["serial_s"]


def test_crossbars_are_those_of_the_design(network_of):
    network = network_of("resnet18")
    design = dense_design(network, bits=5)
    found = sum(layer_cost(n, design.layers[n.name], MNSIM).num_crossbars for n in network.layers)
    assert found == num_crossbars(network, design, MNSIM.crossbar)


def test_buffers_together_or_one_at_a_time():
    layer, design = conv(64, 64, 1, 4), LayerDesign(bits=9)
    apart = MNSIM.model_copy(update={"tile": MNSIM.tile.model_copy(update={"buffers_together": False})})
    small, joint, single = MNSIM.tile.output_buffer.holding(1), *(layer_cost(layer, design, h) for h in (MNSIM, apart))
    # 8 pairs in 2 tiles; of a pixel 9 words in, 9 words read, 32 words out and 36 words read.
    read = 16 * 20 * NS * np.array([9, 36])
    written = 16 * 20 * NS * np.array([9, 32])
    use = single.buffer_use
    assert (use.input_read_s, use.output_read_s) == pytest.approx((8 * read[0], 2 * read[1]))
    assert (use.input_write_s, use.output_write_s) == pytest.approx((8 * written[0], 2 * written[1]))
    use = joint.buffer_use
    assert (use.input_read_s, use.output_write_s) == pytest.approx((8 * read.sum(), 2 * written.sum()))
    read_w, write_w = MNSIM.tile.output_buffer.read_w(small), MNSIM.tile.output_buffer.write_w(small)
    expected = 10 * (read.sum() * read_w + written.sum() * write_w)
    assert buffer_energy(joint.buffer_use, MNSIM, small, small) == pytest.approx(expected)
