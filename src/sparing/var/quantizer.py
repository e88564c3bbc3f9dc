"""The multi-scale residual quantizer: a latent as token maps of growing side, each coding what the last ones left.

K. Tian et al., *Visual Autoregressive Modeling*, 2024, section 3.2, algorithms 1 and 2.

| paper's symbol | name here |
|---|---|
| f, f̂ | ``latent``, ``f_hat``: (B, z, p, p) with p the last of ``patch_nums`` |
| r_k | ``tokens[k]``: (B, patch_nums[k]²), int64 |
| Z | ``embedding``: (V, z) |
| φ_k | ``quant_resi``: a few convolutions that the scales share |
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparing.errors import ShapeError
from sparing.var.config import TokenizerConfig

__all__ = ["MultiScaleQuantizer", "QuantizerOutput", "phi_table"]

# Float32 and float64 disagree about ties at ten scales, so the released model's own table is kept.
_PHI_TABLE_10 = (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
_PHI_RATIO = 0.5


class QuantizerOutput(NamedTuple):
    """What a training pass of the quantizer gives: f_hat (with gradients straight through), loss, tokens a scale."""

    f_hat: Tensor
    loss: Tensor
    tokens: list[Tensor]


def phi_table(num_scales: int, num_phi: int) -> tuple[int, ...]:
    """Which shared convolution each scale uses.

    Args:
        num_scales: number of scales, at least 1.
        num_phi: number of convolutions, at least 1.

    Returns:
        An index for each scale; for ten scales and four convolutions the released model's.
    """
    if (num_scales, num_phi) == (len(_PHI_TABLE_10), 4):
        return _PHI_TABLE_10
    ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi)
    places = [scale / max(num_scales - 1, 1) for scale in range(num_scales)]
    return tuple(int(np.argmin(np.abs(ticks - place))) for place in places)


class _Phi(nn.Conv2d):
    """Half the input, half its 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Conv2d)
        return input.lerp(super().forward(input).to(input.dtype), _PHI_RATIO)


class _SharedPhi(nn.Module):
    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(_Phi(config.z_channels) for _ in range(config.num_phi))
        self.table = phi_table(len(config.patch_nums), config.num_phi)

    def forward(self, h: Tensor, scale: int) -> Tensor:
        out: Tensor = self.qresi_ls[self.table[scale]](h)
        return out


class MultiScaleQuantizer(nn.Module):
    """Codes a latent scale by scale, and adds the scales up again.

    Args:
        config: the tokenizer's settings.
    """

    ema_vocab_hit_SV: Tensor  # noqa: N815 (the released files' name)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.patch_nums = config.patch_nums
        self.z_channels = config.z_channels
        self.commitment = config.commitment
        self.embedding = nn.Embedding(config.vocab_size, config.z_channels)
        self.quant_resi = _SharedPhi(config)
        # How often each code was used in training: only carried along.
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(config.patch_nums), config.vocab_size))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Finds the code nearest to each vector by L2 distance.

        Args:
            vectors: (n, z) float.

        Returns:
            (n,) int64; the first of equally near codes.
        """
        codes = self.embedding.weight
        distance = torch.addmm(
            vectors.square().sum(1, keepdim=True) + codes.square().sum(1), vectors, codes.T, alpha=-2
        )
        return distance.argmin(1)

    def upsampled(self, tokens: Tensor, scale: int) -> Tensor:
        """What a scale's tokens add to f_hat.

        Args:
            tokens: (B, patch_nums[scale]²) int64.
            scale: index of the scale.

        Returns:
            (B, z, p, p) float.
        """
        side = self.patch_nums[scale]
        if tokens.ndim != 2 or tokens.shape[1] != side * side:
            raise ShapeError(f"tokens: expected (B, {side * side}) for scale {scale}, got {tuple(tokens.shape)}")
        h = self.embedding(tokens).transpose(1, 2).reshape(tokens.shape[0], self.z_channels, side, side)
        if scale < len(self.patch_nums) - 1:
            h = F.interpolate(h, size=(self.patch_nums[-1],) * 2, mode="bicubic")
        out: Tensor = self.quant_resi(h.contiguous(), scale)
        return out

    def downsampled(self, f: Tensor, scale: int) -> Tensor:
        """Averages a latent down to a scale's side.

        Args:
            f: (B, z, p, p).
            scale: index of the scale.

        Returns:
            (B, z, patch_nums[scale], patch_nums[scale]).
        """
        if scale == len(self.patch_nums) - 1:
            return f
        return F.interpolate(f, size=(self.patch_nums[scale],) * 2, mode="area")

    @torch.no_grad()
    def encode(self, latent: Tensor) -> list[Tensor]:
        """Codes a latent.

        Args:
            latent: (B, z, p, p) float32.

        Returns:
            For each scale (B, side²) int64.
        """
        rest, tokens = latent.clone(), []
        for scale in range(len(self.patch_nums)):
            tokens.append(self._nearest_map(rest, scale))
            rest -= self.upsampled(tokens[-1], scale)
        return tokens

    @torch.no_grad()
    def residual_vectors(self, latent: Tensor) -> list[Tensor]:
        """What each scale has to code: the averages of what the scales before it left.

        Args:
            latent: (B, z, p, p) float32.

        Returns:
            For each scale (B·side², z).
        """
        rest, vectors = latent.clone(), []
        for scale in range(len(self.patch_nums)):
            vectors.append(self._vectors(rest, scale))
            rest -= self.upsampled(self.nearest(vectors[-1]).view(len(latent), -1), scale)
        return vectors

    def decode(self, tokens: Sequence[Tensor]) -> Tensor:
        """Adds up the scales.

        Args:
            tokens: for each scale, or only the first ones, (B, side²) int64.

        Returns:
            f_hat, (B, z, p, p) float.
        """
        f_hat = self.upsampled(tokens[0], 0)
        for scale in range(1, len(tokens)):
            f_hat = f_hat + self.upsampled(tokens[scale], scale)
        return f_hat

    def next_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """What the transformer reads after the first token when it is taught with known tokens.

        Args:
            tokens: for each scale (B, side²) int64; the last scale is not read.

        Returns:
            (B, L − patch_nums[0]², z) float: for each scale after the first, f_hat so far, averaged to its side.
        """
        inputs: list[Tensor] = []
        f_hat: Tensor | None = None
        for scale in range(len(self.patch_nums) - 1):
            added = self.upsampled(tokens[scale], scale)
            f_hat = added if f_hat is None else f_hat + added
            inputs.append(self.downsampled(f_hat, scale + 1).flatten(2).transpose(1, 2))
        if not inputs:
            return torch.empty(len(tokens[0]), 0, self.z_channels, device=tokens[0].device)
        return torch.cat(inputs, 1)

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """Codes a latent with the losses that train codes and encoder.

        Args:
            latent: (B, z, p, p) float.

        Returns:
            f_hat with the gradient passed straight through to `latent`; the mean over the scales of
            ``commitment``·mse(sg(f_hat), f) + mse(f_hat, sg(f)); the tokens.
        """
        target = latent.detach()
        rest, f_hat = target.clone(), torch.zeros_like(target)
        loss, tokens = latent.new_zeros(()), []
        for scale in range(len(self.patch_nums)):
            tokens.append(self._nearest_map(rest, scale))
            added = self.upsampled(tokens[-1], scale)
            f_hat = f_hat + added
            rest = rest - added.detach()
            loss = loss + self.commitment * F.mse_loss(f_hat.detach(), latent) + F.mse_loss(f_hat, target)
        straight = latent + (f_hat - latent).detach()
        return QuantizerOutput(straight, loss / len(self.patch_nums), tokens)

    @torch.no_grad()
    def _nearest_map(self, rest: Tensor, scale: int) -> Tensor:
        return self.nearest(self._vectors(rest, scale)).view(len(rest), -1)

    def _vectors(self, rest: Tensor, scale: int) -> Tensor:
        return self.downsampled(rest, scale).permute(0, 2, 3, 1).reshape(-1, self.z_channels).float()
