"""What a batch carries from scale to scale: modulations, and keys and values in memory taken once."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["CachePool", "EngineState", "KVCache"]

_LEVELS = 127


class KVCache:
    """One layer's keys and values.

    Args:
        rows: images times branches.
        num_heads, head_dim: of the layer.
        capacity: tokens it can hold.
        dtype: of what is put in and taken out.
        device: where.
        bits: 8 stores integers with one float32 step a token and head; None stores `dtype`.
        pool: where its memory comes from; None takes its own.
    """

    def __init__(
        self,
        rows: int,
        num_heads: int,
        head_dim: int,
        *,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        bits: int | None = None,
        pool: "CachePool | None" = None,
    ) -> None:
        self.dtype, self.bits = dtype, bits
        shape = (2, rows, num_heads, capacity, head_dim)
        pool = pool or CachePool(math.prod(shape), head_dim, dtype=dtype, device=device, bits=bits)
        self._data, self._steps = pool.take(shape)

    def extend(self, k: Tensor, v: Tensor, *, begin: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Adds a scale to some rows and returns everything so far.

        Args:
            k: (n rows, H, n, D).
            v: (n rows, H, n, D).
            begin: tokens before the scale.
            rows: which rows these are.

        Returns:
            Keys and values, (n rows, H, begin + n, D) in `dtype`; views of the cache unless it holds integers.
        """
        end = begin + k.shape[2]
        for part, new in enumerate((k, v)):
            if self._steps is None:
                self._data[part, rows, :, begin:end] = new
                continue
            step = new.float().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _LEVELS
            self._steps[part, rows, :, begin:end] = step
            self._data[part, rows, :, begin:end] = (new.float() / step).round_()
        return self._read(0, rows, end), self._read(1, rows, end)

    def _read(self, part: int, rows: slice, end: int) -> Tensor:
        data = self._data[part, rows, :, :end]
        if self._steps is None:
            return data
        return (data * self._steps[part, rows, :, :end]).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the cache takes."""
        return self._data.nbytes + (0 if self._steps is None else self._steps.nbytes)


class CachePool:
    """The memory of several caches in one piece, which an allocator gives back whole instead of keeping its holes.

    Args:
        numel: keys and values of all of them.
        head_dim, dtype, device, bits: as of :class:`KVCache`.
    """

    def __init__(
        self, numel: int, head_dim: int, *, dtype: torch.dtype, device: torch.device, bits: int | None
    ) -> None:
        self._data = torch.empty(numel, dtype=dtype if bits is None else torch.int8, device=device)
        self._steps = None if bits is None else torch.empty(numel // head_dim, device=device)
        self._taken = 0

    def take(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Hands out room for values of a shape, and for one step for each of its last axis."""
        begin, end = self._taken, self._taken + math.prod(shape)
        self._taken = end
        data = self._data[begin:end].view(shape)
        if self._steps is None:
            return data, None
        return data, self._steps[begin // shape[-1] : end // shape[-1]].view(*shape[:-1], 1)


@dataclass
class EngineState:
    """What one batch of images carries from scale to scale.

    Attributes:
        num_images: B.
        guided: whether the rows without the class are there.
        modulations: for each layer gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2, each (R, 1, C).
        head: 1 + scale and shift of the last norm, each (R, 1, C).
        start: (R, n, C) input of the first scale.
        caches: for each layer that of all rows; with sharing by output, that of the rows with the class, and
            that of the others while they still attend.
        scale: the next one.
        held: the memory at fixed addresses that it has on loan from :class:`~sparing.var.compiled.StepGraphs`, if any.
    """

    num_images: int
    guided: bool
    modulations: list[tuple[Tensor, ...]]
    head: tuple[Tensor, Tensor]
    start: Tensor
    caches: list[list[KVCache]] = field(default_factory=list)
    scale: int = 0
    held: Any = field(default=None, repr=False)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(cache.nbytes for layer in self.caches for cache in layer)
