"""Layers with int8 weights that are kept as plain codes, or in a kernel's own order in place of them."""

from typing import Any, Self

import torch
from torch import nn

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.quant.ranges import check_finite, keep_float32_, widen

__all__ = ["Int8Layer"]

_LARGEST_CODE = 127


class Int8Layer(nn.Module):
    """What layers with int8 weights share: a step for each output channel, and the order of their codes in memory.

    State dict: ``weight_codes`` int8, ``weight_scale`` and ``bias``, if any, ``(out,)`` float32. Steps and bias stay
    float32 whatever ``.to(dtype)`` asks. Saving, copying and moving bring plain codes back.

    Args:
        weight_codes: int8 in [-127, 127], the first axis ``out``.
        weight_scale: ``(out,)``, float32, > 0.
        bias: ``(out,)``, floating; ``None``: none.
        dtype: of the output; ``None``: that of the input.
        kernel: name of the integer product.

    Raises:
        ArgumentError: a code of -128, a step that is not positive.
        DtypeError: codes that are not int8, or an output dtype that is not floating.
        NonFiniteError: NaN or infinity in steps or bias.
        ShapeError: shapes that do not fit.
    """

    weight_codes: torch.Tensor | None
    weight_scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight_codes: torch.Tensor,
        weight_scale: torch.Tensor,
        *,
        bias: torch.Tensor | None,
        dtype: torch.dtype | None,
        kernel: str,
    ) -> None:
        super().__init__()
        _check(weight_codes, weight_scale, bias, dtype)
        self.dtype = dtype
        self.kernel = kernel
        self.register_buffer("weight_codes", weight_codes.detach().clone(memory_format=torch.contiguous_format))
        self.register_buffer("weight_scale", weight_scale.detach().float().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self._num_codes = weight_codes.numel()
        self._packed: torch.Tensor | None = None

    def plain_codes(self) -> torch.Tensor:
        """The int8 codes."""
        packed = self._packed
        if packed is not None:
            return self._from_packed(packed)
        if self.weight_codes is None:  # another thread has just packed them
            return self.plain_codes()
        return self.weight_codes

    def pack_(self) -> None:
        """Puts the codes into the order of the kernel that a call would choose; else the first call does it."""
        if self._is_packed_on(self.weight_scale.device.type):
            self._pack()

    def unpack_(self) -> None:
        """Brings the plain codes back; the next call packs them again."""
        if self._packed is not None:
            self.weight_codes = self._from_packed(self._packed)
            self._packed = None

    @property
    def num_bytes(self) -> int:
        """Bytes that weights, steps and bias take."""
        return self._num_codes + self.weight_scale.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def _is_packed_on(self, device_type: str) -> bool:
        raise NotImplementedError

    def _to_packed(self, codes: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _from_packed(self, packed: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _pack(self) -> torch.Tensor:
        codes, packed = self.weight_codes, self._packed
        if packed is None:
            # No codes: another thread has packed them since.
            packed = self._packed if codes is None else self._to_packed(codes)
            self._packed = packed
            self.weight_codes = None
        if packed is None:
            raise RuntimeError("the layer was changed during a call")
        return packed

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles carry plain codes: the packed form belongs to this machine. A shallow copy has buffers of
        # its own, because packing takes the codes out of them.
        self.unpack_()
        return self.__dict__ | {"_buffers": self._buffers.copy()}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.unpack_()
        before = {"weight_scale": self.weight_scale, "bias": self.bias}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        keep_float32_(self, before)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.unpack_()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack_()
        super()._load_from_state_dict(*args, **kwargs)


def _check(codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype | None) -> None:
    if codes.dtype != torch.int8:
        raise DtypeError(f"weight_codes: expected int8, got {codes.dtype}")
    if int(codes.min()) < -_LARGEST_CODE:
        raise ArgumentError("weight_codes: expected codes in [-127, 127], got -128")
    for name, vector in (("weight_scale", scale), ("bias", bias)):
        if vector is not None:
            if vector.shape != codes.shape[:1]:
                raise ShapeError(f"{name}: expected shape {tuple(codes.shape[:1])}, got {tuple(vector.shape)}")
            check_finite(widen(vector, name=name).float(), name=name)  # as it is kept
    if bool((scale.float() <= 0).any()):
        raise ArgumentError("weight_scale: expected numbers > 0")
    if dtype is not None and not dtype.is_floating_point:
        raise DtypeError(f"dtype: expected a floating dtype or None, got {dtype}")
