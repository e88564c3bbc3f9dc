"""Divergences against the plain formulas, and the images that they are measured on."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ConfigError, DtypeError, ShapeError  # noqa: E402
from sparing.var.apply import apply_  # noqa: E402
from sparing.var.divergence import CalibrationConfig, calibration_images, checked_data, divergence  # noqa: E402
from sparing.var.formats import precision_plan  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, SharingPlan  # noqa: E402
from sparing.var.sensitivity import measure_sensitivity  # noqa: E402
from sparing.var.windows import DENSE  # noqa: E402

QUICK = CalibrationConfig(taus=(0.9, 0.5), num_images=3, batch_size=2)


@pytest.fixture(scope="module")
def pipe(tiny):
    return tiny.pipeline()


@pytest.fixture(scope="module")
def data(tiny):
    return tiny.known_tokens()


def plan_for(pipe, **parts):
    return CompressionPlan(model=pipe.transformer.config, weights=weights_fingerprint(pipe.transformer), **parts)


def output(*first_scale):
    return SharingPlan(variant="output", first_scale=first_scale)


def parts_of(tiny, pipe):
    widths = tiny.windows(pipe.transformer.config)
    return {
        "windows": ({"windows": widths}, {"windows": widths}),
        "output": ({"sharing": output(None, 2)}, {"first_scale": (None, 2), "variant": "output"}),
        "map": (
            {"sharing": SharingPlan(variant="map", first_scale=(0, 4))},
            {"first_scale": (0, 4), "variant": "map"},
        ),
    }


def plain_log_probabilities(plain, pipe, tokens, labels, guidance_scale, **parts):
    """(n, L, V), guided, by the formulas; and the maps are not cached, shared or skipped."""
    config, quantizer = pipe.transformer.config, plain.arrays(pipe.tokenizer.quantize)
    split = np.split(tokens.numpy(), config.scale_starts[1:-1], 1)
    inputs = plain.next_inputs(quantizer, config.patch_nums, split)
    rows = labels.tolist() + [config.num_classes] * len(labels)
    state = plain.arrays(pipe.transformer)
    both = plain.logits(state, config.patch_nums, config.num_heads, rows, np.concatenate([inputs, inputs]), **parts)
    return np.log(plain.softmax(plain.guided(both, config.patch_nums, guidance_scale)))


# --- divergence


@pytest.mark.parametrize("guidance_scale", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("part", ["windows", "output", "map"])
def test_divergence_by_the_formulas(plain, tiny, pipe, data, part, guidance_scale):
    ours, theirs = parts_of(tiny, pipe)[part]
    config = QUICK.model_copy(update={"guidance_scale": guidance_scale})
    true = plain_log_probabilities(plain, pipe, *data, guidance_scale)
    with_plan = plain_log_probabilities(plain, pipe, *data, guidance_scale, **theirs)
    expected = (np.exp(true) * (true - with_plan)).sum(-1)
    plan = plan_for(pipe, **ours)
    (total,) = divergence(pipe, [plan], *data, config=config)
    assert total == pytest.approx(expected.mean(), rel=1e-3, abs=1e-7)
    assert total > 1e-4 or (part != "windows" and guidance_scale == 0), "too small to show an error"
    (rows,) = divergence(pipe, [plan], *data, config=config, per_scale=True)
    starts = pipe.transformer.config.scale_starts
    by_scale = [expected[:, a:b].mean() for a, b in itertools.pairwise(starts)]
    np.testing.assert_allclose(rows, by_scale, rtol=2e-3, atol=1e-7)
    sizes = np.array(pipe.transformer.config.scale_sizes)
    assert total == pytest.approx((rows * sizes).sum() / sizes.sum(), rel=1e-9, abs=1e-12)


def test_nothing_left_out_is_no_divergence(tiny, pipe, data):
    dense = plan_for(pipe, windows=tiny.windows(pipe.transformer.config, choices=(DENSE,)))
    empty, all_dense = divergence(pipe, [plan_for(pipe), dense], *data, config=QUICK)
    assert empty == 0
    assert 0 <= all_dense < 1e-6


def test_without_guidance_sharing_costs_nothing(tiny, pipe, data):
    config = QUICK.model_copy(update={"guidance_scale": 0.0})
    assert divergence(pipe, [plan_for(pipe, sharing=output(0, 0))], *data, config=config)[0] < 1e-6


def test_each_plan_is_measured_on_its_own_whatever_the_batch(tiny, pipe, data):
    plans = [plan_for(pipe, **ours) for ours, _ in parts_of(tiny, pipe).values()]
    together = divergence(pipe, plans, *data, config=QUICK)
    for plan, expected in zip(plans, together, strict=True):
        for size in (1, 2, 3, 50):
            config = QUICK.model_copy(update={"batch_size": size})
            assert divergence(pipe, [plan], *data, config=config)[0] == pytest.approx(expected, rel=1e-4)


def test_rounding_diverges_more_with_fewer_bits(pipe, data):
    config = pipe.transformer.config
    plans = [
        plan_for(pipe, precision=precision_plan(config, weight_bits=bits, activation_bits=bits))
        for bits in (8, 6, 4, 3)
    ]
    errors = divergence(pipe, plans, *data, config=QUICK)
    assert errors == sorted(errors)
    assert 0 < errors[0] < 0.01 < errors[3]


def test_progress_of_divergence(pipe, data):
    calls = []
    divergence(pipe, [plan_for(pipe)] * 3, *data, config=QUICK, progress=lambda *call: calls.append(call))
    assert calls == [("calibrating", i, 6) for i in range(1, 7)]


# --- what fits


@pytest.mark.parametrize(
    ("tokens", "labels", "error", "words"),
    [
        (torch.zeros(3, 129).long(), torch.zeros(3).long(), ShapeError, r"tokens \(n, 130\) and n labels.*\(3, 129\)"),
        (torch.zeros(3, 130).long(), torch.zeros(2).long(), ShapeError, r"got \(3, 130\) and \(2,\)"),
        (torch.zeros(0, 130).long(), torch.zeros(0).long(), ShapeError, "n ≥ 1"),
        (torch.zeros(130).long(), torch.zeros(1).long(), ShapeError, r"\(130,\)"),
        (torch.zeros(2, 130), torch.zeros(2).long(), DtypeError, "tokens that are integers, got torch.float32"),
        (torch.zeros(2, 130).bool(), torch.zeros(2).long(), DtypeError, "torch.bool"),
        (torch.full((2, 130), 24), torch.zeros(2).long(), ArgumentError, "tokens in 0..23, got 24 to 24"),
        (torch.full((2, 130), -1), torch.zeros(2).long(), ArgumentError, "got -1 to -1"),
        (torch.zeros(2, 130).long(), torch.tensor([0, 6]), ArgumentError, "class_labels"),
        (torch.zeros(2, 130).long(), torch.zeros(2), DtypeError, "class_labels"),
        (torch.zeros(2, 130).long(), torch.zeros(2, 1).long(), ShapeError, "class_labels"),
    ],
)
def test_data_that_does_not_fit(pipe, tmp_path, tokens, labels, error, words):
    cache = tmp_path / "cache.json"
    for call in (
        lambda: checked_data(tokens, labels, pipe.transformer.config),
        lambda: measure_sensitivity(pipe, config=QUICK, data=(tokens, labels), cache=cache),
        lambda: divergence(pipe, [plan_for(pipe)], tokens, labels, config=QUICK),
    ):
        with pytest.raises(error, match=words):
            call()
    assert not cache.exists()


def test_plans_of_another_model(tiny, pipe, data):
    with pytest.raises(ConfigError, match="plans of this model"):
        divergence(pipe, [plan_for(tiny.pipeline(depth=1))], *data, config=QUICK)


def test_a_model_whose_weights_were_freed(tiny, data):
    pipe = tiny.pipeline()
    apply_(pipe, plan_for(pipe, precision=precision_plan(pipe.transformer.config, real=True)), keep_original=False)
    for call in (
        lambda: measure_sensitivity(pipe, config=QUICK, data=data),
        lambda: calibration_images(pipe, QUICK),
        lambda: divergence(pipe, [], *data, config=QUICK),
    ):
        with pytest.raises(ConfigError, match=r"weights were freed.*load the model again"):
            call()


@pytest.mark.parametrize(
    "fields",
    [
        {"taus": (0.0,)},
        {"taus": (1.1,)},
        {"floors": ()},
        {"floors": (1.0,)},
        {"threshold": -0.1},
        {"sharing": "both"},
        {"guidance_scale": -1.0},
        {"guidance_scale": float("nan")},
        {"num_images": 0},
        {"batch_size": 0},
        {"colour": 1},
    ],
    ids=str,
)
def test_settings_out_of_range(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        CalibrationConfig(**fields)


# --- the images


def test_calibration_images(pipe):
    tokens, labels = calibration_images(pipe, CalibrationConfig(num_images=7, batch_size=3, seed=2))
    assert tokens.shape == (7, 130)
    assert tokens.dtype == labels.dtype == torch.int64
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    checked_data(tokens, labels, pipe.transformer.config)
    again, _ = calibration_images(pipe, CalibrationConfig(num_images=7, batch_size=3, seed=2))
    other, _ = calibration_images(pipe, CalibrationConfig(num_images=7, batch_size=3, seed=3))
    assert torch.equal(tokens, again)
    assert not torch.equal(tokens, other)


def test_calibration_images_leave_a_plan_aside(tiny):
    pipe, config = tiny.pipeline(), CalibrationConfig(num_images=2)
    expected, _ = calibration_images(pipe, config)
    apply_(pipe, plan_for(pipe, sharing=output(0, 0)))
    assert torch.equal(calibration_images(pipe, config)[0], expected)
    assert pipe.plan.sharing is not None
