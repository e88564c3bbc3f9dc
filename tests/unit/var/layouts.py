"""Names and shapes of the released files, written down from their published table, not from our model."""

import torch

SCHEDULE_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCHEDULE_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
TRANSFORMERS = {"d16": (16, 310.3), "d20": (20, 600.9), "d24": (24, 1033.4), "d30": (30, 2010.0), "d36-s": (36, 2353.9)}
TOKENIZER_MILLIONS = 108.9
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV")


def transformer(name):
    """Name to shape of a released transformer."""
    depth, _ = TRANSFORMERS[name]
    shared, schedule = name.endswith("-s"), SCHEDULE_512 if name.endswith("-s") else SCHEDULE_256
    C, H, L = 64 * depth, depth, sum(p * p for p in schedule)
    shapes = {
        "word_embed.weight": (C, 32),
        "word_embed.bias": (C,),
        "class_emb.weight": (1001, C),
        "pos_start": (1, 1, C),
        "pos_1LC": (1, L, C),
        "lvl_embed.weight": (10, C),
        "lvl_1L": (1, L),
        "attn_bias_for_masking": (1, 1, L, L),
        "head_nm.ada_lin.1.weight": (2 * C, C),
        "head_nm.ada_lin.1.bias": (2 * C,),
        "head.weight": (4096, C),
        "head.bias": (4096,),
    }
    if shared:
        shapes |= {"shared_ada_lin.1.weight": (6 * C, C), "shared_ada_lin.1.bias": (6 * C,)}
    for i in range(depth):
        block = {
            "attn.scale_mul_1H11": (1, H, 1, 1),
            "attn.q_bias": (C,),
            "attn.v_bias": (C,),
            "attn.zero_k_bias": (C,),
            "attn.mat_qkv.weight": (3 * C, C),
            "attn.proj.weight": (C, C),
            "attn.proj.bias": (C,),
            "ffn.fc1.weight": (4 * C, C),
            "ffn.fc1.bias": (4 * C,),
            "ffn.fc2.weight": (C, 4 * C),
            "ffn.fc2.bias": (C,),
        }
        if shared:
            block |= {"ada_gss": (1, 1, 6, C)}
        else:
            block |= {"ada_lin.1.weight": (6 * C, C), "ada_lin.1.bias": (6 * C,)}
        shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
    return shapes


def _conv(name, inside, outside, side=3):
    return {f"{name}.weight": (outside, inside, side, side), f"{name}.bias": (outside,)}


def _norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _residual(name, inside, outside):
    shapes = _norm(f"{name}.norm1", inside) | _conv(f"{name}.conv1", inside, outside)
    shapes |= _norm(f"{name}.norm2", outside) | _conv(f"{name}.conv2", outside, outside)
    return shapes | (_conv(f"{name}.nin_shortcut", inside, outside, 1) if inside != outside else {})


def _attention(name, channels):
    shapes = _norm(f"{name}.norm", channels) | _conv(f"{name}.qkv", channels, 3 * channels, 1)
    return shapes | _conv(f"{name}.proj_out", channels, channels, 1)


def _middle(name, channels):
    shapes = _residual(f"{name}.block_1", channels, channels) | _attention(f"{name}.attn_1", channels)
    return shapes | _residual(f"{name}.block_2", channels, channels)


def tokenizer():
    """Name to shape of the released VQVAE: ch 160, ch_mult 1, 1, 2, 2, 4."""
    widths = [160, 160, 320, 320, 640]
    shapes = _conv("encoder.conv_in", 3, 160) | _conv("decoder.conv_in", 32, 640)
    for level, (before, width) in enumerate(zip([160, *widths], widths, strict=False)):
        for n in range(2):
            shapes |= _residual(f"encoder.down.{level}.block.{n}", width if n else before, width)
    for level, (before, width) in enumerate(zip([*widths[1:], 640], widths, strict=True)):
        for n in range(3):
            shapes |= _residual(f"decoder.up.{level}.block.{n}", width if n else before, width)
    for level in range(4):
        shapes |= _conv(f"encoder.down.{level}.downsample.conv", widths[level], widths[level])
        shapes |= _conv(f"decoder.up.{level + 1}.upsample.conv", widths[level + 1], widths[level + 1])
    for n in range(2):
        shapes |= _attention(f"encoder.down.4.attn.{n}", 640)
    for n in range(3):
        shapes |= _attention(f"decoder.up.4.attn.{n}", 640)
    shapes |= _middle("encoder.mid", 640) | _middle("decoder.mid", 640)
    shapes |= _norm("encoder.norm_out", 640) | _conv("encoder.conv_out", 640, 32)
    shapes |= _norm("decoder.norm_out", 160) | _conv("decoder.conv_out", 160, 3)
    shapes |= {"quantize.embedding.weight": (4096, 32), "quantize.ema_vocab_hit_SV": (10, 4096)}
    for n in range(4):
        shapes |= _conv(f"quantize.quant_resi.qresi_ls.{n}", 32, 32)
    return shapes | _conv("quant_conv", 32, 32) | _conv("post_quant_conv", 32, 32)


def count(shapes):
    """Trained values, in millions."""
    trained = [shape for name, shape in shapes.items() if name.rpartition(".")[2] not in BUFFERS]
    return sum(torch.Size(shape).numel() for shape in trained) / 1e6


def weights(shapes, *, seed=0):
    """Tensors of these shapes without their memory: one random row each, shown as often as is needed."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.rpartition(".")[2] not in BUFFERS:
            state[name] = (0.02 * torch.randn(shape[-1:], generator=generator)).expand(shape)
        elif name.endswith(("zero_k_bias", "ema_vocab_hit_SV")):
            state[name] = torch.zeros(1).expand(shape)
    if "lvl_1L" in shapes:
        schedule = SCHEDULE_256 if shapes["lvl_1L"] == (1, 680) else SCHEDULE_512
        levels = torch.cat([torch.full((p * p,), s) for s, p in enumerate(schedule)])
        state["lvl_1L"] = levels[None]
        mask = torch.where(levels[:, None] >= levels[None, :], 0.0, -torch.inf)
        state["attn_bias_for_masking"] = mask[None, None]
    return state
