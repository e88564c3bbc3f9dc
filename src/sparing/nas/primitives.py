"""The primitives that cells choose from, as modules that keep the number of channels.

=======  =====================================================================================================
name     what it is, of stride s
=======  =====================================================================================================
none     zeros
max3     max-pool 3 × 3
avg3     average-pool 3 × 3, borders not counted
skip     the input itself; of stride 2 a factorized reduction: relu, two 1 × 1 convolutions on shifted grids, bn
sep3, 5  twice relu, depthwise k × k, pointwise 1 × 1, bn; the first depthwise has the stride
dil3, 5  once the same, with dilation 2
rcb3, 5  relu, convolution k × k, bn
conv1    a bare convolution 1 × 1 with bias
=======  =====================================================================================================

Each convolution but ``conv1`` is without bias and followed by a batch norm, except the depthwise ones. Nothing is
changed in place, so that hooks see what each layer gave. Source: FTT-NAS's public code; H. Liu et al., *DARTS*, 2019.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparing.errors import ArgumentError
from sparing.nas.genotype import WEIGHT_PRIMITIVES

__all__ = ["FactorizedReduction", "ReluConvNorm", "Zero", "make_primitive"]


class Zero(nn.Module):
    """Gives zeros: the connection that is not there.

    Args:
        stride: 1 or 2.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps `n × c × h × w` to zeros, `n × c × ⌈h/stride⌉ × ⌈w/stride⌉`."""
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduction(nn.Module):
    """Halves the size: half of the channels from the even pixels, half from the odd ones, by 1 × 1 convolutions.

    Args:
        channels: in and out, 2 or more.
        affine: of the batch norm.
    """

    def __init__(self, channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels, channels - channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `n × c × h × w` to `n × c × ⌈h/2⌉ × ⌈w/2⌉`."""
        x = self.relu(x)
        # An odd size has one odd pixel less than even ones: zeros stand in.
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        return self.bn(torch.cat([self.even(x), self.odd(shifted)], 1))  # type: ignore[no-any-return]


class ReluConvNorm(nn.Sequential):
    """Relu, convolution, batch norm: the primitives ``rcb3`` and ``rcb5``, and what preprocesses a cell's inputs.

    Args:
        in_channels: channels that come in.
        channels: channels that go out.
        kernel: odd.
        stride: 1 or 2.
        affine: of the batch norm.
    """

    def __init__(self, in_channels: int, channels: int, *, kernel: int, stride: int = 1, affine: bool = True) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)


def make_primitive(name: str, channels: int, stride: int, *, affine: bool = True) -> nn.Module:
    """Builds a primitive.

    Args:
        name: of :data:`~sparing.nas.genotype.WEIGHT_PRIMITIVES`.
        channels: in and out, 2 or more.
        stride: 1 or 2.
        affine: whether batch norms have factors and offsets; a supernet's have none.

    Returns:
        A module that maps `n × channels × h × w` to `n × channels × ⌈h/stride⌉ × ⌈w/stride⌉`.

    Raises:
        ArgumentError: no such primitive, stride or number of channels.
    """
    if name not in WEIGHT_PRIMITIVES:
        raise ArgumentError(f"name: expected one of {', '.join(WEIGHT_PRIMITIVES)}, got {name!r}")
    if stride not in (1, 2):
        raise ArgumentError(f"stride: expected 1 or 2, got {stride}")
    if channels < 2:
        raise ArgumentError(f"channels: expected 2 or more, got {channels}")
    kind, kernel = (name[:-1], int(name[-1])) if name[-1].isdigit() else (name, 1)
    if kind == "none":
        return Zero(stride)
    if kind == "skip":
        return nn.Identity() if stride == 1 else FactorizedReduction(channels, affine=affine)
    if kind == "max":
        return nn.MaxPool2d(kernel, stride=stride, padding=1)
    if kind == "avg":
        return nn.AvgPool2d(kernel, stride=stride, padding=1, count_include_pad=False)
    if kind == "rcb":
        return ReluConvNorm(channels, channels, kernel=kernel, stride=stride, affine=affine)
    if kind == "conv":
        return nn.Conv2d(channels, channels, kernel, stride=stride)
    if kind == "dil":
        return nn.Sequential(*_separable(channels, kernel, stride, 2, affine))
    return nn.Sequential(*_separable(channels, kernel, stride, 1, affine), *_separable(channels, kernel, 1, 1, affine))


def _separable(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(
            channels, channels, kernel, stride=stride, padding=padding, dilation=dilation, groups=channels, bias=False
        ),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]
