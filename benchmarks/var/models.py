"""Models for timing: the released layouts with random weights, which say nothing about quality."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from sparing.var.config import TokenizerConfig, VARConfig, released_config
from sparing.var.pipeline import VARPipeline
from sparing.var.transformer import VARTransformer
from sparing.var.vqvae import VQVAE

TINY = VARConfig(depth=2, embed_dim=128, num_heads=2, vocab_size=256, z_channels=8)
TINY_TOKENIZER = TokenizerConfig(vocab_size=256, z_channels=8, ch=8, num_groups=4, num_res_blocks=1)


def random_pipeline(name: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> VARPipeline:
    """A pipeline of a released layout (or ``tiny``) with random weights; adaptive norms open, so that all parts act."""
    config = TINY if name == "tiny" else released_config(name)
    tokenizer = TINY_TOKENIZER if name == "tiny" else TokenizerConfig(patch_nums=config.patch_nums)
    torch.manual_seed(0)
    transformer, vqvae = VARTransformer(config), VQVAE(tokenizer)
    with torch.no_grad():
        torch.nn.init.normal_(vqvae.quantize.embedding.weight, std=0.5)
        transformer.head.weight.mul_(50)
        for block in transformer.layers():
            if not block.shared_adaln:
                cast("nn.Linear", block.ada_lin[1]).weight[: 2 * config.embed_dim].mul_(300)
    pipe = VARPipeline(vqvae, transformer)
    return pipe.to(device, dtype=dtype)
