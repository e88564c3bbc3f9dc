"""MobileNetV2 with torchvision's names of weights, for ImageNet and for small images.

=======================  ==========================================
paper                    here
=======================  ==========================================
bottleneck, table 1      :class:`InvertedResidual`
t, c, n, s of table 2    a row of `_STAGES`
width multiplier         `width_multiplier`
=======================  ==========================================

Source: M. Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018. As in torchvision, a multiplier
below 1 leaves the last convolution at 1280 channels (paper, section 6.1). The stem for small images is the usual one of
CIFAR experiments: its convolution and the second stage keep the image's size.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sparing.runs.documents import validated
from sparing.vision._initial import initialize_
from sparing.vision.stem import Stem

__all__ = ["InvertedResidual", "MobileNetV2", "MobileNetV2Config", "mobilenet_v2"]

# Expansion, channels, blocks, stride of the first block: table 2.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_FIRST, _LAST = 32, 1280
_DROPOUT = 0.2


class MobileNetV2Config(BaseModel):
    """The architecture of a MobileNetV2; frozen, saved with its weights.

    Attributes:
        width_multiplier: on all numbers of channels, above 0, up to 16; each is rounded to a multiple of 8, at least 8,
            and never by more than a tenth down. The last convolution has at least 1280.
        num_classes: 1 to 1,000,000.
        stem: ``"imagenet"``: images are halved five times; ``"cifar"``: not by the first convolution nor the second
            stage, so three times.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width_multiplier: Annotated[float, Field(gt=0, le=16, allow_inf_nan=False)] = 1.0
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    stem: Stem = "imagenet"


class InvertedResidual(nn.Module):
    """A 1 × 1 convolution to more channels, a depthwise 3 × 3 and a linear 1 × 1; added to the input where it fits.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        stride: of the depthwise convolution.
        expansion: channels inside for each that comes in; 1 leaves the first convolution out.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(_conv(in_channels, inner, kernel=1))
        layers += [
            _conv(inner, inner, kernel=3, stride=stride, groups=inner),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Maps `n × in_channels × h × w` to `n × out_channels × h/stride × w/stride`."""
        return x + self.conv(x) if self.adds else self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """A MobileNetV2 whose state dict has torchvision's names (``features.0.0.weight``, ``classifier.1.bias``, ...).

    Activations are never changed in place, so that a hook sees what each layer gave. `features` is the module of the
    convolutions, as in torchvision; what the last layer sees is :meth:`penultimate`.

    Args:
        config: the architecture.
        seed: of the first weights (He initialisation), 0 or more. On the meta device there are none.

    Attributes:
        config: the architecture, as given.
        num_features: width of the penultimate features.
    """

    def __init__(self, config: MobileNetV2Config, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        multiplier, cifar = config.width_multiplier, config.stem == "cifar"
        channels = _rounded(_FIRST * multiplier)
        layers: list[nn.Module] = [_conv(3, channels, kernel=3, stride=1 if cifar else 2)]
        ends = []  # last modules of each size
        for stage, (expansion, base, depth, stride) in enumerate(_STAGES):
            halves = stride == 2 and not (cifar and stage == 1)
            if halves:
                ends.append(len(layers) - 1)
            for place in range(depth):
                out = _rounded(base * multiplier)
                step = 2 if halves and not place else 1
                layers.append(InvertedResidual(channels, out, stride=step, expansion=expansion))
                channels = out
        self.num_features = _rounded(_LAST * max(1.0, multiplier))
        layers.append(_conv(channels, self.num_features, kernel=1))
        self._ends = (*ends, len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(self.num_features, config.num_classes))
        initialize_(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            Logits, `n × num_classes`, of the dtype of the arithmetic.
        """
        return self.classifier(self._pooled(x))  # type: ignore[no-any-return]

    def penultimate(self, x: Tensor) -> Tensor:
        """Gives what the last layer sees; in training that is after dropout.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            Penultimate features, `n × num_features` float32.
        """
        return self.classifier[0](self._pooled(x)).float()  # type: ignore[no-any-return]

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Gives the feature maps on the way, for distances between single images.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            `n × c × h' × w'`, the last of each size, from the finest to the coarsest.
        """
        found = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self._ends:
                found.append(x)
        return found

    @property
    def last_linear(self) -> nn.Linear:
        """The layer from the penultimate features to the logits: `classifier.1`."""
        return self.classifier[-1]  # type: ignore[return-value]

    def _pooled(self, x: Tensor) -> Tensor:
        return self.avgpool(self.features(x)).flatten(1)  # type: ignore[no-any-return]


def mobilenet_v2(
    *, num_classes: int = 1000, stem: Stem = "imagenet", width_multiplier: float = 1.0, seed: int = 0
) -> MobileNetV2:
    """MobileNetV2: 3,504,872 parameters at 1000 classes, 2,236,682 at 10.

    Raises:
        ConfigError: a field of :class:`MobileNetV2Config` out of range.
    """
    fields = {"num_classes": num_classes, "stem": stem, "width_multiplier": width_multiplier}
    return MobileNetV2(validated(MobileNetV2Config, fields), seed=seed)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 (halves up), at least 8; the next one where that took more than a tenth away."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _conv(in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )
