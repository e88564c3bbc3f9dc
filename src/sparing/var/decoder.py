"""A tokenizer's decoder made ready to draw images: in the plan's numbers, and only a few images at once."""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from sparing.quant import Int8Conv2d
from sparing.var.plan import CompressionPlan
from sparing.var.vqvae import VQVAE

__all__ = ["ImageDecoder"]

_PIXELS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 20}
"""Activations take the most memory here; more images at once are no faster on a CPU."""


class ImageDecoder(nn.Module):
    """Draws images.

    Args:
        tokenizer: the model; what the plan leaves is shared and not copied.
        plan: with 8 bits for the decoder, all convolutions but the first and the last have integer products.
    """

    def __init__(self, tokenizer: VQVAE, *, plan: CompressionPlan | None = None) -> None:
        super().__init__()
        # Not registered: this module's own memory is its layers.
        object.__setattr__(self, "tokenizer", tokenizer)
        self.tokenizer: VQVAE
        bits = None if plan is None or plan.precision is None else plan.precision.decoder_bits
        self.decoder: nn.Module = tokenizer.decoder
        if bits is not None:
            self.decoder = _with_int8(tokenizer.decoder)
            self.decoder.conv_in, self.decoder.conv_out = tokenizer.decoder.conv_in, tokenizer.decoder.conv_out

    @torch.inference_mode()
    def forward(self, f_hat: Tensor) -> Tensor:
        """Draws images from summed-up codes.

        Args:
            f_hat: (B, z, p, p) float.

        Returns:
            (B, 3, side, side) uint8.
        """
        side, device = self.tokenizer.config.image_size, f_hat.device
        at_once = max(1, _PIXELS_AT_ONCE.get(device.type, _PIXELS_AT_ONCE["cuda"]) // side**2)
        images = torch.empty(len(f_hat), 3, side, side, dtype=torch.uint8, device=device)
        for start in range(0, len(f_hat), at_once):
            part = slice(start, start + at_once)
            drawn = self.decoder(self.tokenizer.before_decoder(f_hat[part])).float()
            # The pixels of a value outside [−1, 1] are those of the nearest inside.
            images[part] = drawn.add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        return images

    def free_original_(self) -> int:
        """Empties the tokenizer's weights for which this decoder has others.

        Returns:
            How many bytes that frees.
        """
        freed = 0
        for original, ours in zip(self.tokenizer.decoder.modules(), self.decoder.modules(), strict=True):
            if isinstance(ours, Int8Conv2d):
                weight = cast("Tensor", original.weight)
                freed += weight.nbytes
                weight.data = weight.data.new_empty(0)
        return freed


def _with_int8(module: nn.Module) -> nn.Module:
    """A copy with integer convolutions that shares all else."""
    if isinstance(module, nn.Conv2d):
        return Int8Conv2d.from_conv2d(module)
    twin = copy.copy(module)
    twin._modules = {name: part if part is None else _with_int8(part) for name, part in module._modules.items()}
    return twin
