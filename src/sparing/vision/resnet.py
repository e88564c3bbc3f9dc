"""Residual networks with torchvision's names of weights, for ImageNet and for small images.

====================  ===========================================
paper                 here
====================  ===========================================
basic block           :class:`BasicBlock`, two 3 × 3 convolutions
bottleneck            :class:`Bottleneck`, 1 × 1, 3 × 3, 1 × 1
conv2_x .. conv5_x    `layer1` .. `layer4`
projection shortcut   `downsample`, where size or width changes
====================  ===========================================

Source: K. He et al., Deep Residual Learning for Image Recognition, 2016. As in torchvision, the bottleneck halves the
image in its 3 × 3 convolution (often called v1.5) rather than in the first 1 × 1.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sparing.runs.documents import validated
from sparing.vision._initial import initialize_
from sparing.vision.stem import Stem

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "ResNetConfig",
    "resnet101",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnet8",
]


class ResNetConfig(BaseModel):
    """The architecture of a residual network; frozen, saved with its weights.

    Attributes:
        block: ``"basic"`` (two 3 × 3 convolutions) or ``"bottleneck"`` (1 × 1, 3 × 3, 1 × 1; 4 times as wide outside).
        layers: blocks in each stage, 1 to 8 stages of 1 to 256; each stage after the first halves the image.
        width: channels of the first stage (inside its blocks), 1 to 4096; each stage doubles them.
        num_classes: 1 to 1,000,000.
        stem: ``"imagenet"``: 7 × 7 of stride 2 and max-pooling; ``"cifar"``: 3 × 3 of stride 1, no pooling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: Literal["basic", "bottleneck"] = "basic"
    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=8)]
    width: Annotated[int, Field(ge=1, le=4096)] = 64
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    stem: Stem = "imagenet"


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut.

    Args:
        in_channels: channels that come in.
        channels: channels inside and out.
        stride: of the first convolution and of the shortcut.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, kernel=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = _conv(channels, channels, kernel=3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `n × in_channels × h × w` to `n × channels × h/stride × w/stride`."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + identity)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A 3 × 3 convolution between two 1 × 1, beside a shortcut; 4 times as wide outside as inside.

    Args:
        in_channels: channels that come in.
        channels: channels inside; a fourth of those that go out.
        stride: of the 3 × 3 convolution and of the shortcut.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = _conv(in_channels, channels, kernel=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv(channels, channels, kernel=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv(channels, out_channels, kernel=1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `n × in_channels × h × w` to `n × 4·channels × h/stride × w/stride`."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + identity)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A residual network whose state dict has torchvision's names (``layer1.0.conv1.weight``, ``fc.bias``, ...).

    Activations are never changed in place, so that a hook sees what each layer gave.

    Args:
        config: the architecture.
        seed: of the first weights (He initialisation), 0 or more. On the meta device there are none.

    Attributes:
        config: the architecture, as given.
        num_features: width of the penultimate features.
    """

    def __init__(self, config: ResNetConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        block = BasicBlock if config.block == "basic" else Bottleneck
        cifar = config.stem == "cifar"
        self.conv1 = _conv(3, config.width, kernel=3 if cifar else 7, stride=1 if cifar else 2)
        self.bn1 = nn.BatchNorm2d(config.width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, stride=2, padding=1)
        channels = config.width
        self._stages = tuple(f"layer{stage + 1}" for stage in range(len(config.layers)))
        for stage, (name, depth) in enumerate(zip(self._stages, config.layers, strict=True)):
            blocks: list[nn.Module] = []
            for place in range(depth):
                inner = config.width << stage
                blocks.append(block(channels, inner, stride=2 if stage and not place else 1))
                channels = inner * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = channels
        self.fc = nn.Linear(channels, config.num_classes)
        initialize_(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            Logits, `n × num_classes`, of the dtype of the arithmetic.
        """
        return self.fc(self._pooled(x))  # type: ignore[no-any-return]

    def penultimate(self, x: Tensor) -> Tensor:
        """Gives what the last layer sees.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            Penultimate features, `n × num_features` float32.
        """
        return self._pooled(x).float()

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Gives the feature maps on the way, for distances between single images.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            `n × c × h' × w'` after the stem and after each stage, from the finest to the coarsest.
        """
        found = [self.maxpool(self.relu(self.bn1(self.conv1(x))))]
        for name in self._stages:
            found.append(getattr(self, name)(found[-1]))
        return found

    @property
    def last_linear(self) -> nn.Linear:
        """The layer from the penultimate features to the logits: `fc`."""
        return self.fc

    def _pooled(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self._stages:
            x = getattr(self, name)(x)
        return self.avgpool(x).flatten(1)  # type: ignore[no-any-return]


def resnet8(*, num_classes: int = 10, width: int = 16, seed: int = 0) -> ResNet:
    """Three stages of one basic block for 32 × 32 images, 78,042 parameters at 10 classes; fields and errors as there.

    Raises:
        ConfigError: a field of :class:`ResNetConfig` out of range.
    """
    return _build(seed, block="basic", layers=(1, 1, 1), width=width, num_classes=num_classes, stem="cifar")


def resnet20(*, num_classes: int = 10, width: int = 16, seed: int = 0) -> ResNet:
    """Three stages of three basic blocks for 32 × 32 images, shortcuts by 1 × 1 convolutions (paper, section 4.2, B).

    Raises:
        ConfigError: a field of :class:`ResNetConfig` out of range.
    """
    return _build(seed, block="basic", layers=(3, 3, 3), width=width, num_classes=num_classes, stem="cifar")


def resnet18(*, num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64, seed: int = 0) -> ResNet:
    """ResNet-18: 11,689,512 parameters at 1000 classes.

    Raises:
        ConfigError: a field of :class:`ResNetConfig` out of range.
    """
    return _build(seed, block="basic", layers=(2, 2, 2, 2), width=width, num_classes=num_classes, stem=stem)


def resnet50(*, num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64, seed: int = 0) -> ResNet:
    """ResNet-50: 25,557,032 parameters at 1000 classes.

    Raises:
        ConfigError: a field of :class:`ResNetConfig` out of range.
    """
    return _build(seed, block="bottleneck", layers=(3, 4, 6, 3), width=width, num_classes=num_classes, stem=stem)


def resnet101(*, num_classes: int = 1000, stem: Stem = "imagenet", width: int = 64, seed: int = 0) -> ResNet:
    """ResNet-101: 44,549,160 parameters at 1000 classes.

    Raises:
        ConfigError: a field of :class:`ResNetConfig` out of range.
    """
    return _build(seed, block="bottleneck", layers=(3, 4, 23, 3), width=width, num_classes=num_classes, stem=stem)


def _build(seed: int, **fields: object) -> ResNet:
    return ResNet(validated(ResNetConfig, fields), seed=seed)


def _conv(in_channels: int, out_channels: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, kernel=1, stride=stride), nn.BatchNorm2d(out_channels))
