"""One block made ready to generate: its linear layers in their formats, and its attention with what a plan leaves out.

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024, sections 4.1 to 4.3. Letters as in ``engine.py``.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparing.var.attention import ScaleAttention, native_level
from sparing.var.cache import EngineState
from sparing.var.formats import attention_rounding, make_linear
from sparing.var.plan import CompressionPlan, SharingPlan
from sparing.var.transformer import Block, attention_factors

__all__ = ["EngineLayer", "Observer", "Passes", "modulated"]

_NORM_EPS = 1e-6
_TINY = 1e-12
_TOKENS_AT_ONCE = 1024
"""On a CPU: enough for fast products, few enough to stay in its caches."""

Observer = Callable[[int, int, dict[str, Tensor]], None]
"""Called with (layer, scale, tensors) where someone watches; see :meth:`Engine.watch`."""


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without learned weights, then ·scale + shift; shapes (R, n, C) and (R, 1, C)."""
    return torch.addcmul(shift, F.layer_norm(x, (x.shape[-1],), eps=_NORM_EPS), scale)


def _normed(x: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    return modulated(x, scale, shift).to(dtype)


def _gated(
    x: Tensor, added: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x = torch.addcmul(x, added, gate)
    return x, modulated(x, scale, shift).to(dtype)


def _units(q: Tensor, k: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    return _unit(q, factors), _unit(k, None)


class Passes(NamedTuple):
    """What lies between the products of a layer; :meth:`Engine.compile_` puts others in their place.

    Attributes:
        normed: (x, scale, shift, dtype) to the modulated norm in the dtype.
        gated: (x, added, gate, scale, shift, dtype) to x + added · gate, and the modulated norm of that in the dtype.
        units: (q, k, factors or None) to both with length 1, and q times its head's factor.
    """

    normed: Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor] = _normed
    gated: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]] = _gated
    units: Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]] = _units


class EngineLayer(nn.Module):
    """One block's linear layers in their formats, and its attention for each scale.

    Args:
        block: of the transformer.
        index: its place, from 0.
        patch_nums: side of each scale.
        dtype: of linear layers and attention.
        plan: what to leave out.
    """

    factors: Tensor | None

    def __init__(
        self,
        block: Block,
        index: int,
        *,
        patch_nums: tuple[int, ...],
        dtype: torch.dtype,
        plan: CompressionPlan | None,
    ) -> None:
        super().__init__()
        attention = block.attn
        self.index, self.plan = index, plan
        self.patch_nums = patch_nums
        self.starts = tuple(itertools.accumulate((p * p for p in patch_nums), initial=0))
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        bias = torch.cat([attention.q_bias, attention.zero_k_bias, attention.v_bias]).detach()
        formats = {} if plan is None or plan.precision is None else plan.precision.linears

        def linear(name: str, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> nn.Module:
            return make_linear(weight, bias, formats.get(f"blocks.{index}.{name}"), dtype=dtype, gelu=gelu)

        self.qkv = linear("qkv", attention.mat_qkv.weight, bias)
        self.proj = linear("proj", attention.proj.weight, attention.proj.bias)
        self.fc1 = linear("fc1", block.ffn.fc1.weight, block.ffn.fc1.bias, gelu=True)
        self.fc2 = linear("fc2", block.ffn.fc2.weight, block.ffn.fc2.bias)
        self.ada: nn.Module | None = None
        if not block.shared_adaln:
            self.ada = linear("ada_lin", block.ada_linear.weight, block.ada_linear.bias)
        factors, self.softmax_scale = attention_factors(attention)
        self.normalised = factors is not None
        self.register_buffer("factors", None if factors is None else factors.detach().float(), persistent=False)
        self.attentions: dict[int, ScaleAttention] = {}
        self.rounding = attention_rounding(plan)
        self.observer: Observer | None = None
        self.passes = Passes()
        self.dtype = dtype

    def modulation(self, block: Block, condition: Tensor) -> Tensor:
        """Gates, scales and shifts, (n, 6, C) float32, from n classes' embeddings or from the shared norm's output."""
        if self.ada is None:
            return block.modulation(condition).flatten(1, 2)
        six: Tensor = self.ada(F.silu(condition).to(self.dtype)).unflatten(-1, (6, -1)).float()
        return six

    def forward(self, x: Tensor, state: EngineState, scale: int) -> Tensor:
        """Maps a scale's tokens (R, n, C) float32 to (R, n, C) float32, and adds their keys and values to the cache."""
        out = torch.empty_like(x)
        for rows in self._pieces(x, state, scale):
            gamma1, gamma2, scale1, scale2, shift1, shift2 = (t[rows] for t in state.modulations[self.index])
            piece = x[rows]
            normed = self.passes.normed(piece, scale1, shift1, self.dtype)
            attention = self._attention(normed, state, scale, rows)
            piece, normed = self.passes.gated(piece, attention, gamma1, scale2, shift2, self.dtype)
            del attention  # it would lie beside fc1's output, where memory is highest
            torch.addcmul(piece, self.fc2(self.fc1(normed)), gamma2, out=out[rows])
        return out

    def _pieces(self, x: Tensor, state: EngineState, scale: int) -> list[slice]:
        """Rows that are computed together: they do not see each other, and what lies between takes memory."""
        if self._sharing(state, scale) is not None:
            return [slice(0, len(x))]
        of_cache = len(x) // len(state.caches[self.index])
        whole = self.observer is not None or x.device.type != "cpu"
        at_once = of_cache if whole else min(max(1, _TOKENS_AT_ONCE // x.shape[1]), of_cache)
        starts = range(0, len(x), of_cache)
        return [slice(i, min(i + at_once, s + of_cache)) for s in starts for i in range(s, s + of_cache, at_once)]

    def _sharing(self, state: EngineState, scale: int) -> SharingPlan | None:
        plan = self.plan
        return plan.sharing if plan is not None and state.guided and plan.shares(self.index, scale) else None

    def _attention(self, x: Tensor, state: EngineState, scale: int, rows: slice) -> Tensor:
        sharing, caches = self._sharing(state, scale), state.caches[self.index]
        begin = self.starts[scale]
        if sharing is None:
            which, first = divmod(rows.start, len(state.start) // len(caches))
            own_rows = slice(first, first + len(x))
            q, k, v = self._qkv(x)
            keys, values = caches[which].extend(k, v, begin=begin, rows=own_rows)
            return self._out(self._attend(q, keys, values, scale), scale)
        cond, uncond = x.chunk(2)
        images = slice(0, len(cond))
        q, k, v = self._qkv(cond)
        keys, values = caches[0].extend(k, v, begin=begin, rows=images)
        if sharing.variant == "output":
            out = self._out(self._attend(q, keys, values, scale), scale)
            return torch.cat([out, out])
        own = self._values(uncond)
        _, others = caches[1].extend(own, own, begin=begin, rows=images)
        both = self._attend(q, keys, torch.cat([values, others], -1), scale)
        return self._out(torch.cat(both.chunk(2, -1)), scale)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv: Tensor = self.qkv(x)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.normalised:
            q, k = self.passes.units(q, k, self.factors)
        if self.rounding is not None:
            q, k, v = (self.rounding(t) for t in (q, k, v))
        return q, k, v

    def _values(self, x: Tensor) -> Tensor:
        # The values' rows are the last third of the one product.
        out: Tensor = self.qkv(x)[..., 2 * self.num_heads * self.head_dim :]
        v = out.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        return v if self.rounding is None else self.rounding(v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: int) -> Tensor:
        """(R, H, n, D) queries and (R, H, m, ·) keys and values to (R, H, n, ·)."""
        plain = self.observer is None and self.rounding is None
        attention = self._attention_at(scale)
        if plain:
            return attention(q, k, v, softmax_scale=self.softmax_scale)
        mask = attention.mask(q.device)
        logits = (q @ k.transpose(-1, -2)).float() * self.softmax_scale
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf)
        weights = logits.softmax(-1)
        if self.observer is not None:
            self.observer(self.index, scale, {"map": weights})
        if self.rounding is not None:
            weights = self.rounding(weights)
        return weights.to(v.dtype) @ v

    def _out(self, attended: Tensor, scale: int) -> Tensor:
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        if self.observer is not None:
            self.observer(self.index, scale, {"output": out})
        return out

    def waits_for_host(self, scale: int) -> bool:
        """Whether this scale's attention, once it has run, needs the host in its midst: no CUDA graph can hold it."""
        return self._attention_at(scale).is_tiled

    def _attention_at(self, scale: int) -> ScaleAttention:
        if scale not in self.attentions:
            widths = None if self.plan is None else self.plan.widths(self.index, scale)
            self.attentions[scale] = ScaleAttention(self.patch_nums, scale, widths, level=native_level())
        return self.attentions[scale]


def _unit(x: Tensor, factors: Tensor | None) -> Tensor:
    """Vectors of length 1, times a factor per head."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp_min_(_TINY)
    inverse: Tensor = length.reciprocal_() if factors is None else factors / length
    return x * inverse.to(x.dtype)
