"""What a network is to a chip: its layers with the sizes they meet, and the way of its maps."""

from dataclasses import dataclass, field
from typing import Literal

from sparing.pim.steps import Step

__all__ = ["LayerShape", "NetworkShape", "SkippedLayer"]


@dataclass(frozen=True)
class LayerShape:
    """One convolution or linear layer.

    Attributes:
        name: in ``model.named_modules()``.
        kind: ``"conv"`` or ``"linear"``.
        in_channels, out_channels: of all groups.
        kernel: height and width; (1, 1) of a linear layer.
        stride: down and right; (1, 1) of a linear layer.
        padding: rows above and columns left of the image that are zero.
        groups: 1 but for grouped convolutions.
        in_size, out_size: height and width of one image's maps; (1, n) of a linear layer that is called on n vectors.
        num_calls: how often it is used for one image, the maps of a call on several (crops, frames) counted each.
        inputs: names of the layers whose results it reads, through what lies between; ``""`` is the image itself.
        dilation: rows and columns from one kernel element to the next; (1, 1) of a linear layer.
    """

    name: str
    kind: Literal["conv", "linear"]
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    num_calls: int = 1
    inputs: tuple[str, ...] = ()
    dilation: tuple[int, int] = (1, 1)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(Cout, Cin of a group, kh, kw)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def num_pixels(self) -> int:
        """Output positions of one image, over all calls."""
        return self.out_size[0] * self.out_size[1] * self.num_calls

    @property
    def num_weights(self) -> int:
        """Weights, without bias."""
        return self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.num_weights * self.num_pixels

    def as_step(self, inputs: tuple[str, ...]) -> Step:
        """The layer as a step that reads the results of others.

        Args:
            inputs: their names.
        """
        return Step(
            self.name,
            self.kind,
            self.out_channels,
            self.kernel,
            self.stride,
            self.padding,
            self.in_size,
            self.out_size,
            self.num_calls,
            inputs,
            self.dilation,
        )


@dataclass(frozen=True)
class SkippedLayer:
    """A layer with weights that stays off the crossbars.

    Attributes:
        name: in ``model.named_modules()``.
        reason: why.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class NetworkShape:
    """The layers of a network.

    Attributes:
        input_shape: of one image, without the batch.
        layers: in the order of their first call.
        skipped: other modules with weights, norms apart.
        steps: the same layers with the poolings and sums between them, in the order of their first call.
    """

    input_shape: tuple[int, ...]
    layers: tuple[LayerShape, ...]
    skipped: tuple[SkippedLayer, ...] = field(default=())
    steps: tuple[Step, ...] = field(default=())

    def __getitem__(self, name: str) -> LayerShape:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)
