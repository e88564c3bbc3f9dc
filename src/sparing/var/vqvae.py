"""The tokenizer: a convolutional encoder and decoder around the multi-scale quantizer, in the released layout.

K. Tian et al., *Visual Autoregressive Modeling*, 2024, section 3.2; the networks follow VQGAN (P. Esser et al., 2021).
Names of parts are those of the released files, so that these load unchanged.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparing.errors import ArgumentError, ShapeError
from sparing.quant import Int8Conv2d
from sparing.var.config import TokenizerConfig
from sparing.var.quantizer import MultiScaleQuantizer, QuantizerOutput

__all__ = ["VQVAE"]

_NORM_EPS = 1e-6


def _norm(channels: int, num_groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups, channels, eps=_NORM_EPS)


def _activated(norm: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
    """Norm, SiLU, convolution."""
    is_integer = isinstance(conv, Int8Conv2d) and isinstance(norm, nn.GroupNorm)
    out: Tensor = conv(x, norm=norm, silu=True) if is_integer else conv(F.silu(norm(x)))
    return out


class _ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, num_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, num_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = _activated(self.norm1, self.conv1, x)
        h = _activated(self.norm2, self.conv2, h)
        out: Tensor = self.nin_shortcut(x) + h
        return out


class _Attention(nn.Module):
    def __init__(self, channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, num_groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, 2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(h)
        return out


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class _Level(nn.Module):
    """Residual blocks of one resolution, with attention after each at the lowest."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_blocks: int, attention: bool, num_groups: int
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_blocks - 1)
        self.block = nn.ModuleList(_ResidualBlock(channels, out_channels, num_groups=num_groups) for channels in inputs)
        num_attentions = num_blocks if attention else 0
        self.attn = nn.ModuleList(_Attention(out_channels, num_groups=num_groups) for _ in range(num_attentions))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        x = self.downsample(x)
        out: Tensor = self.upsample(x)
        return out


def _level(config: TokenizerConfig, i: int, in_channels: int, *, num_blocks: int) -> _Level:
    lowest = i == len(config.ch_mult) - 1
    return _Level(
        in_channels,
        config.ch * config.ch_mult[i],
        num_blocks=num_blocks,
        attention=lowest and config.use_attention,
        num_groups=config.num_groups,
    )


class _Middle(nn.Module):
    def __init__(self, channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.block_1 = _ResidualBlock(channels, channels, num_groups=num_groups)
        self.attn_1 = _Attention(channels, num_groups=num_groups)
        self.block_2 = _ResidualBlock(channels, channels, num_groups=num_groups)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class _Encoder(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            before = widths[i - 1] if i else config.ch
            level = _level(config, i, before, num_blocks=config.num_res_blocks)
            if not lowest:
                level.downsample = _Downsample(width)
            self.down.append(level)
        self.mid = _Middle(widths[-1], num_groups=config.num_groups)
        self.norm_out = _norm(widths[-1], config.num_groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return out


class _Decoder(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], num_groups=config.num_groups)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            before = width if lowest else widths[i + 1]
            level = _level(config, i, before, num_blocks=config.num_res_blocks + 1)
            if i:
                level.upsample = _Upsample(width)
            self.up.append(level)
        self.norm_out = _norm(widths[0], config.num_groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class VQVAE(nn.Module):
    """Turns images into token maps of growing side and back.

    Args:
        config: its settings; None for the released ones (108.9 M parameters).
    """

    def __init__(self, config: TokenizerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TokenizerConfig()
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = MultiScaleQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)

    def latent(self, images: Tensor) -> Tensor:
        """Encodes images without quantizing.

        Args:
            images: (B, 3, side, side) float in [−1, 1].

        Returns:
            (B, z, p, p) in the dtype of the weights.

        Raises:
            ShapeError: images of another size than the settings name.
        """
        side = self.config.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, side, side):
            raise ShapeError(f"images: expected (B, 3, {side}, {side}), got {tuple(images.shape)}")
        out: Tensor = self.quant_conv(self.encoder(images.to(self.quant_conv.weight.dtype)))
        return out

    def encode(self, images: Tensor) -> list[Tensor]:
        """Turns images into tokens.

        Args:
            images: (B, 3, side, side) float in [−1, 1].

        Returns:
            For each scale (B, side²) int64.

        Raises:
            ShapeError: images of another size than the settings name.
        """
        return self.quantize.encode(self.latent(images).float())

    def decode(self, f_hat: Tensor) -> Tensor:
        """Draws images from summed-up codes.

        Args:
            f_hat: (B, z, p, p) float.

        Returns:
            (B, 3, side, side) float in [−1, 1].
        """
        out: Tensor = self.decoder(self.before_decoder(f_hat))
        return out.clamp(-1, 1)

    def before_decoder(self, f_hat: Tensor) -> Tensor:
        """Returns what the decoder takes, (B, z, p, p) in the dtype of the weights, from summed-up codes."""
        # Channels last: several times less reordering inside convolutions.
        x = f_hat.to(self.post_quant_conv.weight.dtype, memory_format=torch.channels_last)
        out: Tensor = self.post_quant_conv(x)
        return out

    def decode_tokens(self, tokens: Sequence[Tensor]) -> Tensor:
        """Draws images from tokens.

        Args:
            tokens: for each scale, or only the first ones, (B, side²) int64 in 0..V−1.

        Returns:
            (B, 3, side, side) float in [−1, 1].

        Raises:
            ArgumentError: a token that is no code, no scale at all, or more than there are.
            ShapeError: another number of tokens than a scale has.
        """
        if not tokens:
            raise ArgumentError("tokens: expected at least one scale's tokens, got none")
        if len(tokens) > len(self.config.patch_nums):
            raise ArgumentError(f"tokens: expected at most {len(self.config.patch_nums)} scales, got {len(tokens)}")
        highest = max(int(t.max()) for t in tokens)
        lowest = min(int(t.min()) for t in tokens)
        if lowest < 0 or highest >= self.config.vocab_size:
            raise ArgumentError(
                f"tokens: expected 0..{self.config.vocab_size - 1}, got values from {lowest} to {highest}"
            )
        return self.decode(self.quantize.decode(tokens))

    def forward(self, images: Tensor) -> tuple[Tensor, QuantizerOutput]:
        """Reconstructs images with what training needs.

        Args:
            images: (B, 3, side, side) float in [−1, 1].

        Returns:
            The reconstruction, not clamped, and the quantizer's output.
        """
        latent = self.latent(images).float()
        # Residuals of residuals: half precision would change the codes.
        with torch.autocast(latent.device.type, enabled=False):
            quantized = self.quantize(latent)
        reconstruction: Tensor = self.decoder(self.post_quant_conv(quantized.f_hat))
        return reconstruction, quantized

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())
