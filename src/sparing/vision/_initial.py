"""The first weights of the networks here, from a seed."""

import math

import torch
from torch import nn

from sparing.errors import ArgumentError

__all__ = ["initialize_"]


def initialize_(model: nn.Module, seed: int) -> None:
    """Draws a network's first weights: all its convolutions in their order, then its linear layers.

    Convolutions get He's normal by the fan-out of a group (biases 0), linear layers a uniform one within
    ±1/√(inputs), biases too. Norms stay as they are; so does a network on the meta device.

    Args:
        model: its parameters on one device.
        seed: 0 or more.

    Raises:
        ArgumentError: another seed.

    Source: K. He et al., Delving Deep into Rectifiers, 2015, section 2.2.
    """
    if not 0 <= seed < 1 << 63:
        raise ArgumentError(f"seed: expected 0 to 2**63 - 1, got {seed}")
    device = next(model.parameters()).device
    if device.type == "meta":
        return
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
            nn.init.normal_(module.weight, 0, math.sqrt(2) / math.sqrt(fan_out), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(module.bias, -bound, bound, generator=generator)
