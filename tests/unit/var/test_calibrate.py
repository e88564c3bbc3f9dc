"""Calibration keeps to its budget, gives the same plan again, and leaves the pipeline as it was."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ShapeError  # noqa: E402
from sparing.var.apply import apply_  # noqa: E402
from sparing.var.calibrate import (  # noqa: E402
    ComputeBudget,
    QualityBudget,
    calibrate,
    plan_front,
    uniform_plan,
)
from sparing.var.cost import attention_cost, model_cost  # noqa: E402
from sparing.var.divergence import CalibrationConfig, divergence  # noqa: E402
from sparing.var.formats import precision_plan  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, SharingPlan, load_plan  # noqa: E402
from sparing.var.sensitivity import measure_sensitivity  # noqa: E402

CONFIG = CalibrationConfig(taus=(0.9, 0.5), num_images=2, batch_size=2)
LIMITS = (0.0, 3e-4, 0.002, 0.01, 0.05, 100.0)


@pytest.fixture(scope="module")
def pipe(tiny):
    return tiny.pipeline()


@pytest.fixture(scope="module")
def data(pipe):
    return torch.randint(24, (2, 130), generator=torch.Generator().manual_seed(8)), torch.tensor([4, 0])


@pytest.fixture(scope="module")
def given(pipe, data, tmp_path_factory):
    """What all calls share; measured once."""
    cache = tmp_path_factory.mktemp("cache") / "cache.json"
    measure_sensitivity(pipe, config=CONFIG, data=data, cache=cache)
    return {"config": CONFIG, "data": data, "cache": cache}


@pytest.fixture(scope="module")
def found(pipe, given):
    return measure_sensitivity(pipe, **given)


def measured(pipe, plan, data):
    return divergence(pipe, [plan], *data, config=CONFIG)[0]


def removed(plan):
    return attention_cost(plan.model, plan).removed


# --- budgets


def test_quality_budgets(pipe, given, data):
    plans = [calibrate(pipe, budget=QualityBudget(limit), **given) for limit in LIMITS]
    for limit, plan in zip(LIMITS, plans, strict=True):
        assert measured(pipe, plan, data) <= limit
        assert plan.notes["divergence_measured"] == measured(pipe, plan, data)
        assert plan.notes["attention_removed"] == pytest.approx(removed(plan), abs=1e-6)
        assert plan.notes["budget"] == {"quality": limit}
        assert plan.notes["calibration_images"] == 2
        apply_(pipe, plan)
        pipe.use(None)
    shares = [removed(plan) for plan in plans]
    assert shares == sorted(shares), "a tighter budget removes no more"
    assert len(set(shares)) >= 4
    assert shares[0] == 0
    assert shares[-1] > 0.7


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.7])
def test_compute_budgets(pipe, given, data, share):
    plan = calibrate(pipe, budget=ComputeBudget(share), **given)
    assert removed(plan) >= share
    assert plan.notes["budget"] == {"compute": share}
    assert plan.notes["divergence_measured"] == measured(pipe, plan, data)


def test_the_least_that_meets_a_compute_budget(pipe, given, found):
    front = plan_front(found)
    for i in range(1, len(front)):
        plan = calibrate(pipe, budget=ComputeBudget((front[i - 1].removed + front[i].removed) / 2), **given)
        assert plan.model_copy(update={"notes": {}}) == front[i].plan


def test_all_that_was_tried_can_be_asked_for_and_no_more(pipe, given, found):
    most = plan_front(found)[-1].removed
    assert removed(calibrate(pipe, budget=ComputeBudget(most), **given)) == most
    with pytest.raises(ArgumentError, match=f"budget: at most {most:.1%} of attention .* 99.0% was asked for"):
        calibrate(pipe, budget=ComputeBudget(0.99), **given)


def test_a_quality_budget_that_rounding_alone_breaks(pipe, given, data):
    precision = precision_plan(pipe.transformer.config, weight_bits=3, activation_bits=3)
    alone = measured(pipe, CompressionPlan(model=pipe.transformer.config, weights="", precision=precision), data)
    with pytest.raises(ArgumentError, match=f"without windows and sharing the divergence is {alone:.4g}, more than 0"):
        calibrate(pipe, budget=QualityBudget(alone / 2), precision=precision, **given)
    plan = calibrate(pipe, budget=QualityBudget(alone + 0.01), precision=precision, **given)
    assert plan.precision == precision
    assert removed(plan) > 0
    assert measured(pipe, plan, data) <= alone + 0.01


@pytest.mark.parametrize(
    "budget",
    [
        QualityBudget(-0.1),
        QualityBudget(float("nan")),
        QualityBudget(float("inf")),
        ComputeBudget(1.1),
        ComputeBudget(-0.1),
        ComputeBudget(float("nan")),
    ],
    ids=str,
)
def test_budgets_out_of_range_are_refused_before_any_work(pipe, given, budget):
    with pytest.raises(ArgumentError, match=r"(max_divergence|min_removed): expected .*, got (-0.1|1.1|nan|inf)"):
        calibrate(pipe, budget=budget, progress=lambda *_: pytest.fail("work"), config=CONFIG)


def test_data_that_does_not_fit(pipe):
    with pytest.raises(ShapeError, match=r"data: expected tokens \(n, 130\)"):
        calibrate(pipe, budget=QualityBudget(), config=CONFIG, data=(torch.zeros(2, 9).long(), torch.zeros(2).long()))


def test_the_same_seed_gives_the_same_plan(pipe, tmp_path):
    config = CalibrationConfig(taus=(0.7,), num_images=2, batch_size=2, seed=4)
    plans = [calibrate(pipe, budget=QualityBudget(0.01), config=config) for _ in range(2)]
    assert plans[0].to_json() == plans[1].to_json()
    plans[0].save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plans[0]


# --- the front


@pytest.mark.parametrize("sharing", ["output", "map", None])
def test_no_plan_of_the_front_is_dominated(tiny, data, sharing):
    sensitivity = measure_sensitivity(
        tiny.pipeline(seed=3), config=CONFIG.model_copy(update={"sharing": sharing}), data=data
    )
    front = plan_front(sensitivity)
    assert len(front) >= 3
    for worse, better in itertools.pairwise(front):
        assert better.removed > worse.removed
        assert better.predicted > worse.predicted
        assert better.macs_removed >= worse.macs_removed
    for point in front:
        assert point.removed == removed(point.plan)
        assert (
            point.macs_removed == 1 - model_cost(point.plan.model, point.plan).macs / model_cost(point.plan.model).macs
        )
        assert point.divergence is None


def options(sensitivity):
    """All single options: (τ, first shared scale) to divergence and multiply-adds, for each layer, by whole plans."""
    depth, scales = sensitivity.model.depth, len(sensitivity.model.patch_nums)
    for layer in range(depth):
        rows = []
        for tau in (None, *sensitivity.config.taus):
            for first in (None, *range(scales)):
                plan = uniform_plan(sensitivity, tau=tau, first_shared=first)
                windows = plan.windows and tuple(
                    w if i == layer else (None,) * scales for i, w in enumerate(plan.windows)
                )
                sharing = plan.sharing and SharingPlan(
                    variant=plan.sharing.variant, first_scale=tuple(first if i == layer else None for i in range(depth))
                )
                changed = plan.model_copy(update={"windows": windows, "sharing": sharing})
                error = 0 if tau is None else sensitivity.window_divergence[layer][sensitivity.config.taus.index(tau)]
                error += 0 if first is None else sensitivity.share_divergence[layer][first]
                rows.append((error, attention_cost(changed.model, changed).macs))
        yield rows


def test_the_ends_and_all_between_by_trying_everything(found):
    front = plan_front(found)
    dense = attention_cost(found.model).macs
    first, second = options(found)
    pairs = [(a[0] + b[0], a[1] + b[1] - dense) for a in first for b in second]
    assert front[0].plan == CompressionPlan(model=found.model, weights=found.weights)
    assert (front[0].removed, front[0].predicted) == (0, 0)
    assert front[-1].removed == pytest.approx(1 - min(m for _, m in pairs) / dense, abs=1e-12)
    for point in front:
        macs = attention_cost(found.model, point.plan).macs
        assert any(e == pytest.approx(point.predicted, rel=1e-9, abs=1e-12) and m == macs for e, m in pairs)
        assert not any(e < point.predicted * (1 - 1e-9) and m <= macs for e, m in pairs)


def test_the_front_is_all_that_is_best_at_some_price(found):
    first, second = (np.array(layer) for layer in options(found))
    # Each was counted with the other layer dense, which is the first option's multiply-adds too many.
    pairs = (first[:, None] + second[None] - [0, first[0, 1]]).reshape(-1, 2)
    front = plan_front(found)
    points = np.array([(p.predicted, attention_cost(found.model, p.plan).macs) for p in front])
    turns = np.diff(points[:, 0]) / -np.diff(points[:, 1])
    assert (np.diff(turns) > 0).all()
    for i, price in enumerate(np.sqrt([turns[0] / 2, *turns] * np.array([*turns, 2 * turns[-1]]))):
        sums = pairs @ [1, price]
        assert sums.min() == pytest.approx(points[i] @ [1, price], rel=1e-12)
        assert (sums < sums.min() * (1 + 1e-12)).sum() == 1
    assert len(front) > 8


def test_the_end_takes_even_the_least_saving(found):
    # One pair of the first scale: next to nothing, for a divergence a million times that of the rest.
    rows = tuple((1e6, *row[1:]) for row in found.share_divergence)
    front = plan_front(found.model_copy(update={"share_divergence": rows}))
    assert front[-1].plan.sharing.first_scale == (0, 0)
    assert front[-2].removed < front[-1].removed
    assert sorted(front[-2].plan.sharing.first_scale) == [0, 1]
    assert front[-3].plan.sharing.first_scale == (1, 1)


def test_a_front_of_nothing(found):
    config = CONFIG.model_copy(update={"taus": (), "sharing": None})
    nothing = found.model_copy(
        update={"config": config, "windows": ((), ()), "window_divergence": ((), ()), "share_divergence": ((), ())}
    )
    (point,) = plan_front(nothing)
    assert (point.removed, point.predicted, point.macs_removed) == (0, 0, 0)


def test_what_costs_nothing_is_left_out(found):
    free = found.model_copy(update={"share_divergence": ((0.0,) * 6,) * 2, "window_divergence": ((0.0,) * 2,) * 2})
    front = plan_front(free)
    assert front[-1].predicted == 0
    assert front[-1].plan.sharing.first_scale == (0, 0)


def test_precision_is_the_same_in_all_plans(found):
    precision = precision_plan(found.model)
    front = plan_front(found, precision=precision)
    assert {point.plan.precision.model_dump_json() for point in front} == {precision.model_dump_json()}
    assert [p.removed for p in front] == [p.removed for p in plan_front(found)]


# --- one setting for all layers


def test_uniform_plans(found):
    plan = uniform_plan(found, tau=0.5, first_shared=2)
    assert plan.windows == tuple(layer[1] for layer in found.windows)
    assert plan.sharing == SharingPlan(variant="output", first_scale=(2, 2))
    assert uniform_plan(found, tau=None, first_shared=0).windows is None
    assert uniform_plan(found, tau=0.9, first_shared=None).sharing is None
    precision = precision_plan(found.model)
    assert uniform_plan(found, tau=None, first_shared=None, precision=precision).precision == precision
    shared = attention_cost(found.model, uniform_plan(found, tau=0.5, first_shared=0))
    assert shared.removed == pytest.approx(1 - (1 - shared.windows_removed) / 2)


def test_uniform_plans_out_of_range(found):
    with pytest.raises(ArgumentError, match=r"tau: expected one of \(0.9, 0.5\), got 0.8"):
        uniform_plan(found, tau=0.8, first_shared=None)
    for scale in (-1, 6):
        with pytest.raises(ArgumentError, match=f"first_shared: expected 0 to 5, or None, got {scale}"):
            uniform_plan(found, tau=None, first_shared=scale)


# --- the pipeline is left alone


class _StopError(Exception):
    pass


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("with_plan", [False, True])
def test_the_pipeline_is_left_as_it_was(tiny, data, tmp_path, with_plan, is_stopped):
    pipe = tiny.pipeline()
    config = pipe.transformer.config
    if with_plan:
        weights = weights_fingerprint(pipe.transformer)
        apply_(pipe, CompressionPlan(model=config, weights=weights, windows=tiny.windows(config)))
    plan, engine = pipe.plan, pipe.engine
    images = pipe([0, 3], seed=5).images
    state = {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
    torch.manual_seed(77)
    random = torch.get_rng_state()
    cache = tmp_path / "cache.json"

    def stop(stage, done, total):
        if is_stopped and done == 3:
            raise _StopError

    arguments = {"config": CONFIG, "data": data, "cache": cache, "progress": stop, "budget": QualityBudget(0.01)}
    if is_stopped:
        with pytest.raises(_StopError):
            calibrate(pipe, **arguments)
        assert not list(tmp_path.iterdir()), "no half of a cache"
    else:
        calibrate(pipe, **arguments)
    assert torch.equal(torch.get_rng_state(), random)
    assert pipe.plan is plan
    assert pipe.engine is engine
    assert all(layer.observer is None for layer in engine.layers)
    assert torch.equal(pipe([0, 3], seed=5).images, images)
    assert all(torch.equal(t, state[name]) for name, t in pipe.transformer.state_dict().items())


def test_a_plan_in_force_does_not_change_the_outcome(tiny, data):
    free, bound = tiny.pipeline(), tiny.pipeline()
    model, weights = bound.transformer.config, weights_fingerprint(bound.transformer)
    sharing = SharingPlan(variant="output", first_scale=(0, 0))
    apply_(bound, CompressionPlan(model=model, weights=weights, sharing=sharing))
    plans = [calibrate(p, budget=QualityBudget(0.01), config=CONFIG, data=data) for p in (free, bound)]
    assert plans[0] == plans[1]
