"""The transformer that computes all scales at once, against the formulas in plain.py."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ConfigError, DtypeError, ShapeError  # noqa: E402
from sparing.runs.documents import validated  # noqa: E402
from sparing.var.config import RELEASED, VARConfig, released_config  # noqa: E402
from sparing.var.transformer import VARTransformer  # noqa: E402

VARIANTS = [
    {},
    {"l2_norm": False},
    {"shared_adaln": True},
    {"patch_nums": (1, 3, 5), "num_heads": 4},
    {"patch_nums": (2, 3), "mlp_ratio": 2.5, "depth": 3},
    {"patch_nums": (1,)},
]
TOLERANCE = 2e-5
LABELS = [3, 5]


def logits_of(plain, model, labels, inputs):
    config = model.config
    return plain.logits(plain.arrays(model), config.patch_nums, config.num_heads, labels, inputs.double().numpy())


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_logits_are_those_of_the_formulas(plain, tiny, changes):
    model = tiny.transformer(**changes)
    inputs = tiny.inputs(model.config)
    with torch.inference_mode():
        found = model(torch.tensor(LABELS), inputs)
    expected = logits_of(plain, model, LABELS, inputs)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape == (2, model.config.num_tokens, 24)
    assert np.abs(expected).max() > 1, "weights too weak to show an error"
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=TOLERANCE)


def test_the_factor_of_q_stops_at_one_hundred(plain, tiny):
    model = tiny.transformer()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.scale_mul_1H11.fill_(9.0)
    inputs = tiny.inputs(model.config)
    with torch.inference_mode():
        found = model(torch.tensor(LABELS), inputs)
    np.testing.assert_allclose(found.numpy(), logits_of(plain, model, LABELS, inputs), rtol=0, atol=50 * TOLERANCE)


@torch.inference_mode()
def test_no_token_sees_a_later_scale(tiny):
    model = tiny.transformer()
    inputs = tiny.inputs(model.config)
    starts = model.config.scale_starts
    before = model(torch.tensor(LABELS), inputs)
    inputs[:, starts[3] - 1 :] += 1
    after = model(torch.tensor(LABELS), inputs)
    assert torch.equal(before[:, : starts[3]], after[:, : starts[3]])
    assert (before[:, starts[3] :] - after[:, starts[3] :]).abs().amax(-1).min() > 0


@torch.inference_mode()
def test_the_class_matters_everywhere(tiny):
    model = tiny.transformer()
    inputs = tiny.inputs(model.config, batch=1)
    found = [model(torch.tensor([label]), inputs) for label in range(6)]
    for a in range(6):
        for b in range(a):
            assert (found[a] - found[b]).abs().amax(-1).min() > 0


@torch.inference_mode()
@pytest.mark.parametrize("shared_adaln", [False, True])
def test_logits_are_float32_in_half_precision(tiny, shared_adaln):
    model = tiny.transformer(shared_adaln=shared_adaln)
    inputs, labels = tiny.inputs(model.config), torch.tensor(LABELS)
    exact = model(labels, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(labels, inputs)
    half = model.to(torch.bfloat16)(labels, inputs.bfloat16())
    for found in (mixed, half):
        assert found.dtype == torch.float32
        assert 0 < (found - exact).abs().mean() < 0.1


def test_initial_weights_follow_the_recipe():
    model = VARTransformer(VARConfig(depth=2, embed_dim=256, num_heads=4, num_classes=10), seed=3)
    std = math.sqrt(1 / 256 / 3)
    block = model.blocks[0]
    spread = [
        (1.0, [model.word_embed.weight, model.class_emb.weight, model.pos_1LC, block.ffn.fc1.weight]),
        (0.02, [model.head.weight]),
        (0.5e-3, [block.ada_lin[1].weight[:512]]),
        (0.5, [block.ada_lin[1].weight[512:], model.head_nm.ada_lin[1].weight, block.attn.proj.weight]),
        (0.5, [block.ffn.fc2.weight]),
    ]
    for gain, tensors in spread:
        for tensor in tensors:
            assert tensor.std().item() == pytest.approx(gain * std, rel=0.05)
    assert torch.equal(block.attn.scale_mul_1H11, torch.full((1, 4, 1, 1), math.log(4)))
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_one_seed_gives_one_model():
    config = VARConfig(
        depth=1, embed_dim=16, num_heads=2, num_classes=3, vocab_size=8, patch_nums=(1, 2), shared_adaln=True
    )
    torch.manual_seed(7)
    first = VARTransformer(config, seed=1).state_dict()
    torch.manual_seed(8)
    again, other = VARTransformer(config, seed=1).state_dict(), VARTransformer(config, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["word_embed.weight"], other["word_embed.weight"])
    assert not torch.equal(first["blocks.0.ada_gss"], other["blocks.0.ada_gss"])


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (torch.tensor([6]), ArgumentError, "expected 0..4"),
        (torch.tensor([-1]), ArgumentError, "-1"),
        (torch.tensor([1.0]), DtypeError, "integers"),
        (torch.tensor([True]), DtypeError, "integers"),
        (torch.tensor([[1]]), ShapeError, r"\(B,\)"),
        (torch.tensor(1), ShapeError, r"\(B,\)"),
        (torch.zeros(0, dtype=torch.int64), ShapeError, "B ≥ 1"),
    ],
)
def test_bad_labels(tiny, labels, error, words):
    model = tiny.transformer()
    with pytest.raises(error, match=words):
        model(labels, tiny.inputs(model.config, batch=1))


def test_inputs_of_another_length(tiny):
    model = tiny.transformer()
    with pytest.raises(ShapeError, match=r"expected \(2, 129, 8\), got \(2, 128, 8\)"):
        model(torch.tensor(LABELS), tiny.inputs(model.config)[:, 1:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_nums": (1, 3, 2)}, "patch_nums: expected sides that grow"),
        ({"patch_nums": (1, 1)}, "patch_nums: expected sides that grow"),
        ({"patch_nums": ()}, "patch_nums"),
        ({"embed_dim": 30, "num_heads": 4}, "multiple of num_heads = 4"),
        ({"depth": 0}, "depth"),
        ({"width": 3}, "width"),
        ({"class_dropout": float("nan")}, "class_dropout"),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(ConfigError, match=words):
        validated(VARConfig, {"depth": 1, "embed_dim": 8, "num_heads": 2, **changes})


def test_released_settings():
    assert [config.num_tokens for config in RELEASED.values()] == [680] * 4 + [2240]
    assert released_config("d30").embed_dim == 1920
    assert released_config("d36-s").shared_adaln
    with pytest.raises(ConfigError, match="expected one of d16, d20, d24, d30, d36-s, got 'd17'"):
        released_config("d17")
