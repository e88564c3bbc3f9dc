"""Counts what an image costs, with a plan and without: multiply-adds and bytes. Nothing here is measured.

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024. *Attention computation* is the multiply-adds of QKᵀ and AV over the
pairs that are kept, both guidance branches. Windows that remove a share r of the pairs, and sharing the output
everywhere, together remove 1 − (1 − r)/2.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sparing.errors import ArgumentError
from sparing.var.config import VARConfig
from sparing.var.plan import CompressionPlan, LayerWindows
from sparing.var.windows import kept_pairs

__all__ = [
    "AttentionCost",
    "ModelCost",
    "attention_cost",
    "layer_attention_macs",
    "layer_pairs",
    "model_cost",
    "shared_removal",
]

_FLOAT_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class AttentionCost:
    """Attention computation of one image.

    Attributes:
        dense_macs: multiply-adds without a plan.
        macs: multiply-adds with it.
        windows_removed: share that the windows alone remove.
        removed: share that windows and sharing remove together.
    """

    dense_macs: int
    macs: int
    windows_removed: float
    removed: float


@dataclass(frozen=True)
class ModelCost:
    """What one image costs in the transformer; counted.

    Attributes:
        linear_macs: multiply-adds of the linear layers, by kind: qkv, proj, fc1, fc2, ada_lin, head, word_embed.
        attention: of QKᵀ and AV.
        macs: all of them.
        weight_bytes: of all parameters and of the keys' bias, which is kept though it is zero; the linear layers in
            their formats.
        cache_bytes: keys and values of one image.
    """

    linear_macs: dict[str, int]
    attention: AttentionCost
    macs: int
    weight_bytes: int
    cache_bytes: int


def shared_removal(windows_removed: float) -> float:
    """Share of attention computation removed by windows that remove a share and sharing of the output everywhere."""
    return 1 - (1 - windows_removed) / 2


def layer_attention_macs(
    config: VARConfig,
    pairs: list[int],
    *,
    first_shared: int | None,
    variant: str = "output",
    guided: bool = True,
) -> int:
    """Multiply-adds of one layer's QKᵀ and AV for one image.

    Args:
        config: the model.
        pairs: for each scale the pairs of query and key kept, all heads together.
        first_shared: first scale whose attention is shared across guidance; None for none.
        variant: ``"output"`` or ``"map"``.
        guided: whether images are also computed without their class.
    """
    total = 0
    for scale, count in enumerate(pairs):
        both = 2 * config.head_dim * count
        shared = first_shared is not None and scale >= first_shared
        other = 0 if not guided or (shared and variant == "output") else (both // 2 if shared else both)
        total += both + other
    return total


def layer_pairs(config: VARConfig, plan: CompressionPlan | None, layer: int) -> list[int]:
    """Pairs that a layer keeps at each scale, all heads together."""
    windows = None if plan is None or plan.windows is None else plan.windows[layer]
    return list(_pairs(config.patch_nums, config.num_heads, windows))


# Remembered: the hundreds of plans of a front choose from the same few windows.
@lru_cache(maxsize=1024)
def _pairs(patch_nums: tuple[int, ...], num_heads: int, windows: LayerWindows | None) -> tuple[int, ...]:
    counts = []
    for scale, widths in enumerate(windows or (None,) * len(patch_nums)):
        rows = None if widths is None else np.array(widths, dtype=np.int64).reshape(-1, num_heads)
        counts.append(int(kept_pairs(patch_nums, scale, rows).sum()) * (num_heads if rows is None else 1))
    return tuple(counts)


def attention_cost(config: VARConfig, plan: CompressionPlan | None = None, *, guided: bool = True) -> AttentionCost:
    """Counts attention computation of one image.

    Args:
        config: the model.
        plan: what is left out; None for nothing.
        guided: whether images are also computed without their class.
    """
    dense = layer_attention_macs(config, layer_pairs(config, None, 0), first_shared=None, guided=guided) * config.depth
    windowed = total = 0
    sharing = None if plan is None else plan.sharing
    for layer in range(config.depth):
        pairs = layer_pairs(config, plan, layer)
        windowed += layer_attention_macs(config, pairs, first_shared=None, guided=guided)
        total += layer_attention_macs(
            config,
            pairs,
            first_shared=None if sharing is None else sharing.first_scale[layer],
            variant="output" if sharing is None else sharing.variant,
            guided=guided,
        )
    return AttentionCost(dense, total, 1 - windowed / dense, 1 - total / dense)


def model_cost(
    config: VARConfig, plan: CompressionPlan | None = None, *, guided: bool = True, dtype: str = "bfloat16"
) -> ModelCost:
    """Counts what one image costs in the transformer.

    The adaptive norms are counted once an image, as the engine computes them.

    Args:
        config: the model.
        plan: what is left out; None for nothing.
        guided: whether images are also computed without their class.
        dtype: of weights and cache that the plan does not round: float32, bfloat16 or float16.

    Raises:
        ArgumentError: another dtype.
    """
    if dtype not in _FLOAT_BITS:
        raise ArgumentError(f"dtype: expected one of {', '.join(_FLOAT_BITS)}, got {dtype!r}")
    branches = 2 if guided else 1
    width, tokens = config.embed_dim, config.num_tokens
    shapes = {
        "qkv": 3 * width * width,
        "proj": width * width,
        "fc1": width * config.mlp_dim,
        "fc2": width * config.mlp_dim,
    }
    linear_macs = {name: config.depth * branches * tokens * size for name, size in shapes.items()}
    for layer in range(config.depth):
        saved = _skipped_tokens(config, plan, layer) if guided else 0
        if plan is not None and plan.sharing is not None and plan.sharing.variant == "output":
            linear_macs["qkv"] -= saved * shapes["qkv"]
            linear_macs["proj"] -= saved * shapes["proj"]
    num_ada = 1 if config.shared_adaln else config.depth
    linear_macs["ada_lin"] = branches * (num_ada * 6 + 2) * width * width
    # The first scale has no guidance yet: its logits without the class are not computed.
    linear_macs["head"] = (branches * tokens - (branches - 1) * config.scale_sizes[0]) * width * config.vocab_size
    linear_macs["word_embed"] = (tokens - config.scale_sizes[0]) * config.z_channels * width
    attention = attention_cost(config, plan, guided=guided)
    return ModelCost(
        linear_macs,
        attention,
        sum(linear_macs.values()) + attention.macs,
        _weight_bytes(config, plan, dtype),
        _cache_bytes(config, plan, guided=guided, dtype=dtype),
    )


def _skipped_tokens(config: VARConfig, plan: CompressionPlan | None, layer: int) -> int:
    first = None if plan is None or plan.sharing is None else plan.sharing.first_scale[layer]
    return 0 if first is None else config.num_tokens - config.scale_starts[first]


def _weight_bytes(config: VARConfig, plan: CompressionPlan | None, dtype: str) -> int:
    width, bits = config.embed_dim, _FLOAT_BITS[dtype]
    formats = {} if plan is None or plan.precision is None else plan.precision.linears
    blocks = {
        "qkv": (width, 3 * width),
        "proj": (width, width),
        "fc1": (width, config.mlp_dim),
        "fc2": (config.mlp_dim, width),
    }
    if not config.shared_adaln:
        blocks["ada_lin"] = (width, 6 * width)
    layers = {f"blocks.{i}.{name}": shape for i in range(config.depth) for name, shape in blocks.items()}
    layers |= {"head": (width, config.vocab_size), "word_embed": (config.z_channels, width)}
    total = 0
    for name, (inputs, outputs) in layers.items():
        form = formats.get(name)
        rounded = None if form is None else form.weight_bits
        # A float32 step for each output of a rounded weight; layers with integer products keep their bias in float32.
        bias = 32 if form is not None and form.real else bits
        total += inputs * outputs * (rounded or bits) + outputs * (bias + (32 if rounded else 0))
    others = (config.num_classes + 1 + config.num_tokens + len(config.patch_nums) + config.scale_sizes[0]) * width
    others += 2 * width * (width + 1) + (config.depth * config.num_heads if config.l2_norm else 0)
    if config.shared_adaln:
        others += 6 * width * (width + 1 + config.depth)
    return (total + others * bits) // 8


def _cache_bytes(config: VARConfig, plan: CompressionPlan | None, *, guided: bool, dtype: str) -> int:
    quantized = plan is not None and plan.precision is not None and plan.precision.kv_bits is not None
    per_token = 2 * (
        config.embed_dim + 4 * config.num_heads if quantized else config.embed_dim * _FLOAT_BITS[dtype] // 8
    )
    total = 0
    for layer in range(config.depth):
        tokens = config.num_tokens * (2 if guided else 1)
        if guided and plan is not None and plan.sharing is not None and plan.sharing.variant == "output":
            tokens -= _skipped_tokens(config, plan, layer)
        total += tokens * per_token
    return total
