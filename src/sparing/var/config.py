"""What a model is made of: the tokenizer's and the transformer's settings, and those of the released models.

| paper's symbol | name here |
|---|---|
| (h_1, w_1) … (h_K, w_K) | ``patch_nums``: the side of each scale's token map |
| V, C (of the codebook) | ``vocab_size``, ``z_channels`` |
| C, d, H (of the transformer) | ``embed_dim``, ``depth``, ``num_heads`` |
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparing.errors import ArgumentError, ConfigError

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "LINEAR_KINDS",
    "PATCH_NUMS_1024",
    "PATCH_NUMS_256",
    "PATCH_NUMS_512",
    "RELEASED",
    "TokenizerConfig",
    "VARConfig",
    "linear_names",
    "released_config",
]

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
PATCH_NUMS_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
LINEAR_KINDS = ("word_embed", "qkv", "proj", "fc1", "fc2", "ada_lin", "head")
"""The kinds of linear layers that a plan can round."""

_HEAD_DIM = 64


# Bounds far beyond any model, so that a damaged file is refused before anything of its size is made.
_Positive = Annotated[int, Field(ge=1, le=2**16)]
_Few = Annotated[int, Field(ge=1, le=2**10)]
_MAX_TOKENS = 2**20
PatchNums = Annotated[tuple[_Positive, ...], Field(min_length=1)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_growth(patch_nums: tuple[int, ...]) -> None:
    if any(a >= b for a, b in pairwise(patch_nums)):
        raise ValueError(f"patch_nums: expected sides that grow from scale to scale, got {patch_nums}")
    if sum(side * side for side in patch_nums) > _MAX_TOKENS:
        raise ValueError(f"patch_nums: expected at most {_MAX_TOKENS} tokens, got {patch_nums}")


class TokenizerConfig(_Config):
    """The multi-scale VQVAE; the defaults are the released one.

    Attributes:
        patch_nums: side of each scale's token map; the last is the side of the latent.
        vocab_size: number of codes.
        z_channels: length of a code.
        ch: channels of the widest level.
        ch_mult: multiple of `ch` at each level; each level but the last halves the side.
        num_res_blocks: residual blocks a level (one more in the decoder).
        use_attention: self-attention at the lowest level (the middle always has it).
        num_phi: convolutions shared by the scales.
        num_groups: groups of each group norm; `ch` is a multiple of it.
        commitment: weight of the commitment loss.
    """

    patch_nums: PatchNums = PATCH_NUMS_256
    vocab_size: Annotated[int, Field(ge=2, le=65536)] = 4096
    z_channels: _Positive = 32
    ch: _Positive = 160
    ch_mult: Annotated[tuple[_Few, ...], Field(min_length=1, max_length=16)] = (1, 1, 2, 2, 4)
    num_res_blocks: _Few = 2
    use_attention: bool = True
    num_phi: _Few = 4
    num_groups: _Positive = 32
    commitment: Annotated[float, Field(ge=0)] = 0.25

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_growth(self.patch_nums)
        if self.ch % self.num_groups:
            raise ValueError(f"ch: expected a multiple of num_groups = {self.num_groups}, got {self.ch}")
        return self

    @property
    def downsampling(self) -> int:
        """Image pixels a latent pixel, along one side."""
        return 1 << (len(self.ch_mult) - 1)

    @property
    def image_size(self) -> int:
        """Side of the image in pixels."""
        return self.patch_nums[-1] * self.downsampling


class VARConfig(_Config):
    """The transformer.

    Attributes:
        depth: number of blocks.
        embed_dim: width.
        num_heads: attention heads.
        num_classes: classes; one more embedding stands for "unconditional".
        vocab_size: number of codes of the tokenizer.
        z_channels: length of a code.
        patch_nums: side of each scale's token map.
        mlp_ratio: width of the feed-forward's inside over `embed_dim`.
        shared_adaln: one adaptive layer norm for all blocks, with a learned offset each (as in d36-s).
        l2_norm: q and k are normalised and a learned factor takes the place of 1/sqrt(head_dim).
        class_dropout: share of training samples without their class.
    """

    depth: _Few
    embed_dim: _Positive
    num_heads: _Positive
    num_classes: Annotated[int, Field(ge=1, le=2**24)] = 1000
    vocab_size: Annotated[int, Field(ge=2, le=65536)] = 4096
    z_channels: _Positive = 32
    patch_nums: PatchNums = PATCH_NUMS_256
    mlp_ratio: Annotated[float, Field(gt=0, le=2**10)] = 4.0
    shared_adaln: bool = False
    l2_norm: bool = True
    class_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_growth(self.patch_nums)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim: expected a multiple of num_heads = {self.num_heads}, got {self.embed_dim}")
        return self

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Width of the feed-forward's inside."""
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def scale_sizes(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(p * p for p in self.patch_nums)

    @property
    def scale_starts(self) -> tuple[int, ...]:
        """Position of each scale's first token, and the number of all tokens at the end."""
        starts = [0]
        for size in self.scale_sizes:
            starts.append(starts[-1] + size)
        return tuple(starts)

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        return self.scale_starts[-1]


def linear_names(config: VARConfig, kinds: Iterable[str] = LINEAR_KINDS) -> list[str]:
    """Returns the names of the linear layers of some kinds, in the order of the computation.

    Raises:
        ArgumentError: an unknown kind.
    """
    kinds = tuple(kinds)
    if unknown := set(kinds) - set(LINEAR_KINDS):
        raise ArgumentError(f"kinds: expected some of {LINEAR_KINDS}, got {sorted(unknown)}")
    in_blocks = [kind for kind in ("ada_lin", "qkv", "proj", "fc1", "fc2") if kind in kinds]
    if config.shared_adaln and "ada_lin" in in_blocks:
        in_blocks.remove("ada_lin")
    names = ["word_embed"] if "word_embed" in kinds else []
    names += [f"blocks.{i}.{kind}" for i in range(config.depth) for kind in in_blocks]
    return names + (["head"] if "head" in kinds else [])


def _released(depth: int, **changes: Any) -> VARConfig:
    return VARConfig(depth=depth, embed_dim=_HEAD_DIM * depth, num_heads=depth, **changes)


RELEASED: dict[str, VARConfig] = {
    "d16": _released(16),
    "d20": _released(20),
    "d24": _released(24),
    "d30": _released(30),
    "d36-s": _released(36, patch_nums=PATCH_NUMS_512, shared_adaln=True),
}
"""The released transformers, by the names that their authors use."""


def released_config(name: str) -> VARConfig:
    """Returns the settings of a released transformer.

    Args:
        name: ``"d16"``, ``"d20"``, ``"d24"``, ``"d30"`` or ``"d36-s"``.

    Raises:
        ConfigError: another name.
    """
    try:
        return RELEASED[name]
    except KeyError:
        raise ConfigError(f"name: expected one of {', '.join(RELEASED)}, got {name!r}") from None
