"""Int8Linear: a linear layer with real integer products, int8 weights and activations quantized at each call."""

from typing import Literal, Self

import torch
from torch import nn

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.quant.functional import dequantize, quantize
from sparing.quant.kernels import (
    Kernel,
    available_kernels,
    integer_matmul,
    onednn_product,
    pack_weight,
    unpack_weight,
)
from sparing.quant.packing import Int8Layer
from sparing.quant.ranges import find_params
from sparing.quant.rounding import finish_rows_, quantize_rows, signed
from sparing.quant.spec import QuantParams, QuantSpec, make_spec

__all__ = ["Int8Linear"]

_WEIGHT_SPEC = QuantSpec(bits=8, granularity="channel")
_SUMS_AT_ONCE, _FEWEST_ROWS = 1 << 22, 64


class Int8Linear(Int8Layer):
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
        gelu: passes the output through GELU (tanh formula), before it is rounded to the dtype.
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

    def __init__(
        self,
        weight_codes: torch.Tensor,
        weight_scale: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        gelu: bool = False,
        dtype: torch.dtype | None = None,
        kernel: Literal["auto", "onednn", "int_mm", "plain"] = "auto",
    ) -> None:
        if weight_codes.ndim != 2 or weight_codes.numel() == 0:
            raise ShapeError(f"weight_codes: expected a matrix with elements, got shape {tuple(weight_codes.shape)}")
        if kernel not in ("auto", "onednn", "int_mm", "plain"):
            raise ArgumentError(f"kernel: expected 'auto', 'onednn', 'int_mm' or 'plain', got {kernel!r}")
        super().__init__(weight_codes, weight_scale, bias=bias, dtype=dtype, kernel=kernel)
        self.out_features, self.in_features = weight_codes.shape
        self.gelu = gelu

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        range: Literal["minmax", "mse"] = "minmax",  # noqa: A002 -- the spec's word
        gelu: bool = False,
        dtype: torch.dtype | None = None,
        kernel: Literal["auto", "onednn", "int_mm", "plain"] = "auto",
    ) -> Self:
        """Quantizes a linear layer's weight; the layer itself is left alone.

        Args:
            linear: any floating dtype and device.
            range: how the weight's steps are found.
            gelu: passes the output through GELU (tanh formula).
            dtype: of the output; ``None``: that of the input.
            kernel: see the class.

        Raises:
            ConfigError: no such `range`.
            DtypeError: not a linear layer.
            NonFiniteError: NaN or infinity in its weight.
        """
        if not isinstance(linear, nn.Linear):
            raise DtypeError(f"linear: expected a torch.nn.Linear, got {type(linear).__name__}")
        spec = make_spec({**_WEIGHT_SPEC.model_dump(), "range": range})
        weight = linear.weight.detach().float()
        params = find_params(weight, spec)
        codes = quantize(weight, params, spec=spec)
        return cls(codes, params.scale[:, 0], bias=linear.bias, gelu=gelu, dtype=dtype, kernel=kernel)

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
        codes, scale = quantize_rows(rows)
        output = torch.empty(len(rows), self.out_features, dtype=self.dtype or input.dtype, device=input.device)
        kernel = self._choose(input.device.type)
        # A few rows at a time: sums that stay in the cache, and need no fresh memory from the system.
        at_once = max(_FEWEST_ROWS, _SUMS_AT_ONCE // self.out_features) if kernel == "onednn" else max(1, len(rows))
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            if kernel == "onednn":
                sums = onednn_product(codes[part], self._pack(), weight_scale=self.weight_scale)
            else:
                sums = integer_matmul(signed(codes), self.plain_codes(), kernel=kernel).float().mul_(self.weight_scale)
            finish_rows_(output[part], sums, scale[part], bias=self.bias, gelu=self.gelu)
        return output.reshape(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What printing shows in the brackets."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"gelu={self.gelu}, dtype={self.dtype}, kernel={self.kernel!r}"
        )

    def _choose(self, device_type: str) -> Kernel:
        usable = available_kernels(device_type)
        if self.kernel == "auto":
            return usable[0]
        if self.kernel not in usable:
            raise ArgumentError(
                f"kernel: expected one of {list(usable)} on device {device_type!r}, got {self.kernel!r}"
            )
        return self.kernel

    def _is_packed_on(self, device_type: str) -> bool:
        return self._choose(device_type) == "onednn"

    def _to_packed(self, codes: torch.Tensor) -> torch.Tensor:
        return pack_weight(codes)

    def _from_packed(self, packed: torch.Tensor) -> torch.Tensor:
        return unpack_weight(packed)
