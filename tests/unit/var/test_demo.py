"""The demo's part on image generation, on a tiny model."""

import importlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[var]")

from sparing.var import CompressionPlan, SharingPlan, VARPipeline, apply_, attention_cost, remove_  # noqa: E402
from sparing.var.formats import precision_plan  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def demo(monkeypatch):
    """Imports modules of the demo as it does itself."""
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not beside the tests")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture
def pipe(tiny):
    """With windows, sharing and eight bits in force."""
    pipe = tiny.pipeline()
    config = pipe.transformer.config
    plan = CompressionPlan(
        model=config,
        weights=weights_fingerprint(pipe.transformer),
        windows=tiny.windows(config),
        sharing=SharingPlan(variant="output", first_scale=(None, 3)),
        precision=precision_plan(config, real=True, decoder_bits=8),
        notes={"divergence_measured": 0.0125},
    )
    apply_(pipe, plan)
    return pipe


def quiet(_stage, _done, _total):
    """Says nothing."""


def test_both_sides_are_what_the_pipeline_draws_with_and_without_its_plan(demo, pipe):
    measure = demo("var_demo.measure")
    plan, labels = pipe.plan, np.repeat(np.arange(5), measure.NUM_EACH)
    found = measure.compare(pipe, quiet)
    assert pipe.plan is plan
    with_plan = pipe(labels, seed=measure.SEED)
    np.testing.assert_array_equal(found.after, with_plan.images.numpy())
    remove_(pipe)
    without = pipe(labels, seed=measure.SEED)
    np.testing.assert_array_equal(found.before, without.images.numpy())
    same = torch.cat(with_plan.tokens, 1) == torch.cat(without.tokens, 1)
    assert found.same == pytest.approx(float(same.float().mean()))
    assert 0 < found.same < 1
    assert found.names == ["a", "b", "c", "d", "e"]
    assert len(found.before_s) == len(found.after_s) == measure.ROUNDS


def test_counted_numbers_are_those_of_the_library(demo, pipe):
    measure = demo("var_demo.measure")
    counted, cost = measure.counted(pipe), attention_cost(pipe.plan.model, pipe.plan)
    assert counted["attention, multiply-adds"] == (cost.dense_macs, cost.macs)
    before, after = counted["weights of the image decoder, bytes"]
    assert before == sum(p.nbytes for p in pipe.tokenizer.decoder.parameters())
    assert after < before


def test_what_is_kept_by_layer_and_scale_adds_up_to_all_that_is_kept(demo, pipe):
    plan = pipe.plan
    shares = np.array(demo("var_demo.measure").kept(plan))
    # Dense attention of a scale: all its tokens look at all tokens so far.
    sizes = np.square(plan.model.patch_nums)
    weights = sizes * np.cumsum(sizes)
    total = (shares * weights).sum() / (plan.model.depth * weights.sum())
    assert total == pytest.approx(1 - attention_cost(plan.model, plan).removed)
    assert (shares[0, :3] == 1).all()
    assert (shares[1, 3:] <= 0.5).all()


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ([2.0, 4.0], [1.0, 2.0], "2.00 times"),
        ([1.0, 1.0], [2.0, 3.0], "not faster"),
        ([1.0, 3.0], [2.0, 2.0], "no clear"),
    ],
)
def test_verdict_does_not_claim_a_speed_that_some_rounds_deny(demo, before, after, word):
    comparison = demo("var_demo.measure").Comparison
    images = np.zeros((0, 3, 4, 4), np.uint8)
    found = comparison([], images, images, 1.0, [], before, after)
    assert demo("var_demo.page").verdict(found).startswith(word)


@pytest.mark.parametrize("has_plan", [True, False])
def test_page_is_one_file_with_every_class_and_says_whether_a_plan_came_along(
    demo, pipe, has_plan, tmp_path, monkeypatch
):
    if not has_plan:
        remove_(pipe)
    pipe.save_pretrained(tmp_path / "model")
    assert (VARPipeline.from_pretrained(tmp_path / "model").plan is not None) == has_plan
    module = demo("demo")
    monkeypatch.setattr(module, "OUT", tmp_path / "out")
    with demo("terminal").console.capture() as said:
        module.main(["--only", "var", "--model", str(tmp_path / "model")])
    page = (tmp_path / "out" / "demo.html").read_text(encoding="utf-8")
    assert page.count("<img") == page.count("src='data:image/png;base64,") == 3 * 5
    assert "http:" not in page
    assert "https:" not in page
    assert all(f"<th>{name}</th>" in page for name in "abcde")
    assert ("nobody calibrated" in " ".join(said.get().split())) == (not has_plan)
    assert ("0.013" in page or "0.012" in page) == has_plan
    assert ("was not measured" in page) == (not has_plan)
