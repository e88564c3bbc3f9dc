"""Design search: options and tables by counting, the exact answers by trying all, and evolution measured by these."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.pim.convert import convert_  # noqa: E402
from sparing.pim.crossbar import CrossbarSize, num_planes  # noqa: E402
from sparing.pim.design import LayerDesign, NetworkDesign, dense_design, num_crossbars, uniform_design  # noqa: E402
from sparing.pim.design_tables import DesignTables, design_tables  # noqa: E402
from sparing.pim.epitome import EpitomeShape, epitome_index, fit_epitome, patches_of, repetition_map  # noqa: E402
from sparing.pim.error_proxy import error_proxy, gaussian_rounding_error, num_used_elements  # noqa: E402
from sparing.pim.exact_search import bounded_best, exact_best, exact_front  # noqa: E402
from sparing.pim.layer_options import layer_options, network_options  # noqa: E402
from sparing.pim.layers import LayerShape, NetworkShape, trace_layers  # noqa: E402
from sparing.pim.search import search_designs  # noqa: E402


def conv(in_channels, out_channels, kernel=3, *, groups=1, name="conv"):
    size, pad = (8, 8), (kernel // 2, kernel // 2)
    return LayerShape(name, "conv", in_channels, out_channels, (kernel,) * 2, (1, 1), pad, groups, size, size, 1, ("",))


def counted(layer, design):
    """Rounds and ADC conversions of one image, from patches alone."""
    patches = patches_of(layer.weight_shape, design.epitome) if design.epitome else []
    if design.epitome and design.epitome.wrapped:
        patches = [patch for patch in patches if patch.out_start == 0]
    columns = sum(patch.num_out for patch in patches) if design.epitome else layer.out_channels
    rounds = max(1, len(patches)) * layer.num_pixels
    return {"rounds": rounds, "conversions": columns * num_planes(design.bits) * layer.num_pixels}


@pytest.fixture(scope="module")
def network():
    """Four convolutions and a linear layer; on crossbars of 16 × 16 they have choices."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, groups=2), nn.Conv2d(32, 40, 1), nn.Flatten()
    )
    model.append(nn.Linear(640, 4))
    return trace_layers(model, (3, 8, 8))


CROSSBAR = CrossbarSize(16, 16)


@pytest.fixture(scope="module")
def tables(network):
    return design_tables(network, CROSSBAR, network_options(network, CROSSBAR, bits=(3, 5)), cost=counted)


@pytest.fixture(scope="module")
def every(tables):
    """All designs and their costs by name."""
    vectors = np.array(list(itertools.product(*map(range, tables.num_options))))
    return vectors, dict(zip(tables.columns, tables.totals(vectors, [*tables.columns]).T, strict=True))


@pytest.fixture(scope="module")
def resnet50(network_of):
    network = network_of("resnet50")
    return design_tables(network, CrossbarSize(), network_options(network, CrossbarSize()), cost=counted)


# Options.


def test_options_of_a_layer_by_hand():
    # 40 inputs of 1 × 1 on 16 rows: 16, 32 or all; 20 outputs on 16 columns: 16 or all.
    found = layer_options(conv(40, 20, 1), CROSSBAR, bits=(5, 3))
    sizes = [(x.epitome and (x.epitome.in_channels, x.epitome.out_channels, x.epitome.wrapped), x.bits) for x in found]
    by_bits = [size for size, bits in sizes if bits == 3]
    assert by_bits == [
        (16, 16, False),
        (16, 16, True),
        (32, 16, False),
        (32, 16, True),
        (16, 20, False),
        (40, 16, False),
        (40, 16, True),
        (32, 20, False),
        None,
    ]
    assert sorted(map(str, by_bits)) == sorted(str(size) for size, bits in sizes if bits == 5)
    plain = layer_options(conv(40, 20, 1), CROSSBAR, wrapped=False)
    assert [x.epitome.wrapped for x in plain if x.epitome] == [False] * 5
    assert layer_options(conv(40, 40, 1, groups=2), CROSSBAR) == (LayerDesign(bits=3),)
    assert layer_options(conv(40, 20, 1), CROSSBAR, epitomes=False) == (LayerDesign(bits=3),)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 3, 5]), st.integers(1, 4))
def test_options_are_whole_crossbars_and_each_once(in_channels, out_channels, kernel, max_sizes):
    layer = conv(in_channels, out_channels, kernel)
    found = layer_options(layer, CROSSBAR, bits=(3, 4), max_sizes=max_sizes)
    assert len(set(map(str, found))) == len(found)
    assert LayerDesign(bits=3) in found
    shape = trace_shape(layer)
    counts = [num_crossbars(shape, NetworkDesign(layers={"conv": option}), CROSSBAR) for option in found]
    assert counts == sorted(counts)
    for option in found:
        NetworkDesign(layers={"conv": option}).check(shape)
        if option.epitome and kernel == 1:
            assert option.epitome.in_channels in (in_channels, option.epitome.in_channels // 16 * 16)
        if option.epitome:
            assert option.epitome.out_channels in (out_channels, option.epitome.out_channels // 16 * 16)
    assert len({x.epitome and x.epitome.in_channels for x in found}) <= max_sizes + 1


def trace_shape(layer):
    return NetworkShape((3, 8, 8), (layer,))


def test_options_of_a_network(network):
    names = [layer.name for layer in network.layers]
    found = network_options(network, CROSSBAR, bits=(3,), bits_of={"0": (9,)}, dense=("1",))
    assert list(found) == names
    assert {x.bits for x in found["0"]} == {9}
    assert found["1"] == found["2"] == found["5"] == (LayerDesign(bits=3),)
    assert len(network_options(network, CROSSBAR, linear=True)["5"]) > 10
    for wrong in ({"bits_of": {"7": (3,)}}, {"dense": ("7",)}):
        with pytest.raises(ArgumentError, match="no mapped layer 7"):
            network_options(network, CROSSBAR, **wrong)
    with pytest.raises(ArgumentError, match="bits: expected at least one"):
        network_options(network, CROSSBAR, bits=())


# Tables.


def test_totals_are_sums_over_the_design(network, tables):
    rng = np.random.default_rng(0)
    vectors = rng.integers(tables.num_options, size=(1500, 5))  # more than are looked up at once
    totals = tables.totals(vectors, ["error", "crossbars", "conversions"])
    proxy = error_proxy()
    for at in (0, 1, 1023, 1024, 1499):
        design = tables.design(vectors[at])
        assert tables.choices_of(design) == tuple(vectors[at])
        assert totals[at, 1] == num_crossbars(network, design, CROSSBAR)
        pairs = [(layer, design.layers[layer.name]) for layer in network.layers]
        assert totals[at, 0] == pytest.approx(sum(proxy(*pair) for pair in pairs), rel=1e-12)
        assert totals[at, 2] == sum(counted(*pair)["conversions"] for pair in pairs)
    assert tables.totals(np.empty((0, 5), int), ["error"]).shape == (0, 1)
    assert tables.totals(vectors, []).shape == (1500, 0)
    assert tables.num_designs == math.prod(map(len, tables.options))
    rounds = tables.columns["rounds"]
    slowest = [max(rounds[site, option] for site, option in enumerate(vector)) for vector in vectors[:20].tolist()]
    assert tables.largest("rounds")(vectors[:20]).tolist() == slowest


def test_beaten_options_are_left_out_and_no_best_design_with_them(tables):
    names = ["crossbars", "error"]
    slim = tables.without_beaten(names)
    assert slim.num_designs < tables.num_designs
    assert set(slim.columns) == set(tables.columns)
    for site, options in enumerate(slim.options):
        for at, option in enumerate(options):
            before = tables.options[site].index(option)
            assert [slim.columns[n][site, at] for n in slim.columns] == [
                tables.columns[n][site, before] for n in slim.columns
            ]
    fronts = [exact_front(t, objectives=("crossbars", "error")) for t in (tables, slim)]
    assert [[d.costs[n] for n in names] for d in fronts[0].designs] == [
        [d.costs[n] for n in names] for d in fronts[1].designs
    ]
    with pytest.raises(ArgumentError, match="at least one column"):
        tables.without_beaten([])


def test_options_beyond_a_limit_are_left_out(tables):
    kept = tables.within("rounds", 72)
    assert kept.num_designs < tables.num_designs
    for site, options in enumerate(tables.options):
        assert kept.options[site] == tuple(
            option for at, option in enumerate(options) if tables.columns["rounds"][site, at] <= 72
        )
        of_site = tables.columns["error"][site, : len(options)][tables.columns["rounds"][site, : len(options)] <= 72]
        assert kept.columns["error"][site, : len(of_site)].tolist() == of_site.tolist()
    assert np.isinf(kept.columns["error"][2, 2:]).all()
    with pytest.raises(ArgumentError, match="rounds: expected at least 36, the least of 0, got 20"):
        tables.within("rounds", 20)


def test_bad_tables(network, tables):
    options = network_options(network, CROSSBAR)

    def build(**changes):
        return design_tables(network, CROSSBAR, **{"options": options} | changes)

    with pytest.raises(ArgumentError, match="at least one layer"):
        build(options={})
    for wrong in ({"7": options["0"]}, {"0": ()}):
        with pytest.raises(ArgumentError, match="at least one option"):
            build(options=wrong)
    with pytest.raises(ArgumentError, match="groups"):
        build(options={"2": (LayerDesign(epitome=EpitomeShape(out_channels=1, in_channels=1)),)})
    with pytest.raises(ArgumentError, match="other columns"):
        build(cost=lambda *_: {"error": 1.0})
    with pytest.raises(ArgumentError, match="expected the columns"):
        build(cost=lambda layer, _: {layer.name: 1.0})
    with pytest.raises(NonFiniteError, match="cost: 0: energy_j"):
        build(cost=lambda *_: {"energy_j": math.inf})
    with pytest.raises(ArgumentError, match="0 or more"):
        build(cost=lambda *_: {"energy_j": -1.0})
    with pytest.raises(ArgumentError, match="expected one of the columns crossbars, error"):
        tables.totals([[0] * 5], ["joules"])
    with pytest.raises(ArgumentError, match=r"choices: expected options 0 to 1 at site 2, got 2"):
        tables.totals([[0, 0, 2, 0, 0]], ["error"])
    with pytest.raises(ShapeError, match="choices"):
        tables.design([0, 0])
    with pytest.raises(DtypeError, match="choices"):
        tables.design([0.0] * 5)
    dense = dense_design(network, bits=9)
    with pytest.raises(ArgumentError, match=r"design: 0: .* is not among its"):
        tables.choices_of(dense)
    with pytest.raises(ArgumentError, match="differs in 5"):
        tables.choices_of(NetworkDesign(layers={n: x for n, x in dense.layers.items() if n != "5"}))


# The error proxy.


def test_rounding_of_gaussian_numbers_is_the_published_one():
    # J. Max, 1960, table II: uniform quantizers of 3 and 7 levels.
    for bits, expected in ((2, 0.1902), (3, 0.04686)):
        assert gaussian_rounding_error(bits) == pytest.approx(expected, rel=1e-3)
    x = np.linspace(-9, 9, 200_001)
    density = np.exp(-(x**2) / 2)
    density /= density.sum()
    tried = [((x - (x / step).round().clip(-7, 7) * step) ** 2 * density).sum() for step in np.linspace(0.2, 0.5, 121)]
    assert gaussian_rounding_error(4) == pytest.approx(min(tried), rel=1e-4)
    values = [gaussian_rounding_error(bits) for bits in range(2, 17)]
    assert all(0 < b < a / 2 for a, b in itertools.pairwise(values))
    assert gaussian_rounding_error(32) == 0
    with pytest.raises(ArgumentError, match="bits"):
        gaussian_rounding_error(1)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_used_elements_are_those_of_the_index(data):
    out, in_, k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2, 3]))
    epitome = EpitomeShape(
        out_channels=data.draw(st.integers(1, out)),
        in_channels=data.draw(st.integers(1, in_)),
        kernel=data.draw(st.sampled_from([None, (k, k), (k + 1, k)])),
        wrapped=data.draw(st.booleans()),
    )
    shape = (out, in_, k, k)
    uses = repetition_map(epitome_index(shape, epitome), epitome.size_of(shape))
    assert num_used_elements(shape, epitome) == int((uses > 0).sum())


def test_the_proxy_is_the_mean_residual_of_weights_without_a_pattern():
    layer, epitome = conv(24, 20), EpitomeShape(out_channels=8, in_channels=10)
    error = error_proxy()(layer, LayerDesign(epitome=epitome))
    weight = torch.randn(200, *layer.weight_shape, generator=torch.Generator().manual_seed(0))
    index, size = epitome_index(layer.weight_shape, epitome), epitome.size_of(layer.weight_shape)
    residuals = [fit_epitome(w, index, size)[1] for w in weight]
    assert error / layer.num_weights == pytest.approx(np.mean(residuals), abs=4 * np.std(residuals) / 200**0.5)


def test_the_proxy_by_hand():
    layer = conv(16, 32, 1)
    plain, wrapped = (EpitomeShape(out_channels=8, in_channels=16, wrapped=w) for w in (False, True))
    proxy = error_proxy(sensitivity={"conv": 2.0})
    assert proxy(layer, LayerDesign()) == 0
    assert proxy(layer, LayerDesign(epitome=plain)) == 2 * 512 * 0.75
    # A quarter is kept, of which half times three quarters is lost to copies.
    assert proxy(layer, LayerDesign(epitome=wrapped)) == 2 * 512 * (1 - 0.25 * (1 - 0.375))
    assert error_proxy(copy_penalty=0)(layer, LayerDesign(epitome=wrapped)) == 512 * 0.75
    rounded = 2 * 512 * (0.75 + 0.25 * gaussian_rounding_error(3))
    assert proxy(layer, LayerDesign(bits=3, epitome=plain)) == pytest.approx(rounded)
    with pytest.raises(ArgumentError, match="copy_penalty"):
        error_proxy(copy_penalty=1.5)
    with pytest.raises(ArgumentError, match="sensitivity: a"):
        error_proxy(sensitivity={"a": -1.0})


def test_the_proxy_of_a_model_is_what_converting_it_reports():
    model = nn.Sequential(nn.Conv2d(8, 32, 3), nn.Conv2d(32, 16, 1))
    network = trace_layers(model, (8, 6, 6))
    design = NetworkDesign(
        layers={
            "0": LayerDesign(epitome=EpitomeShape(out_channels=8, in_channels=4)),
            "1": LayerDesign(epitome=EpitomeShape(out_channels=16, in_channels=10)),
        }
    )
    proxy = error_proxy(model)
    errors = {name: proxy(network[name], layer) for name, layer in design.layers.items()}
    for layer in convert_(model, design):
        assert errors[layer.name] == pytest.approx(layer.residual * layer.num_weights)
    with pytest.raises(ArgumentError, match="no Conv2d or Linear layer other"):
        proxy(conv(4, 4, name="other"), LayerDesign(epitome=EpitomeShape(out_channels=2, in_channels=2)))
    with torch.no_grad():
        model[1].bias.zero_()
        model[1].parametrizations.weight.original[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="model: 1"):
        error_proxy(model)


# Exact answers.


def test_exact_answers_are_the_best_of_all(tables, every):
    _, costs = every
    for budget in (150, 170, 200, 10**6):
        found = exact_best(tables, objective="error", limit=("crossbars", budget))
        assert found.costs["error"] == pytest.approx(costs["error"][costs["crossbars"] <= budget].min(), rel=1e-12)
        assert found.costs["crossbars"] <= budget
        assert found.design == tables.design(found.choices)
        # The other way about: a limit that is no whole number.
        limit = found.costs["error"] * (1 + 1e-9)
        back = exact_best(tables, objective="crossbars", limit=("error", limit))
        assert back.costs["crossbars"] == costs["crossbars"][costs["error"] <= limit].min()
    assert exact_best(tables, objective="rounds").costs["rounds"] == costs["rounds"].min()
    front = exact_front(tables, objectives=("crossbars", "error"), most=200)
    best = [costs["error"][costs["crossbars"] <= d.costs["crossbars"]].min() for d in front.designs]
    assert [d.costs["error"] for d in front.designs] == pytest.approx(best, rel=1e-12)
    counts = sorted({count for count in costs["crossbars"] if count <= 200})
    steps = np.minimum.accumulate([costs["error"][costs["crossbars"] == count].min() for count in counts])
    assert len(front.designs) == len({round(step, 6) for step in steps.tolist()})


def test_two_limits_at_once(tables, every):
    _, costs = every
    for limits in ({"crossbars": 170, "rounds": 150}, {"crossbars": 190, "conversions": 9000, "rounds": math.inf}):
        kept = np.all([costs[name] <= most for name, most in limits.items()], axis=0)
        found = bounded_best(tables, objective="error", limits=limits)
        assert found.objective == pytest.approx(costs["error"][kept].min(), rel=1e-9)
        assert found.bound <= found.objective
        assert 0 <= found.gap < 1e-6
        assert all(found.found.costs[name] <= most for name, most in limits.items())
    with pytest.raises(ArgumentError, match="no design keeps them together"):
        bounded_best(tables, objective="error", limits={"crossbars": 152, "rounds": costs["rounds"].min()})


# Evolution.


def test_evolution_is_within_a_hundredth_of_the_optimum(resnet50):
    slim = resnet50.without_beaten(["crossbars", "error"])
    for budget in (336, 428):
        best = exact_best(resnet50, objective="error", limit=("crossbars", budget)).costs["error"]
        found = search_designs(slim, objectives=["error"], limits={"crossbars": budget}, seed=0, evaluations=20_000)
        assert len(found.designs) == 1
        assert found.designs[0].costs["crossbars"] <= budget
        assert best * (1 - 1e-12) <= found.designs[0].costs["error"] <= 1.01 * best


def test_fronts_of_a_small_network_are_known(tables, every):
    vectors, costs = every
    found = search_designs(tables, objectives=["crossbars", "error"], seed=1, evaluations=8000)
    exact = exact_front(tables, objectives=("crossbars", "error"))
    mine = {d.costs["crossbars"]: d.costs["error"] for d in found.designs}
    for design in exact.designs:
        near = min(error for count, error in mine.items() if count <= design.costs["crossbars"])
        assert design.costs["error"] * (1 - 1e-12) <= near <= 1.05 * design.costs["error"]
    assert [*mine] == sorted(mine)
    assert found.objectives == ("crossbars", "error")
    assert found.evaluations == 8000
    # What does not add up: compared with the best of all.
    slowest = tables.largest("rounds")
    other = search_designs(
        tables,
        objectives=["edp"],
        functions={"edp": lambda v: slowest(v) * tables.totals(v, ["conversions"])[:, 0], "slowest": slowest},
        limits={"crossbars": 190, "slowest": 72},
        seed=0,
        evaluations=6000,
    )
    kept = (costs["crossbars"] <= 190) & (slowest(vectors) <= 72)
    assert other.designs[0].costs["edp"] == (slowest(vectors) * costs["conversions"])[kept].min()
    assert other.designs[0].costs["slowest"] <= 72


def test_the_published_ratio(network_of, resnet50):
    """13120 / 428 = 30.65x; rounds and conversions stand for time and energy."""
    network, crossbar = network_of("resnet50"), CrossbarSize()
    uniform = uniform_design(network, crossbar, bits=3)
    before = resnet50.totals([resnet50.choices_of(uniform)], [*resnet50.columns])[0]
    costs = dict(zip(resnet50.columns, before.tolist(), strict=True))
    assert costs["crossbars"] == 336
    limits = {"crossbars": 428, "rounds": costs["rounds"], "conversions": costs["conversions"]}
    found = search_designs(
        resnet50, objectives=["error"], limits=limits, seed=0, evaluations=10_000, start=[uniform]
    ).designs[0]
    assert num_crossbars(network, found.design, crossbar) == found.costs["crossbars"] <= 428
    assert num_crossbars(network, dense_design(network), crossbar) == 13120
    assert all(found.costs[name] <= most for name, most in limits.items())
    assert found.costs["error"] < 0.9 * costs["error"]
    found.design.check(network)


def test_seeds_starts_and_progress(network, tables):
    def run(seed, **more):
        return search_designs(tables, objectives=["crossbars", "error"], seed=seed, evaluations=400, **more)

    assert run(3) == run(3)
    assert run(3) != run(4)
    steps = []
    best = exact_best(tables, objective="error", limit=("crossbars", 170))
    found = run(0, start=[best.design], progress=lambda *step: steps.append(step))
    assert found.best("error", {"crossbars": 170}).costs["error"] <= best.costs["error"]
    assert steps[-1] == ("evaluations", 400, 400)
    with pytest.raises(ArgumentError, match="is not among"):
        run(0, start=[dense_design(network, bits=7)])
    with pytest.raises(ArgumentError, match="limits: none of the"):
        found.best("error", {"crossbars": 1})
    with pytest.raises(ArgumentError, match="costs: expected some of"):
        found.best("joules")


def test_a_found_design_converts_a_model():
    model = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    network, crossbar = trace_layers(model, (16, 8, 8)), CrossbarSize(64, 32)
    tables = design_tables(network, crossbar, network_options(network, crossbar), error=error_proxy(model))
    found = search_designs(tables, objectives=["error"], limits={"crossbars": 30}, seed=0, evaluations=1000).designs[0]
    changed = convert_(model, found.design)
    assert {layer.name for layer in changed} == {n for n, x in found.design.layers.items() if x.epitome}
    assert changed
    assert model(torch.zeros(1, 16, 8, 8)).shape == (1, 64, 8, 8)


def test_impossible_limits_and_bad_names(tables):
    def run(**changes):
        return search_designs(tables, **{"objectives": ["error"], "seed": 0, "evaluations": 200} | changes)

    with pytest.raises(ArgumentError, match=r"limits: crossbars: expected at least \d+, what the cheapest .* got 10"):
        run(limits={"crossbars": 10})
    for answer in (
        lambda: exact_best(tables, objective="error", limit=("crossbars", 10)),
        lambda: exact_front(tables, objectives=("crossbars", "error"), most=10),
        lambda: bounded_best(tables, objective="error", limits={"crossbars": 10}),
    ):
        with pytest.raises(ArgumentError, match="crossbars: expected at least"):
            answer()
    least = [float(tables.columns[n].min(axis=1).sum()) for n in ("crossbars", "error")]
    with pytest.raises(ArgumentError, match=r"none of 200 designs keeps .* the nearest one exceeds"):
        run(limits={"crossbars": least[0], "error": least[1]})
    with pytest.raises(ArgumentError, match="NaN"):
        run(limits={"crossbars": math.nan})
    for wrong in ({"objectives": ["joules"]}, {"limits": {"joules": 1}}):
        with pytest.raises(ArgumentError, match="joules"):
            run(**wrong)
    with pytest.raises(ArgumentError, match="objectives: expected at least one"):
        run(objectives=[])
    with pytest.raises(ArgumentError, match="functions: expected other names"):
        run(functions={"error": len})
    with pytest.raises(ShapeError, match=r"functions: f: expected shape \(100,\)"):
        run(objectives=["f"], functions={"f": lambda v: v})
    with pytest.raises(NonFiniteError, match="functions: f"):
        run(objectives=["f"], functions={"f": lambda v: np.full(len(v), np.nan)})
    with pytest.raises(ArgumentError, match="max_states"):
        exact_best(tables, objective="error", limit=("crossbars", 200), max_states=10)


def test_tables_are_plain_values(tables):
    again = DesignTables(tables.layers, tables.options, tables.columns, tables.activation_bits)
    assert again.design([0] * 5) == tables.design([0] * 5)
