"""Weights from files: the released layouts from ``.pth`` or safetensors, strictly, with the settings read off them."""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparing.errors import ConfigError, DtypeError, FormatError, NonFiniteError
from sparing.runs.documents import validated
from sparing.var.config import (
    PATCH_NUMS_256,
    PATCH_NUMS_512,
    PATCH_NUMS_1024,
    TokenizerConfig,
    VARConfig,
)
from sparing.var.transformer import VARTransformer, levels_of
from sparing.var.vqvae import VQVAE

__all__ = ["load_state_", "read_state", "tokenizer_config", "tokenizer_from", "transformer_from", "var_config"]

_KNOWN_PATCH_NUMS = (PATCH_NUMS_256, PATCH_NUMS_512, PATCH_NUMS_1024)
_MASK = "attn_bias_for_masking"
_HITS = "quantize.ema_vocab_hit_SV"
_SHOWN = 6
_MISFITS = (KeyError, ValueError, IndexError, ZeroDivisionError)
"""What reading settings off tensors of other models meets."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads named tensors.

    Args:
        path: ``.safetensors``, or ``.pth`` / ``.pt`` / ``.bin`` read without running any code that it may hold.

    Returns:
        Name to tensor, on the CPU.

    Raises:
        FormatError: truncated, altered, or not a file of tensors.
        OSError: the file cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file.name}: no such file")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with file.open("rb") as opened:
            state = torch.load(opened, map_location="cpu", weights_only=True)
    # The unpickler raises what it meets in a damaged file, an OSError for a seek to nowhere among it.
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise FormatError(f"{file.name}: not a readable file of tensors: {error}") from None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise FormatError(f"{file.name}: expected a flat mapping from names to tensors")
    return state


def var_config(state: Mapping[str, Tensor], patch_nums: Sequence[int] | None = None) -> VARConfig:
    """Reads a transformer's settings off its tensors.

    Args:
        state: name to tensor in the released layout.
        patch_nums: side of each scale; None takes the released schedule with as many scales and tokens.

    Raises:
        FormatError: a tensor is missing that every transformer has.
        ConfigError: no released schedule fits and none was given.
    """
    try:
        num_scales, num_tokens = state["lvl_embed.weight"].shape[0], state["pos_1LC"].shape[1]
        vocab_size, embed_dim = state["head.weight"].shape
        depth = 1 + max(int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key)))
        factors = state.get("blocks.0.attn.scale_mul_1H11")
        fields = {
            "depth": depth,
            "embed_dim": embed_dim,
            "num_heads": embed_dim // 64 if factors is None else factors.shape[1],
            "num_classes": state["class_emb.weight"].shape[0] - 1,
            "vocab_size": vocab_size,
            "z_channels": state["word_embed.weight"].shape[1],
            "mlp_ratio": state["blocks.0.ffn.fc1.weight"].shape[0] / embed_dim,
            "shared_adaln": "shared_ada_lin.1.weight" in state,
            "l2_norm": factors is not None,
        }
    except _MISFITS as error:
        raise FormatError(f"state: not a VAR transformer in the released layout: {_said(error)}") from None
    if patch_nums is None:
        fits = [p for p in _KNOWN_PATCH_NUMS if (len(p), sum(n * n for n in p)) == (num_scales, num_tokens)]
        if not fits:
            raise ConfigError(
                f"patch_nums: no released schedule has {num_scales} scales and {num_tokens} tokens; give patch_nums"
            )
        patch_nums = fits[0]
    return validated(VARConfig, {**fields, "patch_nums": tuple(patch_nums)})


def tokenizer_config(
    state: Mapping[str, Tensor], patch_nums: Sequence[int] = PATCH_NUMS_256, *, num_groups: int = 32
) -> TokenizerConfig:
    """Reads a tokenizer's settings off its tensors.

    Args:
        state: name to tensor in the released layout.
        patch_nums: side of each scale; the released tokenizer serves 256² and 512².
        num_groups: of the group norms, which no tensor shows.

    Raises:
        FormatError: a tensor is missing that every tokenizer has.
    """

    def count(pattern: str) -> int:
        return 1 + max((int(m[1]) for key in state if (m := re.match(pattern, key))), default=-1)

    try:
        levels = count(r"encoder\.down\.(\d+)\.")
        ch = state["encoder.conv_in.weight"].shape[0]
        widths = [state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
        vocab_size, z_channels = state["quantize.embedding.weight"].shape
        multiples = tuple(width // ch for width in widths)
    except _MISFITS as error:
        raise FormatError(f"state: not a VQVAE in the released layout: {_said(error)}") from None
    return validated(
        TokenizerConfig,
        {
            "patch_nums": tuple(patch_nums),
            "vocab_size": vocab_size,
            "z_channels": z_channels,
            "ch": ch,
            "ch_mult": multiples,
            "num_res_blocks": count(r"encoder\.down\.0\.block\.(\d+)\."),
            "use_attention": count(rf"encoder\.down\.{levels - 1}\.attn\.(\d+)\.") > 0,
            "num_phi": count(r"quantize\.quant_resi\.qresi_ls\.(\d+)\."),
            "num_groups": num_groups,
        },
    )


def transformer_from(
    state: Mapping[str, Tensor],
    *,
    config: VARConfig | None = None,
    patch_nums: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> VARTransformer:
    """Builds a transformer around loaded tensors, without copying those that have the wanted dtype.

    Args:
        state: name to tensor in the released layout.
        config: settings; None reads them off the tensors.
        patch_nums: side of each scale, for schedules other than the released ones.
        dtype: of the weights; None leaves them.

    Raises:
        FormatError: missing or unknown names, other shapes, or buffers that contradict the settings.
        ConfigError: settings that do not fit.
        NonFiniteError: NaN or infinity among the weights.
    """
    config = config or var_config(state, patch_nums)
    state = dict(state)
    mask = state.pop(_MASK, None)
    with torch.device("meta"):
        model = VARTransformer(config)
    load_state_(model, state, dtype=dtype)
    levels = levels_of(config)[None]
    if not torch.equal(model.lvl_1L, levels):
        raise FormatError(f"lvl_1L: does not belong to patch_nums {config.patch_nums}; give the model's own")
    if mask is not None:
        length = config.num_tokens
        fits = mask.shape == (1, 1, length, length)
        if not fits or not torch.equal(mask[0, 0] == 0, levels[0, :, None] >= levels[0, None, :]):
            raise FormatError(f"{_MASK}: does not belong to patch_nums {config.patch_nums}; give the model's own")
    return model


def tokenizer_from(
    state: Mapping[str, Tensor],
    *,
    config: TokenizerConfig | None = None,
    patch_nums: Sequence[int] = PATCH_NUMS_256,
    num_groups: int = 32,
    dtype: torch.dtype | None = None,
) -> VQVAE:
    """Builds a tokenizer around loaded tensors.

    Args:
        state: name to tensor in the released layout.
        config: settings; None reads them off the tensors.
        patch_nums: side of each scale, where `config` is None.
        num_groups: of the group norms, which no tensor shows, where `config` is None.
        dtype: of the weights; None leaves them.

    Raises:
        FormatError, ConfigError, NonFiniteError: as :func:`transformer_from`.
    """
    config = config or tokenizer_config(state, patch_nums, num_groups=num_groups)
    state = dict(state)
    hits = state.get(_HITS)
    if hits is not None and hits.shape[:1] != (len(config.patch_nums),):
        # Counts of the training's own scales mean nothing for another number of them.
        state[_HITS] = torch.zeros(len(config.patch_nums), config.vocab_size)
    with torch.device("meta"):
        model = VQVAE(config)
    load_state_(model, state, dtype=dtype)
    return model


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else f"tensors of odd shapes: {error}"


def load_state_(model: nn.Module, state: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Gives a model its tensors, all of them and no others.

    Args:
        model: may be on the meta device.
        state: name to tensor.
        dtype: of floating-point tensors; None leaves them.

    Raises:
        FormatError: missing or unknown names, or other shapes.
        DtypeError: integers where numbers are expected, or floats of 8 bits.
        NonFiniteError: NaN or infinity. The model is unchanged in all these cases.
    """
    expected = model.state_dict()
    for what, names in (("is missing", set(expected) - set(state)), ("is unknown", set(state) - set(expected))):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN))
            raise FormatError(f"state: {shown} {what} in a {type(model).__name__} of these settings")
    ready = {}
    for name, given in state.items():
        tensor = given
        if tensor.shape != expected[name].shape:
            raise FormatError(f"{name}: expected shape {tuple(expected[name].shape)}, got {tuple(tensor.shape)}")
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise DtypeError(f"{name}: expected {expected[name].dtype}, got {tensor.dtype}")
        if tensor.is_floating_point():
            if tensor.dtype not in _FLOATS:
                raise DtypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(f"{name}: NaN or infinity among the weights; the file is damaged")
            tensor = tensor.to(dtype or tensor.dtype)
        ready[name] = tensor
    model.load_state_dict(ready, assign=True)
    model.eval()
