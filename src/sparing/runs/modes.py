"""Evaluation mode for as long as something is measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["evaluating"]


@contextmanager
def evaluating(model: "nn.Module") -> Iterator[None]:
    """Evaluation mode inside a ``with`` block; each module's own mode behind it, also after errors.

    Args:
        model: whose modules are switched.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
