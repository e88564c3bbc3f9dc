"""Keys and values of the scales so far, in memory that is taken once; eight-bit where wanted."""

import torch
from torch import Tensor

__all__ = ["KVCache"]

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
    ) -> None:
        self.dtype, self.bits, self.length = dtype, bits, 0
        shape = (2, rows, num_heads, capacity, head_dim)
        self._data = torch.empty(shape, dtype=dtype if bits is None else torch.int8, device=device)
        self._steps = None if bits is None else torch.empty((*shape[:-1], 1), device=device)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a scale and returns everything so far.

        Args:
            k: (rows, H, n, D).
            v: (rows, H, n, D).

        Returns:
            Keys and values, (rows, H, length, D) in `dtype`; views of the cache unless it holds integers.
        """
        begin, end = self.length, self.length + k.shape[2]
        for part, new in enumerate((k, v)):
            if self._steps is None:
                self._data[part, :, :, begin:end] = new
                continue
            step = new.float().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _LEVELS
            self._steps[part, :, :, begin:end] = step
            self._data[part, :, :, begin:end] = (new.float() / step).round_()
        self.length = end
        return self._read(0), self._read(1)

    def _read(self, part: int) -> Tensor:
        data = self._data[part, :, :, : self.length]
        if self._steps is None:
            return data
        return (data * self._steps[part, :, :, : self.length]).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the cache takes."""
        return self._data.nbytes + (0 if self._steps is None else self._steps.nbytes)
