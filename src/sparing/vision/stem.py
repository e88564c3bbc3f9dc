"""What a network's first layers are made for."""

from typing import Literal, TypeAlias

__all__ = ["Stem"]

Stem: TypeAlias = Literal["imagenet", "cifar"]
"""Images of 224 × 224, or of 32 × 32."""
