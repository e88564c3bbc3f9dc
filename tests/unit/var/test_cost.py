"""The cost counter against a count of single pairs, the published numbers, and what the engine really keeps."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError  # noqa: E402
from sparing.var.config import RELEASED, VARConfig  # noqa: E402
from sparing.var.cost import (  # noqa: E402
    attention_cost,
    layer_attention_macs,
    layer_pairs,
    model_cost,
    shared_removal,
)
from sparing.var.engine import Engine  # noqa: E402
from sparing.var.formats import precision_plan  # noqa: E402
from sparing.var.plan import CompressionPlan, LinearFormat, SharingPlan  # noqa: E402

IN_BLOCKS = ("qkv", "proj", "fc1", "fc2")


def plan_for(config, **parts):
    return CompressionPlan(model=config, weights="0" * 16, **parts)


def shared(config, *first_scale, variant="output"):
    first = first_scale or (0,) * config.depth
    return SharingPlan(variant=variant, first_scale=first)


def counted(plain, config, *, windows=None, first_scale=None, variant=None, guided=True):
    """Multiply-adds by looking at every pair: head_dim for its score and head_dim for its value, in each branch."""
    scale_of = plain.levels(config.patch_nums)
    total = 0
    for layer in range(config.depth):
        mask = plain.visible(config.patch_nums, config.num_heads, None if windows is None else windows[layer])
        for row, scale in zip(mask.transpose(1, 0, 2), scale_of, strict=True):
            for _ in range(int(row.sum())):
                total += 2 * config.head_dim
                if not guided:
                    continue
                if first_scale is None or first_scale[layer] is None or scale < first_scale[layer]:
                    total += 2 * config.head_dim
                elif variant == "map":
                    total += config.head_dim
    return total


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("windows", [None, 0, 3])
def test_attention_is_counted_pair_by_pair(plain, tiny, windows, guided):
    config = tiny.transformer_config()
    widths = None if windows is None else tiny.windows(config, seed=windows)
    cost = attention_cost(config, plan_for(config, windows=widths), guided=guided)
    assert cost.dense_macs == counted(plain, config, guided=guided)
    assert cost.macs == counted(plain, config, windows=widths, guided=guided)
    assert cost.removed == cost.windows_removed == 1 - cost.macs / cost.dense_macs


@pytest.mark.parametrize("variant", ["output", "map"])
@pytest.mark.parametrize("first", [None, 0, 1, 2, 3, 4, 5])
def test_sharing_is_counted_pair_by_pair(plain, tiny, first, variant):
    config, first_scale = tiny.transformer_config(), (first, 3)
    widths = tiny.windows(config, seed=1)
    plan = plan_for(config, windows=widths, sharing=shared(config, *first_scale, variant=variant))
    cost = attention_cost(config, plan)
    assert cost.macs == counted(plain, config, windows=widths, first_scale=first_scale, variant=variant)
    assert attention_cost(config, plan, guided=False).macs == counted(plain, config, windows=widths, guided=False)


def test_a_single_head_and_a_single_scale(plain, tiny):
    config = tiny.transformer_config(num_heads=1)
    widths = tiny.windows(config, seed=2)
    assert attention_cost(config, plan_for(config, windows=widths)).macs == counted(plain, config, windows=widths)
    config = tiny.transformer_config(patch_nums=(3,))
    assert attention_cost(config).macs == 2 * 2 * config.depth * 81 * config.embed_dim


@given(seed=st.integers(0, 10_000), num_heads=st.sampled_from([1, 2, 4]))
@settings(max_examples=25, deadline=None)
def test_windows_with_the_output_shared_everywhere(tiny, seed, num_heads):
    config = tiny.transformer_config(num_heads=num_heads)
    plan = plan_for(config, windows=tiny.windows(config, seed=seed), sharing=shared(config))
    cost = attention_cost(config, plan)
    assert cost.removed == pytest.approx(1 - (1 - cost.windows_removed) / 2, abs=1e-12)
    assert cost.removed == pytest.approx(shared_removal(cost.windows_removed), abs=1e-12)


def test_the_published_share():
    assert shared_removal(0.7034) == pytest.approx(0.8517, abs=1e-12)
    assert shared_removal(0) == 0.5
    assert shared_removal(1) == 1


def test_sharing_the_map_keeps_the_values(tiny):
    config = tiny.transformer_config()
    dense = attention_cost(config).dense_macs
    by_map = attention_cost(config, plan_for(config, sharing=shared(config, variant="map")))
    assert by_map.macs == dense // 2 + dense // 4  # the branch with the class, and A·V of the other
    assert by_map.removed == 0.25
    assert by_map.windows_removed == 0
    linears = model_cost(config, plan_for(config, sharing=shared(config, variant="map"))).linear_macs
    assert linears == model_cost(config).linear_macs


def test_sharing_the_output_skips_qkv_and_proj_of_one_half(tiny):
    config = tiny.transformer_config()
    whole = model_cost(config).linear_macs
    half = model_cost(config, plan_for(config, sharing=shared(config))).linear_macs
    late = model_cost(config, plan_for(config, sharing=shared(config, None, 5))).linear_macs
    for kind, macs in whole.items():
        skipped = kind in ("qkv", "proj")
        assert half[kind] == (macs // 2 if skipped else macs)
        # One of two layers, one of two branches, 64 of 130 tokens.
        assert late[kind] == (macs - macs * 64 // 130 // 4 if skipped else macs)


def test_one_layer(tiny):
    config = tiny.transformer_config()
    assert layer_pairs(config, None, 0) == [2, 40, 2 * 9 * 14, 2 * 16 * 30, 2 * 36 * 66, 2 * 64 * 130]
    assert layer_attention_macs(config, [3, 5], first_shared=None) == 4 * 16 * 8
    assert layer_attention_macs(config, [3, 5], first_shared=1) == 2 * 16 * (3 + 3 + 5)
    assert layer_attention_macs(config, [3, 5], first_shared=1, variant="map") == 16 * (12 + 10 + 5)
    assert layer_attention_macs(config, [3, 5], first_shared=1, guided=False) == 2 * 16 * 8


@pytest.mark.parametrize(("name", "gflop", "share"), [("d16", 548, 6.3), ("d30", 3610, 3.5)])
def test_released_models(name, gflop, share):
    cost = model_cost(RELEASED[name])
    assert round(2e-9 * sum(cost.linear_macs[kind] for kind in IN_BLOCKS)) == gflop
    assert round(100 * cost.attention.macs / cost.macs, 1) == share
    assert cost.macs == sum(cost.linear_macs.values()) + cost.attention.macs


def test_the_published_windows_budget_on_the_released_schedule():
    # All segments dropped: only the sink and the first three scales stay.
    config = RELEASED["d16"]
    sizes, sink = config.scale_sizes, [1, 5, 14, 5, 5, 14, 14, 14, 14, 14]
    windows = tuple(
        tuple(None if s < 3 else ((0,) * 16,) * (s - 1 if s < 5 else s - 2) for s in range(10)) for _ in range(16)
    )
    kept = sum(n * seen for n, seen in zip(sizes, sink, strict=True))
    dense = sum(n * seen for n, seen in zip(sizes, np.cumsum(sizes), strict=True))
    cost = attention_cost(config, plan_for(config, windows=windows))
    assert cost.removed == pytest.approx(1 - kept / dense, abs=1e-12)
    assert cost.removed == pytest.approx(0.968, abs=5e-4)


def test_guidance_doubles_all_but_the_embedding_of_codes(tiny):
    config = tiny.transformer_config()
    both, one = model_cost(config), model_cost(config, guided=False)
    for kind, macs in both.linear_macs.items():
        # The first scale has no guidance, so that no logits are computed for it.
        unguided = 32 * 24 if kind == "head" else 0
        assert macs == (1 if kind == "word_embed" else 2) * one.linear_macs[kind] - unguided
    assert one.linear_macs["word_embed"] == 129 * 8 * 32
    assert one.linear_macs["head"] == 130 * 32 * 24
    assert one.linear_macs["ada_lin"] == (2 * 6 + 2) * 32 * 32
    assert one.linear_macs["fc1"] == 2 * 130 * 32 * 128
    assert both.cache_bytes == 2 * one.cache_bytes
    assert both.weight_bytes == one.weight_bytes


# --- bytes


@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True}, {"l2_norm": False}, {"patch_nums": (2, 3)}], ids=str)
def test_weight_bytes_are_those_of_all_parameters(tiny, changes):
    model = tiny.transformer(**changes)
    config = model.config
    zeros = config.depth * config.embed_dim  # the bias of the keys, which is kept though it is zero
    values = model.num_parameters + zeros
    assert model_cost(config, dtype="float32").weight_bytes == 4 * values
    assert model_cost(config, dtype="bfloat16").weight_bytes == 2 * values


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True}], ids=str)
@pytest.mark.parametrize(
    "fc2", [None, LinearFormat(weight_bits=8, activation_bits=8, real=True)], ids=["no fc2", "fc2"]
)
def test_weight_bytes_of_integer_layers(tiny, changes, fc2, dtype):
    model = tiny.transformer(**changes).to(getattr(torch, dtype))
    plan = plan_for(model.config, precision=precision_plan(model.config, fc2=fc2, real=True))
    engine = Engine(model, plan=plan)
    # What the engine does not hold itself: embeddings, places, and adaptive norms that stay in the model.
    linears = [module for block in model.layers() for module in (block.attn.mat_qkv, block.attn.proj)]
    linears += [module for block in model.layers() for module in (block.ffn.fc1, block.ffn.fc2)]
    linears += [] if model.config.shared_adaln else [block.ada_lin[1] for block in model.layers()]
    linears += [model.head, model.word_embed]
    theirs = {id(p) for module in linears for p in module.parameters()}
    theirs |= {id(p) for block in model.layers() for p in (block.attn.q_bias, block.attn.v_bias)}
    rest = sum(p.nbytes for p in model.parameters() if id(p) not in theirs)
    factors = sum(layer.factors.nbytes for layer in engine.layers)
    assert model_cost(model.config, plan, dtype=dtype).weight_bytes == engine.weight_bytes - factors + rest


def test_simulated_formats_are_counted_as_if_they_were_stored(tiny):
    config = tiny.transformer_config()
    plan = plan_for(config, precision=precision_plan(config, weight_bits=4, activation_bits=6, kinds=("fc1",)))
    saved = model_cost(config).weight_bytes - model_cost(config, plan).weight_bytes
    assert saved == 2 * (32 * 128 * 12 - 128 * 32) // 8
    inputs_only = {"blocks.0.fc1": LinearFormat(activation_bits=4)}
    plan = plan_for(config, precision={"linears": inputs_only})
    assert model_cost(config, plan).weight_bytes == model_cost(config).weight_bytes


@pytest.mark.parametrize("changes", [{}, {"patch_nums": (2, 3)}], ids=str)
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("variant", [None, "output", "map"])
@pytest.mark.parametrize("kv_bits", [None, 8])
def test_cache_bytes(tiny, changes, guided, variant, kv_bits):
    model = tiny.transformer(**changes)
    config = model.config
    sharing = None if variant is None else shared(config, 1, None, variant=variant)
    plan = plan_for(config, sharing=sharing, precision={"kv_bits": kv_bits})
    for dtype in ("float32", "bfloat16"):
        engine = Engine(model, plan=plan, dtype=getattr(torch, dtype))
        state = engine.begin(torch.tensor([0, 1, 2]), guided=guided)
        assert state.cache_bytes == 3 * model_cost(config, plan, guided=guided, dtype=dtype).cache_bytes


def test_the_decoder_is_no_part_of_the_transformer(tiny):
    config = tiny.transformer_config()
    assert model_cost(config, plan_for(config, precision={"decoder_bits": 8})) == model_cost(config)


def test_no_cache_without_class_where_all_is_shared(tiny):
    config = tiny.transformer_config()
    assert (
        2 * model_cost(config, plan_for(config, sharing=shared(config))).cache_bytes == model_cost(config).cache_bytes
    )


def test_a_dtype_that_is_none():
    with pytest.raises(ArgumentError, match="dtype: expected one of float32, bfloat16, float16, got 'float64'"):
        model_cost(VARConfig(depth=1, embed_dim=8, num_heads=1), dtype="float64")
