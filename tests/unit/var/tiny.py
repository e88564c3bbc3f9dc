"""Small models with weights that make every part count: the usual initial gates of 1e-3 would hide most of a model."""

import math

import torch

from sparing.var.config import TokenizerConfig, VARConfig
from sparing.var.pipeline import VARPipeline
from sparing.var.transformer import VARTransformer
from sparing.var.vqvae import VQVAE

SIX = (1, 2, 3, 4, 6, 8)
FIVE = (1, 2, 3, 4, 5)


def scrambled(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=generator)
            if "scale_mul" in name:
                p.copy_(math.log(4) + 0.3 * r)
            elif p.ndim > 1 and "emb" not in name and "pos" not in name:
                p.copy_(r / math.sqrt(math.prod(p.shape[1:])) if "gss" not in name else 0.5 * r)
            elif p.ndim == 1 and "norm" in name and name.endswith("weight"):
                p.copy_(1 + 0.1 * r)
            else:
                p.copy_((0.1 if p.ndim == 1 else 0.5) * r)
    return model.eval()


def transformer_config(**changes):
    fields = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5, "vocab_size": 24, "z_channels": 8}
    return VARConfig(**{**fields, "patch_nums": SIX, **changes})


def tokenizer_config(**changes):
    fields = {"patch_nums": SIX, "vocab_size": 24, "z_channels": 8, "ch": 8, "ch_mult": (1, 2), "num_groups": 4}
    return TokenizerConfig(**{**fields, "num_res_blocks": 1, **changes})


def transformer(*, seed=0, **changes):
    return scrambled(VARTransformer(transformer_config(**changes)), seed)


def tokenizer(*, seed=1, **changes):
    return scrambled(VQVAE(tokenizer_config(**changes)), seed)


def pipeline(*, seed=0, patch_nums=SIX, **changes):
    parts = tokenizer(seed=seed + 1, patch_nums=patch_nums), transformer(seed=seed, patch_nums=patch_nums, **changes)
    return VARPipeline(*parts, class_names=("a", "b", "c", "d", "e"))


def inputs(config, *, batch=2, seed=3):
    generator = torch.Generator().manual_seed(seed)
    length = config.num_tokens - config.scale_sizes[0]
    return 0.5 * torch.randn(batch, length, config.z_channels, generator=generator)


def known_tokens():
    """Three images as tokens of the smallest model, and their labels."""
    generator = torch.Generator().manual_seed(8)
    return torch.randint(24, (3, 130), generator=generator), torch.tensor([4, 0, 5])


def windows(config, *, seed=0, choices=(-1, 0, 1, 2, 4, 9)):
    """Random widths for every layer, scale, windowed segment and head."""
    generator = torch.Generator().manual_seed(seed)

    def widths(scale):
        newest = {3: 2, 4: 3}.get(scale, scale - 2)
        if scale < 3:
            return None
        picks = torch.randint(len(choices), (newest, config.num_heads), generator=generator).tolist()
        return tuple(tuple(choices[n] for n in row) for row in picks)

    scales = range(len(config.patch_nums))
    return tuple(tuple(widths(scale) for scale in scales) for _ in range(config.depth))
