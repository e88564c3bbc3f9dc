"""The tokenizer: shapes, what reaches what, refusals. Its numbers are those of tests/golden."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ConfigError, ShapeError  # noqa: E402
from sparing.runs.documents import validated  # noqa: E402
from sparing.var.config import TokenizerConfig  # noqa: E402


def images_of(model, *, batch=2, seed=0):
    side = model.config.image_size
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("changes", "side"),
    [({}, 16), ({"ch_mult": (1, 1, 2)}, 32), ({"ch_mult": (2,), "use_attention": False, "num_res_blocks": 2}, 8)],
)
@torch.inference_mode()
def test_shapes_and_range(tiny, changes, side):
    model = tiny.tokenizer(**changes)
    images = images_of(model)
    assert model.config.image_size == side == images.shape[3]
    latent, tokens = model.latent(images), model.encode(images)
    assert latent.shape == (2, 8, 8, 8)
    assert [t.shape for t in tokens] == [(2, p * p) for p in tiny.SIX]
    decoded = model.decode(10 * latent)
    assert decoded.shape == images.shape
    assert decoded.abs().max() == 1
    assert torch.equal(model.decode_tokens(tokens), model.decode(model.quantize.decode(tokens)))
    assert all(torch.equal(a, b) for a, b in zip(tokens, model.quantize.encode(latent), strict=True))


@torch.inference_mode()
def test_first_scales_alone_are_an_image(tiny):
    model = tiny.tokenizer()
    tokens = model.encode(images_of(model))
    previews = [model.decode_tokens(tokens[:n]) for n in range(1, 7)]
    assert all(preview.shape == (2, 3, 16, 16) for preview in previews)
    assert not torch.equal(previews[0], previews[-1])


def test_training_pass_has_gradients_everywhere(tiny):
    model = tiny.tokenizer(seed=2)
    images = images_of(model, batch=4)
    reconstruction, quantized = model(images)
    ((reconstruction - images).square().mean() + quantized.loss).backward()
    # Both sides of each attention's softmax get none from a constant over the keys.
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_half_precision_does_not_change_the_codes_of_a_latent(tiny):
    model = tiny.tokenizer()
    images = images_of(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        latent = model.latent(images).float()
        _, quantized = model(images)
    assert all(torch.equal(a, b) for a, b in zip(quantized.tokens, model.quantize.encode(latent), strict=True))
    assert quantized.f_hat.dtype == torch.float32


def test_images_of_another_size(tiny):
    with pytest.raises(ShapeError, match=r"images: expected \(B, 3, 16, 16\), got \(1, 3, 8, 8\)"):
        tiny.tokenizer().encode(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ([], ArgumentError, "at least one scale"),
        ([[[24]]], ArgumentError, r"expected 0..23, got values from 24 to 24"),
        ([[[-1]]], ArgumentError, "from -1"),
        ([[[0, 1]]], ShapeError, r"expected \(B, 1\) for scale 0"),
        ([[[0] * p * p] for p in (1, 2, 3, 4, 6, 8, 9)], ArgumentError, "at most 6 scales"),
    ],
)
def test_bad_tokens(tiny, tokens, error, words):
    with pytest.raises(error, match=words):
        tiny.tokenizer().decode_tokens([torch.tensor(t) for t in tokens])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ch": 10, "num_groups": 4}, "ch: expected a multiple of num_groups = 4, got 10"),
        ({"ch_mult": ()}, "ch_mult"),
        ({"patch_nums": (2, 2)}, "patch_nums"),
        ({"vocab_size": 65537}, "vocab_size"),
        ({"depth": 2}, "depth"),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(ConfigError, match=words):
        validated(TokenizerConfig, changes)


def test_released_settings():
    config = TokenizerConfig()
    assert (config.downsampling, config.image_size) == (16, 256)
    assert TokenizerConfig(patch_nums=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32)).image_size == 512
