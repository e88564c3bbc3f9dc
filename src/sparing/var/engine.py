"""Runs a transformer scale by scale: the one path for drawing images, for measuring and for what is left out.

Exact savings, always on: the class's adaptive norms once an image instead of once a scale (they do not change), and
once for all images without a class; keys and values in memory taken once, in the dtype of the arithmetic; weights
cast once; no logits without the class where guidance is zero. Lossy ones come from a plan.

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024. Letters as in ``transformer.py``; R rows = B, or 2·B with guidance:
first the images with their class, then without.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparing.errors import ArgumentError, ShapeError
from sparing.quant import Int8Linear
from sparing.var.cache import KVCache
from sparing.var.formats import attention_rounding, make_linear
from sparing.var.plan import CompressionPlan
from sparing.var.quantizer import MultiScaleQuantizer
from sparing.var.sampling import SamplingSettings, guide, sample_tokens
from sparing.var.transformer import Block, VARTransformer, attention_factors, check_labels
from sparing.var.windows import scale_mask

__all__ = ["Engine", "EngineState", "Observer"]

_NORM_EPS = 1e-6
_TINY = 1e-12

Observer = Callable[[int, int, dict[str, Tensor]], None]
"""Called with (layer, scale, tensors) where someone watches; see :meth:`Engine.watch`."""


@dataclass
class EngineState:
    """What one batch of images carries from scale to scale.

    Attributes:
        num_images: B.
        guided: whether the rows without the class are there.
        modulations: for each layer gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2, each (R, 1, C).
        head: 1 + scale and shift of the last norm, each (R, 1, C).
        start: (R, n, C) input of the first scale.
        caches: for each layer that of all rows; with sharing by output, that of the rows with the class, and
            that of the others while they still attend.
    """

    num_images: int
    guided: bool
    modulations: list[tuple[Tensor, ...]]
    head: tuple[Tensor, Tensor]
    start: Tensor
    caches: list[list[KVCache]] = field(default_factory=list)
    scale: int = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(cache.nbytes for layer in self.caches for cache in layer)


class _Layer(nn.Module):
    """One block's linear layers in their formats, and its attention for each scale."""

    factors: Tensor | None

    def __init__(self, block: Block, index: int, *, dtype: torch.dtype, plan: CompressionPlan | None) -> None:
        super().__init__()
        attention = block.attn
        self.index, self.plan = index, plan
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        bias = torch.cat([attention.q_bias, attention.zero_k_bias, attention.v_bias]).detach()
        formats = {} if plan is None or plan.precision is None else plan.precision.linears

        def linear(name: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
            return make_linear(weight, bias, formats.get(f"blocks.{index}.{name}"), dtype=dtype)

        self.qkv = linear("qkv", attention.mat_qkv.weight, bias)
        self.proj = linear("proj", attention.proj.weight, attention.proj.bias)
        self.fc1 = linear("fc1", block.ffn.fc1.weight, block.ffn.fc1.bias)
        self.fc2 = linear("fc2", block.ffn.fc2.weight, block.ffn.fc2.bias)
        self.ada: nn.Module | None = None
        if not block.shared_adaln:
            self.ada = linear("ada_lin", block.ada_lin[1].weight, block.ada_lin[1].bias)  # type: ignore[arg-type]
        factors, self.softmax_scale = attention_factors(attention)
        self.normalised = factors is not None
        self.register_buffer("factors", None if factors is None else factors.detach().float(), persistent=False)
        self.masks: dict[int, Tensor] = {}
        self.rounding = attention_rounding(plan)
        self.observer: Observer | None = None
        self.dtype = dtype

    def modulation(self, block: Block, condition: Tensor) -> Tensor:
        if self.ada is None:
            return block.modulation(condition).flatten(1, 2)
        six: Tensor = self.ada(F.silu(condition).to(self.dtype)).unflatten(-1, (6, -1)).float()
        return six

    def forward(self, x: Tensor, state: EngineState, scale: int) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = state.modulations[self.index]
        normed = _modulated(x, scale1, shift1).to(self.dtype)
        x = torch.addcmul(x, self._attention(normed, state, scale), gamma1)
        inside = F.gelu(self.fc1(_modulated(x, scale2, shift2).to(self.dtype)), approximate="tanh")
        return torch.addcmul(x, self.fc2(inside), gamma2)

    def _attention(self, x: Tensor, state: EngineState, scale: int) -> Tensor:
        plan, caches = self.plan, state.caches[self.index]
        sharing = plan.sharing if plan is not None and state.guided and plan.shares(self.index, scale) else None
        if sharing is None:
            q, k, v = self._qkv(x)
            if len(caches) == 1:
                return self._out(self._attend(q, *caches[0].extend(k, v), scale), scale)
            halves = zip(caches, q.chunk(2), k.chunk(2), v.chunk(2), strict=True)
            return self._out(torch.cat([self._attend(q_, *c.extend(k_, v_), scale) for c, q_, k_, v_ in halves]), scale)
        cond, uncond = x.chunk(2)
        q, k, v = self._qkv(cond)
        if sharing.variant == "output":
            out = self._out(self._attend(q, *caches[0].extend(k, v), scale), scale)
            return torch.cat([out, out])
        keys, values = caches[0].extend(k, v)
        own = self._values(uncond)
        _, others = caches[1].extend(own, own)
        both = self._attend(q, keys, torch.cat([values, others], -1), scale)
        return self._out(torch.cat(both.chunk(2, -1)), scale)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv: Tensor = self.qkv(x)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.normalised:
            q = _unit(q, self.factors)
            k = _unit(k, None)
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
        mask = self._mask(scale, q.device)
        if self.observer is None and self.rounding is None and v.shape[-1] == q.shape[-1]:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.softmax_scale)
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

    def _mask(self, scale: int, device: torch.device) -> Tensor | None:
        if self.plan is None or self.plan.windows is None:
            return None
        if scale not in self.masks:
            widths = self.plan.widths(self.index, scale)
            if widths is None:
                return None
            mask = torch.from_numpy(scale_mask(self.plan.model.patch_nums, scale, widths))
            self.masks[scale] = mask.to(device)
        return self.masks[scale]


class Engine(nn.Module):
    """A transformer made ready to generate.

    Args:
        transformer: the model; parts that the plan leaves, in the wanted dtype already, are shared and not copied.
        plan: what to leave out; None leaves nothing out.
        dtype: of the arithmetic of linear layers and attention; None for that of the weights. The stream between the
            layers, norms and softmax stay float32.
    """

    def __init__(
        self, transformer: VARTransformer, *, plan: CompressionPlan | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = transformer.config
        self.plan = plan
        self.dtype = dtype or transformer.head.weight.dtype
        formats = {} if plan is None or plan.precision is None else plan.precision.linears
        # Not registered: the engine's own memory is its layers.
        object.__setattr__(self, "transformer", transformer)
        self.transformer: VARTransformer
        self.layers = nn.ModuleList(
            _Layer(block, i, dtype=self.dtype, plan=plan) for i, block in enumerate(transformer.layers())
        )
        self.word_embed = make_linear(
            transformer.word_embed.weight, transformer.word_embed.bias, formats.get("word_embed"), dtype=self.dtype
        )
        self.head = make_linear(transformer.head.weight, transformer.head.bias, formats.get("head"), dtype=self.dtype)
        self.places = transformer.places().detach().float()
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def begin(self, labels: Tensor, *, guided: bool = True) -> EngineState:
        """Makes ready for a batch.

        Args:
            labels: (B,) int64 in 0..num_classes.
            guided: also compute each image without its class.

        Returns:
            What the scales carry along.

        Raises:
            ShapeError, DtypeError, ArgumentError: bad labels.
        """
        config, model = self.config, self.transformer
        check_labels(labels, config.num_classes)
        rows = torch.cat([labels, torch.full_like(labels, config.num_classes)]) if guided else labels
        classes, where = torch.unique(rows, return_inverse=True)
        embedding, condition = (t.float() for t in model.condition(classes))
        modulations: list[tuple[Tensor, ...]] = []
        for layer, block in zip(self.layers, model.blocks, strict=True):
            six = layer.modulation(block, condition)[where].unsqueeze(1)  # type: ignore[operator]
            gamma1, gamma2, scale1, scale2, shift1, shift2 = six.float().unbind(2)
            modulations.append((gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2))
        scale, shift = model.head_nm.ada_lin(embedding.to(model.head.weight.dtype)).float().chunk(2, -1)
        start = embedding[where][:, None] + model.pos_start.float() + self.places[:, : config.scale_sizes[0]]
        state = EngineState(len(labels), guided, modulations, (1 + scale[where][:, None], shift[where][:, None]), start)
        state.caches = [self._layer_caches(i, state, labels.device) for i in range(config.depth)]
        return state

    def _layer_caches(self, layer: int, state: EngineState, device: torch.device) -> list[KVCache]:
        config, plan = self.config, self.plan
        bits = None if plan is None or plan.precision is None else plan.precision.kv_bits
        sharing = plan.sharing if plan is not None and state.guided else None
        first = None if sharing is None else sharing.first_scale[layer]
        total = config.num_tokens

        def cache(rows: int, capacity: int) -> KVCache:
            return KVCache(
                rows, config.num_heads, config.head_dim, capacity=capacity, dtype=self.dtype, device=device, bits=bits
            )

        if sharing is None or first is None:
            return [cache(len(state.start), total)]
        until = config.scale_starts[first] if sharing.variant == "output" else total
        return [cache(state.num_images, total), cache(state.num_images, until)]

    @torch.inference_mode()
    def step(self, state: EngineState, x: Tensor | None = None) -> Tensor:
        """Runs the blocks on the next scale.

        Args:
            state: of the batch; moves on by one scale.
            x: (R, n, C) the scale's tokens from :meth:`embed`; None for the first scale.

        Returns:
            (R, n, C) float32, for :meth:`logits`.

        Raises:
            ShapeError: `x` has not the scale's shape.
            ArgumentError: all scales are done.
        """
        scale = state.scale
        if scale >= len(self.config.patch_nums):
            raise ArgumentError("state: all scales are done; begin again")
        x = state.start if x is None else x
        expected = (len(state.start), self.config.scale_sizes[scale], self.config.embed_dim)
        if tuple(x.shape) != expected:
            raise ShapeError(f"x: expected {expected} at scale {scale}, got {tuple(x.shape)}")
        for layer in self.layers:
            x = layer(x, state, scale)
        state.scale += 1
        return x

    @torch.inference_mode()
    def embed(self, inputs: Tensor, state: EngineState) -> Tensor:
        """Turns the next scale's averages of f_hat, (B, n, z), into its tokens, (R, n, C)."""
        begin, end = self.config.scale_starts[state.scale : state.scale + 2]
        x: Tensor = self.word_embed(inputs.to(self.dtype)).float() + self.places[:, begin:end]
        return x.repeat(2, 1, 1) if state.guided else x

    @torch.inference_mode()
    def logits(self, x: Tensor, state: EngineState, *, rows: int | None = None) -> Tensor:
        """Scores the codes.

        Args:
            x: (R, n, C) from :meth:`step`.
            state: of the batch.
            rows: only the first rows; None for all.

        Returns:
            (rows, n, V) float32.
        """
        scale, shift = state.head
        out: Tensor = self.head(_modulated(x[:rows], scale[:rows], shift[:rows]).to(self.dtype))
        return out.float()

    def generate(
        self,
        labels: Tensor,
        quantizer: MultiScaleQuantizer,
        settings: SamplingSettings,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Draws images as tokens.

        Args:
            labels: (B,) int64 in 0..num_classes.
            quantizer: of the tokenizer.
            settings: how to draw.
            generator: of the draw, on the labels' device.

        Returns:
            For each scale (B, n) int64, and f_hat (B, z, p, p) float32.
        """
        settings.check(self.config.vocab_size)
        num_scales = len(self.config.patch_nums)
        state = self.begin(labels, guided=settings.guidance_scale > 0)
        batch, tokens, x = state.num_images, [], None
        f_hat = torch.zeros(())
        for scale in range(num_scales):
            x = self.step(state, x)
            strength = settings.strength(scale, num_scales)
            logits = self.logits(x, state, rows=None if state.guided and strength else batch)
            if len(logits) > batch:
                logits = guide(logits[:batch], logits[batch:], strength)
            with torch.inference_mode():
                tokens.append(sample_tokens(logits, settings, generator))
                added = quantizer.upsampled(tokens[-1], scale)
                f_hat = added if scale == 0 else f_hat + added
                if scale + 1 < num_scales:
                    x = self.embed(quantizer.downsampled(f_hat, scale + 1).flatten(2).transpose(1, 2), state)
        return tokens, f_hat

    def teach(self, labels: Tensor, inputs: Tensor, *, guided: bool = True) -> Iterator[Tensor]:
        """Scores known tokens scale by scale.

        Args:
            labels: (B,) int64.
            inputs: (B, L − patch_nums[0]², z) from ``MultiScaleQuantizer.next_inputs``.
            guided: also without the class.

        Yields:
            For each scale (R, n, V) float32 logits.
        """
        starts = self.config.scale_starts
        state = self.begin(labels, guided=guided)
        x: Tensor | None = None
        for scale in range(len(self.config.patch_nums)):
            if scale:
                x = self.embed(inputs[:, starts[scale] - starts[1] : starts[scale + 1] - starts[1]], state)
            yield self.logits(self.step(state, x), state)

    def watch(self, observer: Observer | None) -> None:
        """Shows what attention does to an observer, each in a call of its own; slower while it lasts.

        Args:
            observer: gets ``{"map": (R, H, n, m) float32}`` and ``{"output": (R, n, C)}``, the latter after proj; None
                ends it.
        """
        for layer in self.layers:
            layer.observer = observer  # type: ignore[assignment]

    def free_original_(self) -> int:
        """Empties those of the transformer's weights for which this engine has others.

        Returns:
            How many bytes that frees.
        """
        kept = {t.untyped_storage().data_ptr() for t in [*self.parameters(), *self.buffers()]}
        model, freed = self.transformer, 0
        linears: list[nn.Module] = [model.head]
        for block in model.layers():
            linears += [block.attn.mat_qkv, block.attn.proj, block.ffn.fc1, block.ffn.fc2]
            linears += [] if block.shared_adaln else [block.ada_lin[1]]
        for linear in linears:
            weight = cast("Tensor", linear.weight)
            if weight.untyped_storage().data_ptr() not in kept:
                freed += weight.nbytes
                weight.data = weight.data.new_empty(0)
        return freed

    @property
    def weight_bytes(self) -> int:
        """Bytes of the engine's weights, those shared with the transformer too."""
        integers = [module for module in self.modules() if isinstance(module, Int8Linear)]
        theirs = {t.data_ptr() for module in integers for t in module.buffers()}
        others = {t.data_ptr(): t.nbytes for t in [*self.parameters(), *self.buffers()] if t.data_ptr() not in theirs}
        return sum(others.values()) + sum(module.num_bytes for module in integers)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, (x.shape[-1],), eps=_NORM_EPS), scale)


def _unit(x: Tensor, factors: Tensor | None) -> Tensor:
    """Vectors of length 1, times a factor per head."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp_min_(_TINY)
    inverse: Tensor = length.reciprocal_() if factors is None else factors / length
    return x * inverse.to(x.dtype)
