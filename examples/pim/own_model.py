"""A small network of one's own, in plain PyTorch: nothing in it knows of crossbars.

It holds what networks are made of: residual blocks, a strided shortcut, a depthwise and a grouped convolution, norms,
pooling and a linear head. The command line takes it as it is::

    sparing pim report examples/pim/own_model.py:own_model --input 3,32,32 --crossbar 64
"""

from torch import Tensor, nn

__all__ = ["OwnModel", "own_model"]


class Residual(nn.Module):
    """Two 3×3 convolutions and a way past them; the second one may have groups."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y))
        return (y + self.shortcut(x)).relu()


class Separable(nn.Module):
    """A depthwise convolution, then one of 1×1 across channels, and a way past both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.depthwise(x)).relu()
        return (self.norm2(self.pointwise(y)) + x).relu()


class OwnModel(nn.Module):
    """Maps `n × 3 × 32 × 32` floats to `n × num_classes` logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.block1 = Separable(32)
        self.block2 = Residual(32, 64, stride=2)
        self.block3 = Residual(64, 128, stride=2, groups=4)
        self.block4 = Residual(128, 192)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(192, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.norm(self.stem(x)).relu())
        x = self.block4(self.block3(self.block2(x)))
        return self.head(self.pool(x).flatten(1))


def own_model(num_classes: int = 10) -> OwnModel:
    """The network with its first weights."""
    return OwnModel(num_classes)
