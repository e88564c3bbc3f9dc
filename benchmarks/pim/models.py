"""The networks that the stages ask about, without numbers in their weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import nn

from sparing.pim import NetworkShape, trace_layers
from sparing.vision import resnet8, resnet18, resnet50, resnet101

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "ResNet-101": resnet101,
}


@lru_cache
def imagenet_shape(name: str, num_classes: int) -> NetworkShape:
    """The layers of a network on images of 224 × 224."""
    with torch.device("meta"):
        return trace_layers(NETWORKS[name](num_classes=num_classes))


@lru_cache
def tiny_shape() -> NetworkShape:
    """A ResNet-8 on small images, for runs that only show that all goes through."""
    with torch.device("meta"):
        return trace_layers(resnet8(width=64), (3, 32, 32))
