"""Int8Linear: a linear layer with real integer products, int8 weights and activations quantized at each call."""

from typing import Any, Literal, Self

import torch
from torch import nn

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.quant.functional import dequantize, quantize
from sparing.quant.kernels import (
    Kernel,
    PackedWeight,
    available_kernels,
    integer_matmul,
    onednn_product,
    pack_weight,
    unpack_weight,
)
from sparing.quant.ranges import check_finite, find_params, widen
from sparing.quant.spec import QuantParams, QuantSpec

__all__ = ["Int8Linear"]

_LARGEST_CODE = 127
_WEIGHT_SPEC = QuantSpec(bits=8, granularity="channel")


class Int8Linear(nn.Module):
    """``y = x @ W.T + b`` with int8 products, summed in int32; the forward signature of :class:`torch.nn.Linear`.

    Weights have a step for each output channel; activations get a symmetric step for each token at each call. No
    gradients. A token with NaN or infinity gives a row that is not finite, as in a float layer; it is not refused,
    because looking would make a GPU wait. Steps and bias stay float32 whatever ``.to(dtype)`` asks.

    State dict: ``weight_codes`` ``(out, in)`` int8, ``weight_scale`` ``(out,)`` float32, ``bias`` ``(out,)`` float32 if
    any.

    On a CPU with AVX-512 the first call reorders the codes for oneDNN *in place of* the plain ones, so the layer keeps
    one byte a weight; saving, copying and moving bring the plain ones back. Calls from several threads are safe, except
    together with those. For :func:`torch.compile` on such a CPU choose the kernel ``"int_mm"``: Inductor takes no
    weights that others packed.

    Args:
        weight_codes: ``(out, in)``, int8 in [-127, 127].
        weight_scale: ``(out,)``, float32, > 0.
        bias: ``(out,)``, floating; ``None``: none.
        dtype: of the output; ``None``: that of the input.
        kernel: ``"auto"``, the fastest exact one on the input's device, or one of
            :func:`~sparing.quant.available_kernels`.

    Raises:
        ArgumentError: a code of -128, a step that is not positive, or an unknown kernel.
        DtypeError: codes that are not int8, or an output dtype that is not floating.
        NonFiniteError: NaN or infinity in steps or bias.
        ShapeError: shapes that do not fit.

    Example:
        >>> layer = Int8Linear.from_linear(nn.Linear(1024, 3072), dtype=torch.bfloat16)
        >>> layer(torch.randn(2, 256, 1024)).shape
        torch.Size([2, 256, 3072])
    """

    weight_codes: torch.Tensor | None
    weight_scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight_codes: torch.Tensor,
        weight_scale: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        kernel: Literal["auto", "onednn", "int_mm", "plain"] = "auto",
    ) -> None:
        super().__init__()
        _check(weight_codes, weight_scale, bias, dtype, kernel)
        self.out_features, self.in_features = weight_codes.shape
        self.dtype = dtype
        self.kernel = kernel
        self.register_buffer("weight_codes", weight_codes.detach().clone(memory_format=torch.contiguous_format))
        self.register_buffer("weight_scale", weight_scale.detach().float().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self._packed: PackedWeight | None = None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        range: Literal["minmax", "mse"] = "minmax",  # noqa: A002 -- the spec's word
        dtype: torch.dtype | None = None,
        kernel: Literal["auto", "onednn", "int_mm", "plain"] = "auto",
    ) -> Self:
        """Quantizes a linear layer's weight; the layer itself is left alone.

        Args:
            linear: any floating dtype and device.
            range: how the weight's steps are found.
            dtype: of the output; ``None``: that of the input.
            kernel: see the class.

        Raises:
            DtypeError: not a linear layer.
            NonFiniteError: NaN or infinity in its weight.
        """
        if not isinstance(linear, nn.Linear):
            raise DtypeError(f"linear: expected a torch.nn.Linear, got {type(linear).__name__}")
        spec = _WEIGHT_SPEC.model_copy(update={"range": range})
        weight = linear.weight.detach().float()
        params = find_params(weight, spec)
        codes = quantize(weight, params, spec=spec)
        return cls(codes, params.scale[:, 0], bias=linear.bias, dtype=dtype, kernel=kernel)

    def to_linear(self, *, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """A float layer with the weight as the codes say it; what is left of the original.

        Args:
            dtype: of its weight and bias.
        """
        codes = self.plain_codes()
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta", dtype=dtype)
        weight = dequantize(codes, QuantParams(self.weight_scale[:, None]), spec=_WEIGHT_SPEC, dtype=dtype)
        linear.weight = nn.Parameter(weight)
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.to(dtype, copy=True))
        return linear

    def plain_codes(self) -> torch.Tensor:
        """The ``(out, in)`` int8 codes; costs a product with the unit matrix once they are packed."""
        packed = self._packed
        if packed is not None:
            return unpack_weight(packed)
        if self.weight_codes is None:  # another thread has just packed them
            return self.plain_codes()
        return self.weight_codes

    def unpack_(self) -> None:
        """Brings the plain codes back; the next call packs them again."""
        if self._packed is not None:
            self.weight_codes = unpack_weight(self._packed)
            self._packed = None

    @property
    def num_bytes(self) -> int:
        """Bytes that weights, steps and bias take."""
        return self.out_features * (self.in_features + 4 + (0 if self.bias is None else 4))

    @torch.no_grad()
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 -- the name in torch.nn.Linear
        """The layer's output.

        Args:
            input: ``(..., in)``, floating; float64 is computed in float32.

        Returns:
            ``(..., out)`` in the layer's dtype: the exact product of the codes times both steps, plus the bias, in
            float32, then rounded to the dtype.

        Raises:
            ArgumentError: the layer's kernel does not work on this device.
            DtypeError: not floating.
            ShapeError: another last axis than ``in``.
        """
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ShapeError(f"input: expected shape (..., {self.in_features}), got {tuple(input.shape)}")
        rows = input.reshape(-1, self.in_features)
        codes, scale = _quantize_tokens(rows)
        kernel = self._choose(input.device.type)
        if rows.shape[0] == 0:
            output = scale.new_empty(0, self.out_features)
        elif kernel == "onednn":
            output = onednn_product(codes, self._pack(), weight_scale=self.weight_scale)
        else:
            output = integer_matmul(codes, self.plain_codes(), kernel=kernel).float().mul_(self.weight_scale)
        if self.bias is None:
            output.mul_(scale)
        else:
            torch.addcmul(self.bias, output, scale, out=output)
        return output.to(self.dtype or input.dtype).reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What printing shows in the brackets."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"dtype={self.dtype}, kernel={self.kernel!r}"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles carry plain codes: the packed form belongs to this machine.
        self.unpack_()
        return self.__dict__.copy()

    def _choose(self, device_type: str) -> Kernel:
        usable = available_kernels(device_type)
        if self.kernel == "auto":
            return usable[0]
        if self.kernel not in usable:
            raise ArgumentError(
                f"kernel: expected one of {list(usable)} on device {device_type!r}, got {self.kernel!r}"
            )
        return self.kernel

    def _pack(self) -> PackedWeight:
        codes, packed = self.weight_codes, self._packed
        if packed is None:
            # No codes: another thread has packed them since.
            packed = self._packed if codes is None else pack_weight(codes)
            self._packed = packed
            self.weight_codes = None
        if packed is None:
            raise RuntimeError("the layer was changed during a call")
        return packed

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.unpack_()
        exact = {"weight_scale": self.weight_scale, "bias": self.bias}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            after = getattr(self, name)
            if after is not None and before is not None and after.dtype != torch.float32:
                setattr(self, name, before.to(after.device))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.unpack_()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack_()
        super()._load_from_state_dict(*args, **kwargs)


def _quantize_tokens(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes and float32 steps of ``(m, k)`` values, each row by its largest magnitude."""
    wide = widen(rows, name="input").float()
    # Two reductions in float32: aminmax, and any of them in bfloat16, take several times as long.
    scale = torch.maximum(wide.amax(-1, keepdim=True), wide.amin(-1, keepdim=True).neg_()).div_(_LARGEST_CODE)
    scale.clamp_min_(torch.finfo(torch.float32).tiny)
    scaled = wide.div(scale) if rows.dtype == torch.float32 else wide.div_(scale)
    # In C order with plain strides, whatever the input's: the kernels read them.
    return scaled.round_().to(torch.int8, memory_format=torch.contiguous_format), scale


def _check(
    codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype | None, kernel: str
) -> None:
    if codes.dtype != torch.int8:
        raise DtypeError(f"weight_codes: expected int8, got {codes.dtype}")
    if codes.ndim != 2 or codes.numel() == 0:
        raise ShapeError(f"weight_codes: expected a matrix with elements, got shape {tuple(codes.shape)}")
    if int(codes.min()) < -_LARGEST_CODE:
        raise ArgumentError("weight_codes: expected codes in [-127, 127], got -128")
    for name, vector in (("weight_scale", scale), ("bias", bias)):
        if vector is not None:
            if vector.shape != codes.shape[:1]:
                raise ShapeError(f"{name}: expected shape {tuple(codes.shape[:1])}, got {tuple(vector.shape)}")
            check_finite(widen(vector, name=name), name=name)
    if bool((scale <= 0).any()):
        raise ArgumentError("weight_scale: expected numbers > 0")
    if dtype is not None and not dtype.is_floating_point:
        raise DtypeError(f"dtype: expected a floating dtype or None, got {dtype}")
    if kernel not in ("auto", "onednn", "int_mm", "plain"):
        raise ArgumentError(f"kernel: expected 'auto', 'onednn', 'int_mm' or 'plain', got {kernel!r}")
