"""Runs a transformer scale by scale: the one path for drawing images, for measuring and for what is left out.

Exact savings, always on: the class's adaptive norms once an image instead of once a scale (they do not change), and
once for all images without a class; keys and values in memory taken once, in the dtype of the arithmetic; weights
cast once; no logits without the class where guidance is zero. Lossy ones come from a plan.

R. Xie et al., *LiteVAR*, arXiv 2411.17178, 2024. Letters as in ``transformer.py``; R rows = B, or 2·B with guidance:
first the images with their class, then without.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, ShapeError
from sparing.quant import Int8Linear
from sparing.var.cache import CachePool, EngineState, KVCache
from sparing.var.compiled import StepGraphs, fused_passes
from sparing.var.formats import make_linear
from sparing.var.layer import EngineLayer, Observer, Passes, modulated
from sparing.var.memory import return_freed_memory
from sparing.var.plan import CompressionPlan
from sparing.var.quantizer import MultiScaleQuantizer
from sparing.var.sampling import SamplingSettings, guide, sample_tokens
from sparing.var.transformer import VARTransformer, check_labels

__all__ = ["Engine"]

_TOKENS_AT_ONCE = 256
_TOKENS_THAT_LEAVE_MUCH = 1024
"""From here on, what a scale leaves in the allocator is worth the milliseconds of giving it back."""


class Engine(nn.Module):
    """A transformer made ready to generate.

    Args:
        transformer: the model; parts that the plan leaves, in the wanted dtype already, are shared and not copied.
            Weights that change later need a new engine.
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
            EngineLayer(block, i, patch_nums=self.config.patch_nums, dtype=self.dtype, plan=plan)
            for i, block in enumerate(transformer.layers())
        )
        self.word_embed = make_linear(
            transformer.word_embed.weight, transformer.word_embed.bias, formats.get("word_embed"), dtype=self.dtype
        )
        self.head = make_linear(transformer.head.weight, transformer.head.bias, formats.get("head"), dtype=self.dtype)
        self.places = transformer.places().detach().float()
        self._graphs: StepGraphs | None = None
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
        for layer, block in zip(self._layers(), model.layers(), strict=True):
            six = layer.modulation(block, condition)[where].unsqueeze(1)
            gamma1, gamma2, scale1, scale2, shift1, shift2 = six.float().unbind(2)
            modulations.append((gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2))
        scale, shift = model.head_nm.ada_lin(embedding.to(model.head.weight.dtype)).float().chunk(2, -1)
        start = embedding[where][:, None] + model.pos_start.float() + self.places[:, : config.scale_sizes[0]]
        state = EngineState(len(labels), guided, modulations, (1 + scale[where][:, None], shift[where][:, None]), start)
        if self._graphs is None:
            state.caches = self._caches(state, labels.device)
        else:
            self._graphs.lend_(state, lambda: self._caches(state, labels.device))
        return state

    def _caches(self, state: EngineState, device: torch.device) -> list[list[KVCache]]:
        config, plan = self.config, self.plan
        bits = None if plan is None or plan.precision is None else plan.precision.kv_bits
        sizes = [self._cache_sizes(layer, state) for layer in range(config.depth)]
        numel = 2 * config.embed_dim * sum(rows * capacity for layer in sizes for rows, capacity in layer)
        pool = CachePool(numel, config.head_dim, dtype=self.dtype, device=device, bits=bits)

        def cache(rows: int, capacity: int) -> KVCache:
            heads, dim = config.num_heads, config.head_dim
            return KVCache(rows, heads, dim, capacity=capacity, dtype=self.dtype, device=device, bits=bits, pool=pool)

        return [[cache(rows, capacity) for rows, capacity in layer] for layer in sizes]

    def _cache_sizes(self, layer: int, state: EngineState) -> list[tuple[int, int]]:
        """Rows and tokens of a layer's caches."""
        config = self.config
        sharing = self.plan.sharing if self.plan is not None and state.guided else None
        first = None if sharing is None else sharing.first_scale[layer]
        total = config.num_tokens
        if sharing is None or first is None:
            return [(len(state.start), total)]
        until = config.scale_starts[first] if sharing.variant == "output" else total
        return [(state.num_images, total), (state.num_images, until)]

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
            ArgumentError: all scales are done, or with CUDA graphs another batch of this size was begun since.
            ConfigError: the scale cannot be recorded into a CUDA graph.
        """
        scale = state.scale
        if scale >= len(self.config.patch_nums):
            raise ArgumentError("state: all scales are done; begin again")
        x = state.start if x is None else x
        expected = (len(state.start), self.config.scale_sizes[scale], self.config.embed_dim)
        if tuple(x.shape) != expected:
            raise ShapeError(f"x: expected {expected} at scale {scale}, got {tuple(x.shape)}")
        if state.held is not None:
            state.held.check(state)
        if state.held is None or any(layer.observer is not None for layer in self._layers()):
            x = self._through_layers(x, state, scale)
        else:
            x = state.held.step(x, scale)
        state.scale += 1
        return x

    def _through_layers(self, x: Tensor, state: EngineState, scale: int) -> Tensor:
        for layer in self.layers:
            x = layer(x, state, scale)
        return x

    @torch.inference_mode()
    def embed(self, inputs: Tensor, state: EngineState) -> Tensor:
        """Turns the next scale's averages of f_hat, (B, n, z), into its tokens, (R, n, C)."""
        begin, end = self.config.scale_starts[state.scale : state.scale + 2]
        x: Tensor = self.word_embed(inputs.to(self.dtype)).float() + self.places[:, begin:end]
        return x.repeat(2, 1, 1) if state.guided else x

    @torch.inference_mode()
    def logits(self, x: Tensor, state: EngineState, *, rows: slice = slice(None)) -> Tensor:
        """Scores the codes.

        Args:
            x: (R, n, C) from :meth:`step`.
            state: of the batch.
            rows: only these; by default all.

        Returns:
            (rows, n, V) float32.
        """
        scale, shift = state.head
        out: Tensor = self.head(modulated(x[rows], scale[rows], shift[rows]).to(self.dtype))
        return out.float()

    @torch.inference_mode()
    def _draw(
        self,
        x: Tensor,
        state: EngineState,
        strength: float,
        settings: SamplingSettings,
        generator: torch.Generator | None,
    ) -> Tensor:
        """(B, n) codes, a few images at a time: of what is as wide as the codes, only their share is in memory."""
        batch = state.num_images
        at_once = max(1, _TOKENS_AT_ONCE // x.shape[1]) if x.device.type == "cpu" else batch
        tokens = []
        for start in range(0, batch, at_once):
            stop = min(start + at_once, batch)
            logits = self.logits(x, state, rows=slice(start, stop))
            if state.guided and strength:
                without = self.logits(x, state, rows=slice(start + batch, stop + batch))
                logits = guide(logits, without, strength)
            tokens.append(sample_tokens(logits, settings, generator))
        return torch.cat(tokens)

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
        tokens, x = [], None
        f_hat = torch.zeros(())
        for scale in range(num_scales):
            x = self.step(state, x)
            if x.device.type == "cpu" and x.shape[:2].numel() >= _TOKENS_THAT_LEAVE_MUCH:
                return_freed_memory()
            tokens.append(self._draw(x, state, settings.strength(scale, num_scales), settings, generator))
            with torch.inference_mode():
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
        for layer in self._layers():
            layer.observer = observer

    def compile_(self, *, fuse: bool = True, graphs: bool | None = None) -> None:
        """Computes the same in fewer launches; :meth:`VARPipeline.compile_` says what and when it helps.

        Args:
            fuse: compile the passes between the products.
            graphs: record each scale's layers into a CUDA graph; None does so on CUDA.

        Raises:
            ArgumentError: graphs on a device that has none.
            ConfigError: PyTorch cannot compile here. Nothing changes then.
        """
        device = self.places.device
        if graphs and device.type != "cuda":
            raise ArgumentError(f"graphs: only on CUDA, but the model is on {device}; take graphs=None or False")
        passes = fused_passes(next(self._layers()), device) if fuse else Passes()
        for layer in self._layers():
            layer.passes = passes
        self._graphs = None
        if graphs or (graphs is None and device.type == "cuda"):
            self._graphs = StepGraphs(self, layers=self._through_layers, can_record=self._can_record)

    def uncompile_(self) -> None:
        """Takes :meth:`compile_` back: the same bits as before."""
        self.compile_(fuse=False, graphs=False)

    def _can_record(self, scale: int) -> bool:
        return not any(layer.waits_for_host(scale) for layer in self._layers())

    def _layers(self) -> Iterator[EngineLayer]:
        return (cast("EngineLayer", layer) for layer in self.layers)

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
            linears += [] if block.shared_adaln else [block.ada_linear]
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
