"""Networks of cells: the published cost, sizes, and cells against sums written out by hand."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[nas]")

from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, ConfigError, ShapeError  # noqa: E402
from sparing.nas import CellNetwork, SearchSpace, load_genotype, network_cost  # noqa: E402
from sparing.nas.cells import cell_plans  # noqa: E402
from sparing.nas.genotype import WEIGHT_PRIMITIVES  # noqa: E402
from sparing.nas.pictures import draw_genotype, save_genotype_figure  # noqa: E402
from sparing.nas.primitives import make_primitive  # noqa: E402
from sparing.vision import resnet20  # noqa: E402

FIXTURE = load_genotype("w-ftt-net")


@pytest.mark.parametrize(("channels", "millions", "macs"), [(20, 2.713, 459.7), (40, 10.79, 1827.9)])
def test_the_published_network_costs_what_was_published(channels, millions, macs):
    cost = network_cost(FIXTURE, channels=channels)
    assert round(cost.num_parameters / 1e6, 3 if channels == 20 else 2) == millions
    assert round(cost.num_macs / 1e6, 1) == macs


def test_costs_of_layers_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, (1, 3), groups=4), nn.Flatten(), nn.Linear(64, 5)
    )
    cost = network_cost(model, image_size=8)
    assert cost.num_macs == (4 * 4) * 8 * (3 * 3 * 3) + (4 * 2) * 8 * (2 * 1 * 3) + 64 * 5
    assert cost.num_parameters == sum(p.numel() for p in model.parameters())


def test_resnet20_costs_what_is_known():
    assert network_cost(resnet20()).num_macs == 40_813_184


def test_costs_leave_a_model_alone():
    model = CellNetwork(FIXTURE, channels=4, num_cells=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert network_cost(model, image_size=16) == network_cost(FIXTURE, image_size=16, channels=4, num_cells=3)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", WEIGHT_PRIMITIVES)
@pytest.mark.parametrize("affine", [True, False])
def test_primitives_keep_channels_and_halve_sizes_upwards(name, stride, affine):
    module = make_primitive(name, 6, stride, affine=affine)
    for size in (8, 7):
        assert module(torch.randn(2, 6, size, size)).shape == (2, 6, -(-size // stride), -(-size // stride))
    assert all(m.affine == affine for m in module.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_average_does_not_count_borders():
    assert make_primitive("avg3", 2, 1)(torch.ones(1, 2, 4, 4)).eq(1).all()


@pytest.mark.parametrize(("cells", "reducing"), [(3, [1, 2]), (4, [1, 2]), (5, [1, 3]), (6, [2, 4]), (8, [2, 5])])
def test_where_cells_reduce(cells, reducing):
    plans = cell_plans(channels=4, num_cells=cells)
    assert [plan.index for plan in plans if plan.kind == "reduce"] == reducing
    assert [plan.index for plan in plans if plan.in_strides == (2, 1)] == [n + 1 for n in reducing if n + 1 < cells]
    assert plans[-1].channels == 16


def test_a_cell_is_the_sums_its_genotype_says():
    torch.manual_seed(0)
    network = CellNetwork(FIXTURE, channels=4, num_cells=3).eval()
    cell, x = network.cells[0], torch.randn(2, 12, 8, 8)
    e = cell.edges
    n0, n1 = cell.preprocess[0](x), cell.preprocess[1](-x)
    n2 = e[0](n0) + e[1](n0)
    n3 = e[2](n1) + e[3](n1)
    n4 = e[4](n1) + e[5](n0)
    n5 = e[6](n2) + e[7](n1)
    torch.testing.assert_close(cell(x, -x), torch.cat([n2, n3, n4, n5], 1))


@pytest.mark.parametrize("space", ["feature", "weight"])
@pytest.mark.parametrize("cells", [3, 5, 8])
def test_random_networks_train_on_any_size(space, cells):
    network = CellNetwork(SearchSpace(space).random(cells), 7, channels=2, num_cells=cells, dropout=0.1)
    network(torch.randn(2, 3, 13, 13)).sum().backward()
    assert network.penultimate(torch.zeros(2, 3, 16, 16)).shape == (2, network.num_features)


def test_seeds_decide_the_weights():
    a, b, c = (CellNetwork(FIXTURE, channels=2, num_cells=3, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["stem.0.weight"], c["stem.0.weight"])


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="num_cells"):
        CellNetwork(FIXTURE, num_cells=2)
    with pytest.raises(ArgumentError, match="all of them or none"):
        CellNetwork(FIXTURE, cells=[])
    with pytest.raises(ArgumentError, match="name: expected one of none"):
        make_primitive("sep7", 4, 1)
    with pytest.raises(ArgumentError, match="stride: expected 1 or 2"):
        make_primitive("sep3", 4, 3)
    with pytest.raises(ShapeError, match="does not take images"):
        network_cost(nn.Sequential(nn.Conv2d(4, 4, 1)))
    with pytest.raises(ArgumentError, match="found none"):
        network_cost(nn.ReLU())


def test_pictures_name_every_edge(tmp_path):
    pytest.importorskip("matplotlib", reason="needs sparing[plot]")
    figure = draw_genotype(FIXTURE)
    for axes, nodes in zip(figure.axes, (FIXTURE.normal, FIXTURE.reduce), strict=True):
        shown = [text.get_text() for text in axes.texts]
        assert all(shown.count(p) == sum(e.primitive == p for n in nodes for e in n) for p in WEIGHT_PRIMITIVES)
    save_genotype_figure(tmp_path / "g.svg", FIXTURE)
    first = (tmp_path / "g.svg").read_bytes()
    save_genotype_figure(tmp_path / "g.svg", FIXTURE)
    assert (tmp_path / "g.svg").read_bytes() == first
    with pytest.raises(ArgumentError, match=r"\.png or \.svg"):
        save_genotype_figure(tmp_path / "g.jpg", FIXTURE)
