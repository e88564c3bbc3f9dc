"""The way of the maps through a network: its layers, and what a chip does between them, poolings and sums."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Step", "pooling_or_sum"]

_aten = torch.ops.aten
_POOLINGS = {_aten.max_pool2d_with_indices, _aten.max_pool2d, _aten.avg_pool2d}
_ADAPTIVE = {_aten._adaptive_avg_pool2d, _aten.adaptive_avg_pool2d, _aten.adaptive_max_pool2d}
_REDUCTIONS = {_aten.mean, _aten.amax}
_SUMS = {_aten.add, _aten.add_}


@dataclass(frozen=True)
class Step:
    """A layer, a pooling or a sum of two maps, with the steps whose results it reads.

    Attributes:
        name: of the layer; ``"pool:1"``, ``"sum:1"`` and so on, in their order, for the others.
        kind: what it is.
        channels: of its result.
        kernel, stride, padding, dilation: of its window; 1, 1, 0 and 1 where it has none.
        in_size, out_size: height and width of one image's maps.
        num_calls: how often it is used for one image.
        inputs: names of the steps whose results it reads; ``""`` is the image itself.
    """

    name: str
    kind: Literal["conv", "linear", "pool", "sum"]
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    num_calls: int = 1
    inputs: tuple[str, ...] = ()
    dilation: tuple[int, int] = (1, 1)

    @property
    def num_pixels(self) -> int:
        """Output positions of one image, over all calls."""
        return self.out_size[0] * self.out_size[1] * self.num_calls


def pooling_or_sum(operator: Any, args: tuple[Any, ...], out: Any, inputs: list[frozenset[str]]) -> Step | None:
    """Recognizes an operator of PyTorch that a chip has a unit for.

    Args:
        operator: as a dispatch mode sees it.
        args: its arguments.
        out: its result.
        inputs: of each argument, the steps that its values come from.

    Returns:
        The step, whose name is its kind; None for anything else, which takes no time of its own (norms, activations,
        products, concatenations).
    """
    packet = getattr(operator, "overloadpacket", None)
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not inputs[0]:
        return None
    if packet in _SUMS:
        other = args[1] if len(args) > 1 else None
        if not isinstance(other, Tensor) or other.shape != x.shape or not inputs[1] or x.ndim < 2:
            return None
        return _sum(x, inputs[0] | inputs[1])
    window = _window(packet, x, args) if x.ndim == 4 else None
    if window is None or window[:2] == ((1, 1), (1, 1)):  # the latter: adaptive pooling that finds the size it wants
        return None
    pooled: Tensor = out if isinstance(out, Tensor) else out[0]  # with the places of the maxima
    return Step(
        name="pool",
        kind="pool",
        channels=x.shape[1],
        kernel=window[0],
        stride=window[1],
        padding=window[2],
        in_size=(x.shape[2], x.shape[3]),
        out_size=(pooled.shape[2], pooled.shape[3]) if pooled.ndim == 4 else (1, 1),
        num_calls=x.shape[0],
        inputs=tuple(sorted(inputs[0])),
    )


_Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def _window(packet: Any, x: Tensor, args: tuple[Any, ...]) -> _Window | None:
    """Kernel, stride and padding of a pooling."""
    height, width = x.shape[-2:]
    if packet in _POOLINGS:
        kernel = _two(args[1])
        stride = _two(args[2]) if len(args) > 2 and args[2] else kernel
        return kernel, stride, _two(args[3]) if len(args) > 3 else (0, 0)
    if packet in _ADAPTIVE:
        rows, cols = _two(args[1])
        return (-(-height // rows), -(-width // cols)), (max(1, height // rows), max(1, width // cols)), (0, 0)
    dims = args[1] if packet in _REDUCTIONS and len(args) > 1 else None
    if isinstance(dims, list | tuple) and {d % 4 for d in dims} == {2, 3}:
        return (height, width), (height, width), (0, 0)
    return None


def _sum(x: Tensor, inputs: frozenset[str]) -> Step:
    if x.ndim == 4:
        calls, channels, size = x.shape[0], x.shape[1], (x.shape[2], x.shape[3])
    else:  # vectors in rows
        calls, channels, size = 1, x.shape[-1], (1, x.numel() // max(1, x.shape[-1]))
    one = (1, 1)
    return Step("sum", "sum", channels, one, one, (0, 0), size, size, calls, tuple(sorted(inputs)))


def _two(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else [int(n) for n in value]
    return values[0], values[-1]
