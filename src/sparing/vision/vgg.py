"""VGG networks with torchvision's names of weights, for ImageNet and for small images.

====================  ============================================
paper                 here
====================  ============================================
table 1, column D     :func:`vgg16`; other columns: `layers`
conv3-64 ... maxpool  `features`, one stage
FC-4096, FC-1000      `classifier`
====================  ============================================

Source: K. Simonyan and A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015. Batch
norms came after the paper; the small head is that of the usual CIFAR experiments (one linear layer after the mean).
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sparing.errors import ShapeError
from sparing.runs.documents import validated
from sparing.vision._initial import initialize_
from sparing.vision.stem import Stem

__all__ = ["VGG", "VGGConfig", "vgg16", "vgg16_bn"]

_POOLED = 7  # side of the maps that the ImageNet head sees
_DROPOUT = 0.5


class VGGConfig(BaseModel):
    """The architecture of a VGG network; frozen, saved with its weights.

    Attributes:
        layers: 3 × 3 convolutions in each stage, 1 to 8 stages of 1 to 64; each stage ends by halving the image. VGG-16
            by default; (1, 1, 2, 2, 2), (2, 2, 2, 2, 2) and (2, 2, 4, 4, 4) are VGG-11, 13 and 19.
        batch_norm: one after each convolution.
        width: channels of the first stage, 1 to 4096; each stage doubles them, up to 8 times as many.
        num_classes: 1 to 1,000,000.
        head: ``"imagenet"``: maps pooled to 7 × 7, two hidden layers of 64 `width` with dropout 0.5, and a last one;
            ``"cifar"``: the mean of the maps and one linear layer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)] = (
        2,
        2,
        3,
        3,
        3,
    )
    batch_norm: bool = False
    width: Annotated[int, Field(ge=1, le=4096)] = 64
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    head: Stem = "imagenet"


class VGG(nn.Module):
    """A VGG network whose state dict has torchvision's names (``features.0.weight``, ``classifier.6.bias``, ...).

    The small head has one layer: ``classifier.weight`` and ``classifier.bias``. Activations are never changed in place,
    so that a hook sees what each layer gave. `features` is the module of the convolutions, as in torchvision; what the
    last layer sees is :meth:`penultimate`.

    Args:
        config: the architecture.
        seed: of the first weights (He initialisation), 0 or more. On the meta device there are none.

    Attributes:
        config: the architecture, as given.
        num_features: width of the penultimate features.
    """

    def __init__(self, config: VGGConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels = 3
        for stage, depth in enumerate(config.layers):
            for _ in range(depth):
                inner = config.width << min(stage, 3)
                layers.append(nn.Conv2d(channels, inner, 3, padding=1))
                if config.batch_norm:
                    layers.append(nn.BatchNorm2d(inner))
                layers.append(nn.ReLU())
                channels = inner
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier: nn.Sequential | nn.Linear
        if config.head == "cifar":
            self.num_features = channels
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(channels, config.num_classes)
        else:
            self.num_features = 64 * config.width
            self.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
            self.classifier = nn.Sequential(
                nn.Linear(channels * _POOLED**2, self.num_features),
                nn.ReLU(),
                nn.Dropout(_DROPOUT),
                nn.Linear(self.num_features, self.num_features),
                nn.ReLU(),
                nn.Dropout(_DROPOUT),
                nn.Linear(self.num_features, config.num_classes),
            )
        initialize_(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1]; h and w at least 2 to the number of stages (32).

        Returns:
            Logits, `n × num_classes`, of the dtype of the arithmetic.

        Raises:
            ShapeError: images too small to be halved by every stage.
        """
        return self.classifier(self._pooled(x))  # type: ignore[no-any-return]

    def penultimate(self, x: Tensor) -> Tensor:
        """Gives what the last layer sees; in training that is after dropout.

        Args:
            x: as in :meth:`forward`.

        Returns:
            Penultimate features, `n × num_features` float32.

        Raises:
            ShapeError: as in :meth:`forward`.
        """
        x = self._pooled(x)
        if isinstance(self.classifier, nn.Sequential):
            for layer in list(self.classifier)[:-1]:
                x = layer(x)
        return x.float()

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Gives the feature maps on the way, for distances between single images.

        Args:
            x: as in :meth:`forward`.

        Returns:
            `n × c × h' × w'` of each stage, as they are before it halves them, from the finest to the coarsest.

        Raises:
            ShapeError: as in :meth:`forward`.
        """
        self._check_size(x)
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x)
        return found

    @property
    def last_linear(self) -> nn.Linear:
        """The layer from the penultimate features to the logits: `classifier`, or the last one in it."""
        if isinstance(self.classifier, nn.Sequential):
            return self.classifier[-1]  # type: ignore[return-value]
        return self.classifier

    def _pooled(self, x: Tensor) -> Tensor:
        self._check_size(x)
        return self.avgpool(self.features(x)).flatten(1)  # type: ignore[no-any-return]

    def _check_size(self, x: Tensor) -> None:
        least = 1 << len(self.config.layers)
        if x.ndim != 4 or min(x.shape[-2:]) < least:
            raise ShapeError(f"x: expected n × 3 × h × w with h and w at least {least}, got shape {tuple(x.shape)}")


def vgg16(*, num_classes: int = 1000, head: Stem = "imagenet", width: int = 64, seed: int = 0) -> VGG:
    """VGG-16: 138,357,544 parameters at 1000 classes; 14,719,818 with the small head at 10.

    Raises:
        ConfigError: a field of :class:`VGGConfig` out of range.
    """
    return _build(seed, batch_norm=False, width=width, num_classes=num_classes, head=head)


def vgg16_bn(*, num_classes: int = 1000, head: Stem = "imagenet", width: int = 64, seed: int = 0) -> VGG:
    """VGG-16 with batch norms: 138,365,992 parameters at 1000 classes; 14,728,266 with the small head at 10.

    Raises:
        ConfigError: a field of :class:`VGGConfig` out of range.
    """
    return _build(seed, batch_norm=True, width=width, num_classes=num_classes, head=head)


def _build(seed: int, **fields: object) -> VGG:
    return VGG(validated(VGGConfig, fields), seed=seed)
