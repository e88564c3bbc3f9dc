"""The rival: the operations of the published implementation, written afresh on our modules' weights.

As published: adaptive norms at every scale, keys and values grown by concatenation, weights cast by autocast at every
call, the whole codebook sorted for top-p. ``latency.py`` first checks its greedy tokens against ours: both sides do the
same work.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sparing.var.pipeline import VARPipeline
from sparing.var.transformer import Attention, Block

EPS = 1e-6
MAX_LOG_SCALE = math.log(100)


class PublishedSampler:
    """Draws images with the published implementation's operations."""

    def __init__(self, pipe: VARPipeline) -> None:
        self.model, self.tokenizer = pipe.transformer, pipe.tokenizer
        self.config = pipe.transformer.config
        self.cached: list[tuple[Tensor, Tensor] | None] = []

    def _attention(self, module: Attention, x: Tensor, layer: int) -> Tensor:
        batch, length, width = x.shape
        bias = torch.cat((module.q_bias, module.zero_k_bias, module.v_bias))
        qkv = F.linear(x, module.mat_qkv.weight, bias).view(batch, length, 3, module.num_heads, module.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if module.l2_norm:
            factor = module.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()
            q, k, scale = F.normalize(q, dim=-1).mul(factor), F.normalize(k, dim=-1), 1.0
        else:
            scale = 0.25 / math.sqrt(module.head_dim)
        before = self.cached[layer]
        if before is not None:
            k, v = torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)
        self.cached[layer] = (k, v)
        out = F.scaled_dot_product_attention(q, k, v.to(k.dtype), scale=scale)
        projected: Tensor = module.proj(out.transpose(1, 2).reshape(batch, length, width))
        return projected

    def _block(self, block: Block, x: Tensor, condition: Tensor, layer: int) -> Tensor:
        width = x.shape[-1]
        six = block.ada_gss + condition if block.shared_adaln else block.ada_lin(condition).view(-1, 1, 6, width)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)
        normed = F.layer_norm(x, (width,), eps=EPS).mul(scale1.add(1)).add_(shift1)
        x = x + self._attention(block.attn, normed, layer).mul_(gamma1)
        normed = F.layer_norm(x, (width,), eps=EPS).mul(scale2.add(1)).add_(shift2)
        inside = F.gelu(block.ffn.fc1(normed), approximate="tanh")
        added: Tensor = block.ffn.fc2(inside).mul(gamma2)
        return x + added

    def _logits(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.model.head_nm.ada_lin(embedding.float()).view(-1, 1, 2, x.shape[-1]).unbind(2)
        normed = F.layer_norm(x.float(), (x.shape[-1],), eps=EPS).mul(scale.add(1)).add_(shift)
        logits: Tensor = self.model.head(normed.float())
        return logits.float()

    @torch.inference_mode()
    def __call__(
        self, labels: Tensor, *, guidance_scale: float, top_k: int, top_p: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draws images: tokens (B, L) and images (B, 3, side, side) in [0, 1]."""
        model, config, quantizer = self.model, self.config, self.tokenizer.quantize
        batch, scales = len(labels), len(config.patch_nums)
        rows = torch.cat((labels, torch.full_like(labels, config.num_classes)))
        embedding = model.class_emb(rows)
        places = model.lvl_embed(model.lvl_1L) + model.pos_1LC
        first = config.scale_sizes[0]
        x = embedding.unsqueeze(1) + model.pos_start + places[:, :first]
        f_hat = torch.zeros(batch, config.z_channels, config.patch_nums[-1], config.patch_nums[-1], device=x.device)
        self.cached = [None] * config.depth
        condition = model.shared_ada_lin(embedding).view(-1, 1, 6, x.shape[-1]) if config.shared_adaln else embedding
        drawn = []
        for scale in range(scales):
            for layer, block in enumerate(model.layers()):
                x = self._block(block, x, condition, layer)
            logits = self._logits(x, embedding)
            strength = guidance_scale * scale / (scales - 1)
            logits = (1 + strength) * logits[:batch] - strength * logits[batch:]
            tokens = _draw(logits, top_k, top_p, generator)
            drawn.append(tokens)
            f_hat = f_hat + quantizer.upsampled(tokens, scale)
            if scale + 1 < scales:
                inputs = quantizer.downsampled(f_hat, scale + 1).flatten(2).transpose(1, 2)
                begin, end = config.scale_starts[scale + 1 : scale + 3]
                x = (model.word_embed(inputs) + places[:, begin:end]).repeat(2, 1, 1)
        self.cached = []
        tokenizer = self.tokenizer
        images = tokenizer.decoder(tokenizer.post_quant_conv(f_hat.to(tokenizer.post_quant_conv.weight.dtype)))
        images = images.clamp(-1, 1).float().add(1).mul(0.5)
        return torch.cat(drawn, 1), images


def _draw(logits: Tensor, top_k: int, top_p: float, generator: torch.Generator) -> Tensor:
    batch, length, vocab = logits.shape
    if top_k > 0:
        least = logits.topk(top_k, largest=True, sorted=False, dim=-1)[0].amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        ascending, where = logits.sort(dim=-1, descending=False)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1:] = False
        logits = logits.masked_fill(drop.scatter(where.ndim - 1, where, drop), -math.inf)
    return torch.multinomial(logits.softmax(dim=-1).view(-1, vocab), 1, generator=generator).view(batch, length)
