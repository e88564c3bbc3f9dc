"""Placement and the pipeline against plain loops, tile by tile and pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.pim.design import dense_design  # noqa: E402
from sparing.pim.hardware import load_hardware  # noqa: E402
from sparing.pim.layers import NetworkShape  # noqa: E402
from sparing.pim.pipeline import latency_of, network_steps  # noqa: E402
from sparing.pim.placement import Hops, place_tiles, placed_hops  # noqa: E402
from sparing.pim.report import hardware_report  # noqa: E402
from sparing.pim.step_cost import StepCost  # noqa: E402
from sparing.pim.steps import Step  # noqa: E402

ONE = (1, 1)


def step(name, inputs, in_size=(1, 1), out_size=None, kind="conv", kernel=ONE, stride=ONE, padding=(0, 0), **more):
    return Step(name, kind, 4, kernel, stride, padding, in_size, out_size or in_size, inputs=inputs, **more)


def cost(name, corner, top=None, left=None, inside=None, merge=0.0, send=0.0, kind="conv"):
    times = (corner, *(corner if x is None else x for x in (top, left, inside)))
    return StepCost(name, kind, pixel_s=times, merge_s=merge, send_s=send)


def test_tiles_lie_along_growing_squares():
    assert place_tiles(10).tolist() == [
        [0, 0],
        *([0, 1], [1, 1], [1, 0]),
        *([2, 0], [2, 1], [2, 2], [1, 2], [0, 2]),
        [0, 3],
    ]
    assert place_tiles(0).shape == (0, 2)


@given(st.integers(1, 300))
def test_each_tile_is_next_to_the_one_before(count):
    tiles = place_tiles(count)
    assert len(np.unique(tiles, axis=0)) == count
    assert (np.abs(np.diff(tiles, axis=0)).sum(1) == 1).all()
    assert tiles.max() ** 2 < count


def hops_by_pairs(steps, num_tiles, side):
    """Every pair of tiles, as the reference describes it."""
    cells, where = [tuple(t) for t in place_tiles(sum(num_tiles)).tolist()], {}
    for one, count in zip(steps, num_tiles, strict=True):
        where[one.name], cells = sorted(cells[:count]), cells[count:]
    middle = max(side, int(np.ceil(np.sqrt(max(1, sum(num_tiles)))))) // 2

    def apart(a, b):
        return abs(a[0] - b[0]) + abs(a[1] - b[1])

    found = []
    for one in steps:
        readers = [other for other in steps if one.name in other.inputs]
        if one.kind == "sum":
            outer = [apart(where[r.name][0], (middle, 0)) for r in readers if where[r.name]]
            found.append((0, max(outer, default=0)))
            continue
        best = None
        for tile in where[one.name]:
            inner = max(apart(tile, other) for other in where[one.name])
            if readers and all(r.kind == "sum" for r in readers):
                outer = apart(tile, (middle, 0))
            else:
                outer = max((apart(tile, other) for r in readers for other in where[r.name]), default=0)
            if best is None or inner + outer < sum(best):
                best = (inner, outer)
        found.append(best or (0, 0))
    return found


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_hops_are_those_of_all_pairs(data):
    steps, tiles = [], []
    for n in range(data.draw(st.integers(1, 9))):
        earlier = [s.name for s in steps] or [""]
        inputs = tuple(sorted(data.draw(st.sets(st.sampled_from(earlier), min_size=1, max_size=2))))
        kind = data.draw(st.sampled_from(["conv", "conv", "sum"])) if steps else "conv"
        steps.append(step(f"s{n}", inputs, kind=kind))
        tiles.append(0 if kind == "sum" else data.draw(st.integers(1, 30)))
    side = data.draw(st.sampled_from([2, 8, 64]))
    found = [(hops.inside, hops.outside) for hops in placed_hops(steps, tiles, side)]
    assert found == hops_by_pairs(steps, tiles, side)


def plain_latency(steps, costs, hops):
    """Pixel by pixel; each asks each source for the pixels of its window one by one."""
    done, sizes = {}, {}
    for one, way in zip(steps, hops, strict=True):
        height, width = one.out_size
        ends, free = [], 0.0
        for y in range(height):
            for x in range(width):
                corner, top, left, inside = costs[one.name].pixel_s
                seconds = (top if x else corner) if y == 0 else (inside if x else left)
                seconds += way.inside * costs[one.name].merge_s + way.outside * costs[one.name].send_s
                start = free
                for name in one.inputs:
                    if name not in done:
                        continue
                    if one.kind == "linear":
                        start = max(start, *done[name])
                        continue
                    for ky in range(one.kernel[0]):
                        for kx in range(one.kernel[1]):
                            v = y * one.stride[0] - one.padding[0] + ky * one.dilation[0]
                            u = x * one.stride[1] - one.padding[1] + kx * one.dilation[1]
                            # In zeros behind the end: the last there is. In those before it: nothing to wait for.
                            v, u = min(v, one.in_size[0] - 1), min(u, one.in_size[1] - 1)
                            if v >= 0 and u >= 0:
                                start = max(start, done[name][v * sizes[name][1] + u])
                free = start + seconds
                ends.append(free)
        done[one.name], sizes[one.name] = ends, one.out_size
    return max(ends[-1] for ends in done.values()), done


seconds_ = st.floats(0.1, 10).map(lambda x: round(x, 3))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_pipeline_is_that_of_single_pixels(data):
    steps, costs, size = [], {}, (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7)))
    sized = {"": size}
    for n in range(data.draw(st.integers(1, 6))):
        name, source = f"s{n}", data.draw(st.sampled_from(sorted(sized)))
        kind = data.draw(st.sampled_from(["conv", "pool", "sum", "linear"]))
        in_size, more = sized[source], {}
        out_size, inputs = in_size, {source}
        if kind in ("conv", "pool"):
            kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(2))
            dilation = tuple(data.draw(st.integers(1, 2)) for _ in range(2))
            window = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
            # Less padding than half a window, as in networks: each window sees something of the map.
            padding = tuple(data.draw(st.integers(0, (w - 1) // 2)) for w in window)
            stride = tuple(data.draw(st.integers(1, 2)) for _ in range(2))
            if any(w > i + 2 * p for w, i, p in zip(window, in_size, padding, strict=True)):
                continue
            out_size = tuple(
                (i + 2 * p - w) // s + 1 for i, p, w, s in zip(in_size, padding, window, stride, strict=True)
            )
            more = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        elif kind == "linear":
            in_size, out_size = (1, 1), (1, 1)
        else:
            alike = [other for other, found in sorted(sized.items()) if found == in_size]
            inputs = {source, data.draw(st.sampled_from(alike))}
        steps.append(step(name, tuple(sorted(inputs)), in_size, out_size, kind, **more))
        costs[name] = cost(name, *(data.draw(seconds_) for _ in range(6)), kind=kind)
        sized[name] = out_size
    if not steps:
        return
    hops = [Hops(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))) for _ in steps]
    found = latency_of(steps, costs, hops)
    expected, done = plain_latency(steps, costs, hops)
    assert found.pipelined_s == pytest.approx(expected)
    assert found.first_s == pytest.approx({name: ends[0] for name, ends in done.items()})
    assert found.last_s == pytest.approx({name: ends[-1] for name, ends in done.items()})
    assert found.serial_s >= found.pipelined_s * (1 - 1e-12)


def test_a_chain_by_hand():
    """Four pixels of 1 s, then a 2 × 2 pooling of 5 s that waits for all of them, then two linear layers."""
    steps = [
        step("a", ("",), (2, 2)),
        step("p", ("a",), (2, 2), (1, 1), "pool", (2, 2), (2, 2)),
        step("b", ("p",), kind="linear"),
        step("c", ("b",), kind="linear"),
    ]
    costs = {"a": cost("a", 1), "p": cost("p", 5), "b": cost("b", 7, send=0.5), "c": cost("c", 11, merge=0.25)}
    found = latency_of(steps, costs, [Hops(), Hops(), Hops(0, 2), Hops(4, 0)])
    assert found.pipelined_s == found.serial_s == 4 + 5 + 7 + 1 + 11 + 1
    assert found.last_s["p"] == 9


def test_what_is_off_the_chip_takes_no_time_and_passes_on():
    steps = [step("a", ("",), (1, 3)), step("off", ("a",), (1, 3)), step("b", ("off",), (1, 3))]
    found = latency_of(steps, {"a": cost("a", 2), "b": cost("b", 1)}, [Hops()] * 3)
    assert (found.pipelined_s, found.serial_s) == (7, 9)


def test_a_step_that_reads_itself_or_a_later_one_does_not_wait_for_it():
    steps = [step("a", ("", "a", "b"), (1, 2)), step("b", ("a",), (1, 2))]
    found = latency_of(steps, {"a": cost("a", 1), "b": cost("b", 1)}, [Hops()] * 2)
    assert found.pipelined_s == 3


def test_calls_follow_one_another():
    """Two crops of one pixel each through `a`; `b` sees both, `c` only their joint result."""
    steps = [
        step("a", ("",), num_calls=2),
        step("b", ("a",), num_calls=2),
        step("c", ("b",), kind="linear"),
    ]
    found = latency_of(steps, {"a": cost("a", 3), "b": cost("b", 1), "c": cost("c", 1)}, [Hops()] * 3)
    assert found.first_s == {"a": 3, "b": 4, "c": 8}
    assert found.last_s == {"a": 6, "b": 7, "c": 8}


def test_tokens_wait_for_their_own_pixel():
    steps = [step("a", ("",), (2, 2)), step("b", ("a",), (1, 4), kind="linear"), step("c", ("b",), (2, 2))]
    found = latency_of(steps, {"a": cost("a", 2), "b": cost("b", 1), "c": cost("c", 1)}, [Hops()] * 3)
    assert found.first_s == {"a": 2, "b": 3, "c": 4}
    assert found.last_s == {"a": 8, "b": 9, "c": 10}


def test_maps_of_another_size_are_followed_in_proportion():
    """Something unknown has halved (or doubled) the map between two layers."""
    steps = [step("a", ("",), (4, 4)), step("half", ("a",), (2, 2)), step("double", ("half",), (4, 4))]
    found = latency_of(steps, {name: cost(name, 1) for name in ("a", "half", "double")}, [Hops()] * 3)
    assert found.first_s == {"a": 1, "half": 7, "double": 8}
    assert found.last_s == {"a": 16, "half": 17, "double": 23}


def test_a_network_put_together_by_hand_has_its_layers_for_steps(network_of):
    network = network_of("resnet18")
    bare = NetworkShape(network.input_shape, network.layers)
    steps = network_steps(bare)
    assert [s.name for s in steps] == [layer.name for layer in network.layers]
    assert steps[1].inputs == ("conv1",)
    hardware = load_hardware()
    whole, without = (hardware_report(n, dense_design(n, bits=3), hardware) for n in (network, bare))
    assert without.num_crossbars == whole.num_crossbars
    # Its first maps are halved by a pooling that it does not know of: a window of 2 × 2 reaches into the fourth row.
    first, second = without.steps[:2]
    assert second.first_s > 3 / 112 * first.serial_s
    assert 0.7 < without.design.latency_s / whole.design.latency_s < 1.3


def test_a_longer_way_takes_longer(network_of):
    network = network_of("resnet18")
    hardware = load_hardware()
    far = hardware.model_copy(update={"links": replace_links(hardware, link_bits_per_s=1e10)})
    near = hardware.model_copy(update={"links": replace_links(hardware, link_bits_per_s=1e14)})
    design = dense_design(network, bits=3)
    times = [hardware_report(network, design, h).design.latency_s for h in (near, hardware, far)]
    assert times == sorted(times)
    assert times[0] < times[2]


def replace_links(hardware, **changes):
    return hardware.links.model_copy(update=changes)


def test_steps_are_values():
    one = step("a", ("",), (2, 3), num_calls=2)
    assert one.num_pixels == 12
    assert replace(one, name="b") != one
