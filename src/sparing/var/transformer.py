"""The transformer that predicts a whole scale at a time, in the released layout, as it is taught.

K. Tian et al., *Visual Autoregressive Modeling*, 2024, section 3.3. Names of parts are those of the released files.
Generation, with its cache and everything that saves work, is in ``engine.py``; this module computes all scales at once
and is the plain form that the engine is compared with.

Letters: B images, L tokens of an image (all scales), C ``embed_dim``, H ``num_heads``, D ``head_dim``,
z ``z_channels``, V ``vocab_size``.
"""

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.var.config import VARConfig

__all__ = [
    "Attention",
    "Block",
    "FeedForward",
    "VARTransformer",
    "attention_factors",
    "check_labels",
    "is_integer",
    "levels_of",
    "modulate",
]

_NORM_EPS = 1e-6
_MAX_LOG_SCALE = math.log(100)
_HEAD_GAIN, _ADALN_GAIN, _GAMMA_GAIN = 0.02, 0.5, 1e-3


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without learned weights, then ·(1 + scale) + shift; shapes (B, L, C) and (B, 1, C)."""
    return F.layer_norm(x, (x.shape[-1],), eps=_NORM_EPS) * (1 + scale) + shift


def is_integer(values: Tensor) -> bool:
    """Whether a tensor has integers, of any width."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuses labels that the model does not know.

    Args:
        labels: (B,) integers in 0..num_classes, the last for "unconditional".
        num_classes: classes of the model.

    Raises:
        ShapeError: not one axis.
        DtypeError: not integers.
        ArgumentError: a label out of range.
    """
    if labels.ndim != 1 or not len(labels):
        raise ShapeError(f"class_labels: expected (B,) with B ≥ 1, got {tuple(labels.shape)}")
    if not is_integer(labels):
        raise DtypeError(f"class_labels: expected integers, got {labels.dtype}")
    if int(labels.min()) < 0 or int(labels.max()) > num_classes:
        raise ArgumentError(
            f"class_labels: expected 0..{num_classes - 1} (or {num_classes} for no class), got values from "
            f"{int(labels.min())} to {int(labels.max())}"
        )


class Attention(nn.Module):
    """Self-attention whose q and k have length 1 and a learned factor per head (or the usual 1/√D, quartered)."""

    zero_k_bias: Tensor

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.num_heads, self.head_dim, self.l2_norm = config.num_heads, config.head_dim, config.l2_norm
        if config.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.num_heads, 1, 1), math.log(4)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attends within (B, L, C) where `mask`, (L, L) bool, is true."""
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = F.linear(x, self.mat_qkv.weight, bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        factors, scale = attention_factors(self)
        if factors is not None:
            q = F.normalize(q, dim=-1).to(v.dtype) * factors.to(v.dtype)
            k = F.normalize(k, dim=-1).to(v.dtype)
        if mask is not None and q.requires_grad and q.device.type == "cpu":
            # The CPU's fused attention is several times slower backwards.
            weights = (q @ k.transpose(-1, -2)).mul(scale).masked_fill(~mask, -math.inf).softmax(-1)
            h = weights.to(v.dtype) @ v
        else:
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        out: Tensor = self.proj(h.transpose(1, 2).flatten(2))
        return out


def attention_factors(attention: Attention) -> tuple[Tensor | None, float]:
    """Returns the factor of normalised q, (1, H, 1, 1), or None where q and k stay; and the softmax's own scale."""
    if attention.l2_norm:
        return attention.scale_mul_1H11.clamp_max(_MAX_LOG_SCALE).exp(), 1.0
    return None, 0.25 / math.sqrt(attention.head_dim)


class FeedForward(nn.Module):
    """fc1, GELU in its tanh form, fc2."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, L, C) to (B, L, C)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention and feed-forward, each between an adaptive layer norm and a gate made from the class."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.attn = Attention(config)
        self.ffn = FeedForward(config)
        self.shared_adaln = config.shared_adaln
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / math.sqrt(width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    @property
    def ada_linear(self) -> nn.Linear:
        """The linear layer of this block's own adaptive norm; there is none where the blocks share one."""
        return cast("nn.Linear", self.ada_lin[1])

    def modulation(self, condition: Tensor) -> Tensor:
        """Gates, scales and shifts of this block.

        Args:
            condition: (B, C) class embedding, or (B, 1, 6, C) where the blocks share one linear layer.

        Returns:
            (B, 1, 6, C): gamma1, gamma2, scale1, scale2, shift1, shift2.
        """
        if self.shared_adaln:
            return self.ada_gss + condition
        six: Tensor = self.ada_lin(condition).unflatten(-1, (1, 6, -1))
        return six

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """Maps (B, L, C) to (B, L, C)."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.modulation(condition).unbind(2)
        x = x + self.attn(modulate(x, scale1, shift1), mask) * gamma1
        out: Tensor = x + self.ffn(modulate(x, scale2, shift2)) * gamma2
        return out


class _HeadNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).unflatten(-1, (1, 2, -1)).unbind(2)
        return modulate(x, scale, shift)


def levels_of(config: VARConfig) -> Tensor:
    """Returns the scale of each token, (L,) int64."""
    sizes = torch.tensor(config.scale_sizes, device="cpu")
    levels = torch.arange(len(sizes), device="cpu").repeat_interleave(sizes)
    return levels.to(torch.get_default_device())


class VARTransformer(nn.Module):
    """Predicts every scale's tokens from the scales before it and the class.

    Args:
        config: its settings.
        seed: of the initial weights.
    """

    lvl_1L: Tensor  # noqa: N815 (the released files' name)

    def __init__(self, config: VARConfig, *, seed: int = 0) -> None:
        super().__init__()
        width, sizes = config.embed_dim, config.scale_sizes
        self.config = config
        self.word_embed = nn.Linear(config.z_channels, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.empty(1, sizes[0], width))
        self.pos_1LC = nn.Parameter(torch.empty(1, config.num_tokens, width))
        self.lvl_embed = nn.Embedding(len(sizes), width)
        self.register_buffer("lvl_1L", levels_of(config)[None])
        self.shared_ada_lin: nn.Module = nn.Identity()
        if config.shared_adaln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = _HeadNorm(width)
        self.head = nn.Linear(width, config.vocab_size)
        if self.pos_start.device.type != "meta":
            self._initialise_(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise_(self, generator: torch.Generator) -> None:
        std = math.sqrt(1 / self.config.embed_dim / 3)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "scale_mul" not in name and "ada_gss" not in name:
                nn.init.trunc_normal_(parameter, std=std, generator=generator)
            elif "ada_gss" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        self.head.weight.mul_(_HEAD_GAIN)
        cast("nn.Linear", self.head_nm.ada_lin[1]).weight.mul_(_ADALN_GAIN)
        depth_gain = math.sqrt(2 * self.config.depth)
        for block in self.layers():
            if block.shared_adaln:
                block.ada_gss[:, :, :2].mul_(_GAMMA_GAIN)
            else:
                weight = block.ada_linear.weight.mul_(_ADALN_GAIN)
                weight[: 2 * self.config.embed_dim].mul_(_GAMMA_GAIN)
            block.attn.proj.weight.div_(depth_gain)
            block.ffn.fc2.weight.div_(depth_gain)

    def layers(self) -> Iterator[Block]:
        """Yields the blocks, first to last."""
        return (cast("Block", block) for block in self.blocks)

    def condition(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds classes.

        Args:
            labels: (B,) int64 in 0..num_classes.

        Returns:
            (B, C) the embedding; and what the blocks take: the same, or (B, 1, 6, C) with a shared adaptive norm.
        """
        embedding: Tensor = self.class_emb(labels)
        if not self.config.shared_adaln:
            return embedding, embedding
        shared: Tensor = self.shared_ada_lin(embedding)
        return embedding, shared.unflatten(-1, (1, 6, -1))

    def places(self) -> Tensor:
        """Returns what is added for place and scale, (1, L, C)."""
        levels: Tensor = self.lvl_embed(self.lvl_1L)
        return levels + self.pos_1LC

    def mask(self) -> Tensor:
        """Returns which tokens (L, L) see which, all scales at once: their own scale and those before."""
        return self.lvl_1L[0, :, None] >= self.lvl_1L[0, None, :]

    def logits(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Scores the codes: (B, L, C) and (B, C) to (B, L, V) float32, in the weights' dtype whatever the autocast."""
        dtype = self.head.weight.dtype
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = self.head(self.head_nm(x.float(), embedding.to(dtype)).to(dtype))
        return out.float()

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Scores all tokens at once, with the right tokens of earlier scales given.

        Args:
            labels: (B,) int64 in 0..num_classes; num_classes stands for "unconditional".
            inputs: (B, L − patch_nums[0]², z) float, from ``MultiScaleQuantizer.next_inputs``.

        Returns:
            (B, L, V) float32 logits.

        Raises:
            ShapeError, DtypeError, ArgumentError: labels or inputs that do not fit.
        """
        config = self.config
        check_labels(labels, config.num_classes)
        expected = (len(labels), config.num_tokens - config.scale_sizes[0], config.z_channels)
        if tuple(inputs.shape) != expected:
            raise ShapeError(f"inputs: expected {expected}, got {tuple(inputs.shape)}")
        embedding, condition = self.condition(labels)
        start = embedding[:, None] + self.pos_start
        x = torch.cat([start, self.word_embed(inputs).to(start.dtype)], 1) + self.places()
        mask = self.mask()
        for block in self.blocks:
            x = block(x, condition, mask)
        return self.logits(x, embedding)

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())
