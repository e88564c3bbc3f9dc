"""Putting a plan in force and taking it back."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ConfigError  # noqa: E402
from sparing.var.apply import apply_, remove_  # noqa: E402
from sparing.var.formats import precision_plan  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, PrecisionPlan, SharingPlan  # noqa: E402


@pytest.fixture
def pipe(tiny):
    return tiny.pipeline()


def plan_for(pipe, **parts):
    return CompressionPlan(model=pipe.transformer.config, weights=weights_fingerprint(pipe.transformer), **parts)


def drawn(pipe):
    output = pipe([0, 3], seed=5, top_k=4)
    return output.images, torch.cat(output.tokens, 1)


def logits_of(pipe, tiny):
    return torch.cat(list(pipe.engine.teach(torch.tensor([1, 2]), tiny.inputs(pipe.transformer.config))), 1)


@pytest.mark.parametrize("part", ["windows", "output", "map", "kv"])
def test_a_plan_taken_back_leaves_no_trace(pipe, tiny, part):
    parts = {
        "windows": {"windows": tiny.windows(pipe.transformer.config)},
        "output": {"sharing": SharingPlan(variant="output", first_scale=(0, 2))},
        "map": {"sharing": SharingPlan(variant="map", first_scale=(0, 2))},
        "kv": {"precision": PrecisionPlan(kv_bits=8)},
    }[part]
    weights = {name: t.clone() for name, t in pipe.transformer.state_dict().items()}
    before, images = logits_of(pipe, tiny), drawn(pipe)
    apply_(pipe, plan_for(pipe, **parts))
    assert not torch.equal(logits_of(pipe, tiny), before)
    drawn(pipe)
    remove_(pipe)
    assert pipe.plan is None
    assert torch.equal(logits_of(pipe, tiny), before)
    assert all(torch.equal(a, b) for a, b in zip(drawn(pipe), images, strict=True))
    assert all(torch.equal(t, weights[name]) for name, t in pipe.transformer.state_dict().items())


def test_a_plan_that_leaves_out_nothing_changes_nothing(pipe, tiny):
    before = logits_of(pipe, tiny)
    apply_(pipe, plan_for(pipe))
    assert torch.equal(logits_of(pipe, tiny), before)


def test_a_second_plan_replaces_the_first(pipe, tiny):
    first = plan_for(pipe, windows=tiny.windows(pipe.transformer.config))
    second = plan_for(pipe, sharing=SharingPlan(variant="output", first_scale=(0, 0)))
    apply_(pipe, second)
    expected = logits_of(pipe, tiny)
    remove_(pipe)
    apply_(pipe, first)
    apply_(pipe, second)
    assert pipe.plan == second
    assert torch.equal(logits_of(pipe, tiny), expected)


def test_a_plan_for_another_model(pipe, tiny):
    other = tiny.pipeline(depth=3, num_heads=4)
    with pytest.raises(
        ConfigError, match="made for another model: depth is 2, the plan's 3; num_heads is 2, the plan's 4"
    ):
        apply_(pipe, plan_for(other))


def test_a_plan_for_other_weights_leaves_the_old_one_in_force(pipe, tiny):
    plan = plan_for(pipe, sharing=SharingPlan(variant="output", first_scale=(0, 0)))
    apply_(pipe, plan)
    expected = logits_of(pipe, tiny)
    with pytest.raises(ConfigError, match=r"made for other weights .*calibrate anew"):
        apply_(pipe, plan_for(tiny.pipeline(seed=1)))
    assert pipe.plan == plan
    assert torch.equal(logits_of(pipe, tiny), expected)


def test_a_plan_for_a_pipeline_without_its_original_weights(pipe, tiny):
    real = plan_for(pipe, precision=precision_plan(pipe.transformer.config, real=True))
    other = plan_for(pipe, sharing=SharingPlan(variant="output", first_scale=(0, 0)))
    apply_(pipe, real, keep_original=False)
    images = drawn(pipe)
    for plan in (real, other, plan_for(tiny.pipeline(seed=1))):
        with pytest.raises(ConfigError, match=r"pipe: its original weights were freed .*; load the model again"):
            apply_(pipe, plan)
    assert pipe.plan == real
    assert all(torch.equal(a, b) for a, b in zip(drawn(pipe), images, strict=True))


def test_fingerprints(tiny):
    model = tiny.transformer()
    first = weights_fingerprint(model)
    assert len(first) == 16
    assert set(first) <= set("0123456789abcdef")
    assert weights_fingerprint(tiny.transformer()) == first
    assert weights_fingerprint(tiny.transformer(seed=1)) != first
    assert weights_fingerprint(tiny.transformer(l2_norm=False)) != first
    with torch.no_grad():
        model.blocks[1].ffn.fc2.weight[3, 5] += 1
    assert weights_fingerprint(model) != first


def test_half_precision_has_the_same_fingerprint(tiny):
    model = tiny.transformer()
    first = weights_fingerprint(model)
    assert weights_fingerprint(model.to(torch.bfloat16)) == first
