"""Which arithmetic a network runs in, and what a device computes natively."""

from typing import TYPE_CHECKING, Literal, TypeAlias

from sparing.errors import ArgumentError

if TYPE_CHECKING:
    import torch

__all__ = ["Precision", "resolve_precision"]

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
"""Of a network's products. ``"auto"`` takes bfloat16 where the device computes it natively."""


def resolve_precision(precision: Precision, device: "torch.device") -> Literal["float32", "bfloat16"]:
    """Turns ``"auto"`` into bfloat16 where the device computes it natively, else float32; never float16.

    Args:
        precision: the wish.
        device: where the network is.

    Raises:
        ArgumentError: another precision.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ArgumentError(f"precision: expected 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if precision != "auto":
        return precision
    import torch

    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    try:
        native = device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        native = False
    return "bfloat16" if native else "float32"
