"""The model that comes with the package: it loads with its plan, draws, and stays small."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.var import VARPipeline, apply_, attention_cost, remove_  # noqa: E402
from sparing.var.shipped import SHIPPED, shipped_folder  # noqa: E402


def test_names():
    assert SHIPPED == ("cifar10",)
    assert shipped_folder("other") is None
    assert shipped_folder("cifar10").is_dir()


def test_a_few_megabytes():
    assert sum(file.stat().st_size for file in shipped_folder("cifar10").iterdir()) < 10e6


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch, tiny):
    tiny.pipeline().save_pretrained(tmp_path / "cifar10")
    monkeypatch.chdir(tmp_path)
    assert VARPipeline.from_pretrained("cifar10").class_names == tiny.pipeline().class_names


def test_it_draws_with_its_plan_nearly_what_it_draws_without():
    pipe = VARPipeline.from_pretrained("cifar10")
    plan = pipe.plan
    assert pipe.class_names[8] == "ship"
    assert attention_cost(pipe.transformer.config, plan).removed > 0.5
    labels = torch.arange(10)
    less = pipe(labels, guidance_scale=3.0, seed=1)
    remove_(pipe)
    whole = pipe(labels, guidance_scale=3.0, seed=1)
    assert whole.images.shape == (10, 3, 32, 32)
    same = (torch.cat(less.tokens, 1) == torch.cat(whole.tokens, 1)).float().mean()
    assert 0.3 < same < 1
    # Random pictures of one class differ by about 60 levels on average.
    assert (less.images.float() - whole.images.float()).abs().mean() < 35
    # Skies and water: blue outweighs red in ships and airplanes, and not in cats and horses.
    blueness = (whole.images[:, 2].float() - whole.images[:, 0].float()).mean((1, 2))
    assert blueness[[0, 8]].mean() > blueness[[3, 7]].mean()
    apply_(pipe, plan)
    assert torch.equal(pipe(labels, guidance_scale=3.0, seed=1).images, less.images)
