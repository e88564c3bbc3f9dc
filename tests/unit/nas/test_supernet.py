"""The supernet: paths compute what networks of their own would, and touch nothing but their own modules."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ConfigError  # noqa: E402
from sparing.faults import StuckAt, fault_sites, fixed_point_, inject  # noqa: E402
from sparing.nas.cells import cell_plans  # noqa: E402
from sparing.nas.evaluation import Evaluator, calibrate_architecture_, measure, supernet_of  # noqa: E402
from sparing.nas.genotype import Genotype  # noqa: E402
from sparing.nas.network import CellNetwork  # noqa: E402
from sparing.nas.search_config import preset_config  # noqa: E402
from sparing.nas.space import SearchSpace  # noqa: E402
from sparing.nas.supernet import Supernet  # noqa: E402
from sparing.nas.supernet_training import SupernetTraining  # noqa: E402
from sparing.vision import ImageDataset  # noqa: E402

SPACE = SearchSpace("feature")


def data(n=64):
    rng = np.random.default_rng(0)
    return ImageDataset(
        rng.integers(0, 256, (n, 3, 8, 8)).astype(np.uint8), rng.integers(0, 3, n), ("a", "b", "c"), "x"
    )


def tiny_config(**settings):
    return preset_config("demo", **{"channels": 2, "supernet": {"batch_size": 16}, **settings})


@pytest.fixture(scope="module")
def supernet():
    return Supernet("feature", num_classes=3, channels=2, num_cells=3, image_size=8, seed=1)


def images(n=16):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_path_computes_what_a_network_of_its_own_does(supernet):
    """Bit for bit, 8-bit weights and features included."""
    genotype, x = SPACE.random(4), images()
    path = supernet.path(genotype)
    calibrate_architecture_(path, x)
    twin = CellNetwork(genotype, 3, channels=2, num_cells=3, affine=False).eval()
    fixed_point_(twin, x)
    for mine, theirs in zip(path.cells, twin.cells, strict=True):
        theirs.preprocess.load_state_dict(mine.preprocess.state_dict())
        for one, other in zip(mine.edges, theirs.edges, strict=True):
            other.load_state_dict(one.state_dict())
    twin.stem.load_state_dict(path.stem.state_dict())
    twin.classifier.load_state_dict(path.classifier.state_dict())
    with torch.no_grad():
        assert torch.equal(path(x), twin(x))
        assert path(x).std() > 0


def test_paths_share_modules_under_one_name(supernet):
    none = tuple([(0, "none"), (0, "none")] for _ in range(3))
    one = Genotype.build("feature", [[(0, "sep3"), (0, "sep3")], *none], [[(0, "skip"), (1, "dil3")], *none])
    two = Genotype.build("feature", [[(0, "sep3"), (1, "dil5")], *none], [[(1, "dil3"), (1, "max3")], *none])
    a, b = ({site.name for site in fault_sites(supernet.path(genotype))} for genotype in (one, two))
    shared = {name for name in a & b if "edges" in name}
    assert {name.split(".")[3] for name in shared} == {"0_2_sep3", "1_2_dil3"}
    assert supernet.path(one).get_submodule("cells.0.edges.0_2_sep3") is supernet.cells[0].edges["0_2_sep3"]
    assert all(name in dict(supernet.named_modules()) for name in a | b)


def test_every_place_has_every_primitive(supernet):
    plans = cell_plans(channels=2, num_cells=3)
    for plan, cell in zip(plans, supernet.cells, strict=True):
        assert len(cell.edges) == (2 + 3 + 4 + 5) * 8
        assert cell.edges["1_4_sep3"][1].stride == ((2, 2) if plan.kind == "reduce" else (1, 1))
        assert cell.edges["2_4_sep3"][1].stride == (1, 1)
    assert not any(m.affine for m in supernet.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_step_changes_the_sampled_modules_only(share):
    config = tiny_config(supernet={"batch_size": 16, "loss_share": share})
    supernet = supernet_of(config, 3)
    training = SupernetTraining(supernet, data(), config)
    genotype = SPACE.random(2)
    sampled = {id(p) for p in supernet.path(genotype).parameters()}
    before = {name: p.detach().clone() for name, p in supernet.named_parameters()}
    training.train_step(genotype)
    assert training.step == 1
    changed = {name for name, p in supernet.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert changed <= {name for name, p in supernet.named_parameters() if id(p) in sampled}
    assert all(p.grad is None for p in supernet.parameters())


def test_the_rate_falls_along_a_cosine_and_gradients_are_clipped():
    config = tiny_config(supernet={"batch_size": 16, "clip": 1e-3, "momentum": 0.0, "weight_decay": 0.0, "epochs": 2})
    supernet = supernet_of(config, 3)
    training = SupernetTraining(supernet, data(), config)
    assert training.total == 2 * 4
    for step in range(3):
        before = [p.detach().clone() for p in supernet.parameters()]
        training.train_step(SPACE.random(step))
        moved = (
            sum(float((p.detach() - b).square().sum()) for p, b in zip(supernet.parameters(), before, strict=True))
            ** 0.5
        )
        rate = 0.05 * (1 + np.cos(np.pi * step / 8)) / 2
        assert moved == pytest.approx(1e-3 * rate, rel=1e-2)


def test_an_evaluation_depends_on_weights_and_architecture_alone():
    config = tiny_config()
    supernet, dataset = supernet_of(config, 3), data()
    evaluator = Evaluator(supernet, config, calibration=dataset, held_out=dataset)
    one, other = (tuple(SPACE.encode(SPACE.random(seed)).tolist()) for seed in (5, 6))
    first = evaluator(one)
    evaluator(other)
    supernet.path(SPACE.random(7)).train()(images())
    assert evaluator(one) == first
    assert len(first.faulty_accuracies) == config.evaluation.draws
    assert first.reward(0.5) == pytest.approx((first.clean_accuracy + first.faulty_accuracy) / 2)


def test_a_copy_in_another_process_gives_the_same():
    import pickle

    config = tiny_config()
    evaluator = Evaluator(supernet_of(config, 3), config, calibration=data(), held_out=data())
    vector = tuple(SPACE.encode(SPACE.random(5)).tolist())
    assert pickle.loads(pickle.dumps(evaluator))(vector) == evaluator(vector)


def test_weights_are_what_they_were_after_faults(supernet):
    path = supernet.path(SPACE.random(4))
    before = [p.detach().clone() for p in supernet.parameters()]
    calibrate_architecture_(path, images())
    batch = [(images(), torch.zeros(16, dtype=torch.int64))]
    measure(path, batch, StuckAt(form="bit"), seed=0, draws=(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(before, supernet.parameters(), strict=True))


def test_faults_of_a_layer_are_those_of_any_architecture_with_it(supernet):
    none = tuple([(0, "none"), (0, "none")] for _ in range(3))
    found = []
    for other in ("max3", "sep5"):
        genotype = Genotype.build("feature", [[(1, other), (0, "sep3")], *none], [[(0, "none")] * 2, *none])
        with inject(supernet.path(genotype), StuckAt(form="bit"), seed=3):
            found.append(supernet.cells[0].edges["0_2_sep3"][1].weight.detach().clone())
    assert torch.equal(*found)


def test_another_space_is_refused(supernet):
    with pytest.raises(ConfigError, match="feature"):
        supernet.path(SearchSpace("weight").random(0))
