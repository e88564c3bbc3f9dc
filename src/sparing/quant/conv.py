"""Int8Conv2d: a convolution with integer products, int8 weights and an image's activations quantized at each call."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import nn

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.quant.functional import quantize
from sparing.quant.kernels import has_onednn_convolution, onednn_convolution, pack_convolution, whole_floats
from sparing.quant.packing import Int8Layer
from sparing.quant.ranges import find_params
from sparing.quant.rounding import quantize_image
from sparing.quant.spec import QuantSpec

__all__ = ["Int8Conv2d"]

_WEIGHT_SPEC = QuantSpec(bits=8, granularity="channel")
_NATIVE = (torch.float32, torch.bfloat16)


class Int8Conv2d(Int8Layer):
    """A convolution in int8 with the forward signature of :class:`torch.nn.Conv2d`; no gradients.

    Weights have a step for each output channel; activations a step and a zero point for each image at each call, from
    their least to their largest value, so that an image never depends on others of its batch. An image with NaN or
    infinity gives one that is not finite.

    On a CPU with AVX-512 oneDNN multiplies integers, summed in int32, and the layer keeps one byte a weight, as
    :class:`~sparing.quant.Int8Linear` does. Elsewhere the codes are multiplied in float32, which is the same up to
    float32's rounding and saves memory, not time.

    Args:
        weight_codes: ``(out, in / groups, kh, kw)``, int8 in [-127, 127].
        weight_scale: ``(out,)``, float32, > 0.
        bias: ``(out,)``, floating; ``None``: none.
        stride, padding, dilation: (height, width).
        groups: of channels.
        dtype: of the output; ``None``: that of the input.
        kernel: ``"auto"``, ``"onednn"`` or ``"plain"``.

    Raises:
        ArgumentError: a code of -128, a step that is not positive, or an unknown kernel.
        DtypeError: codes that are not int8, or an output dtype that is not floating.
        NonFiniteError: NaN or infinity in steps or bias.
        ShapeError: shapes that do not fit.
    """

    def __init__(
        self,
        weight_codes: torch.Tensor,
        weight_scale: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        dtype: torch.dtype | None = None,
        kernel: Literal["auto", "onednn", "plain"] = "auto",
    ) -> None:
        if weight_codes.ndim != 4 or weight_codes.numel() == 0:
            raise ShapeError(f"weight_codes: expected 4 axes with elements, got shape {tuple(weight_codes.shape)}")
        if groups < 1 or len(weight_codes) % groups:
            raise ArgumentError(f"groups: expected a divisor of {len(weight_codes)} output channels, got {groups}")
        if kernel not in ("auto", "onednn", "plain"):
            raise ArgumentError(f"kernel: expected 'auto', 'onednn' or 'plain', got {kernel!r}")
        super().__init__(weight_codes, weight_scale, bias=bias, dtype=dtype, kernel=kernel)
        self.out_channels, self.in_channels = len(weight_codes), weight_codes.shape[1] * groups
        self.kernel_size = tuple(weight_codes.shape[2:])
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        *,
        dtype: torch.dtype | None = None,
        kernel: Literal["auto", "onednn", "plain"] = "auto",
    ) -> Self:
        """Quantizes a convolution's weight; the layer itself is left alone.

        Args:
            conv: any floating dtype and device; padded with zeros, by numbers.
            dtype: of the output; ``None``: that of the input.
            kernel: see the class.

        Raises:
            ArgumentError: padded with something else.
            DtypeError: not a convolution over two axes.
            NonFiniteError: NaN or infinity in its weight.
        """
        if not isinstance(conv, nn.Conv2d):
            raise DtypeError(f"conv: expected a torch.nn.Conv2d, got {type(conv).__name__}")
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ArgumentError(f"conv: expected zero padding by numbers, got {conv.padding_mode!r}, {conv.padding!r}")
        weight = conv.weight.detach().float()
        params = find_params(weight, _WEIGHT_SPEC)
        return cls(
            quantize(weight, params, spec=_WEIGHT_SPEC),
            params.scale.flatten(),
            bias=conv.bias,
            stride=_pair(conv.stride),
            padding=_pair(conv.padding),
            dilation=_pair(conv.dilation),
            groups=conv.groups,
            dtype=dtype,
            kernel=kernel,
        )

    @torch.no_grad()
    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 -- the name in torch.nn.Conv2d
        *,
        norm: nn.GroupNorm | None = None,
        silu: bool = False,
    ) -> torch.Tensor:
        """The layer's output.

        Args:
            input: ``(n, in, h, w)``, floating.
            norm: group norm that the input passes through first, with weight and bias; in one go with the rounding.
            silu: whether the input passes through SiLU after that.

        Returns:
            ``(n, out, h', w')`` in the layer's dtype, channels last.

        Raises:
            ArgumentError: the layer's kernel does not work on this device.
            DtypeError: not floating.
            ShapeError: not four axes, or another number of channels than ``in``.
        """
        if input.ndim != 4 or input.shape[1] != self.in_channels:
            raise ShapeError(f"input: expected shape (n, {self.in_channels}, h, w), got {tuple(input.shape)}")
        if not input.is_floating_point():
            raise DtypeError(f"input: expected a floating dtype, got {input.dtype}")
        is_native = self._is_packed_on(input.device.type)
        dtype = self.dtype or input.dtype
        if not len(input):
            return self._plain(input.to(torch.uint8), 1.0, 0, dtype)
        images = []
        for image in input.split(1):
            codes, step, zero_point = quantize_image(image, norm=norm, silu=silu)
            convolve = self._native if is_native else self._plain
            images.append(convolve(codes, step, zero_point, dtype))
        return images[0] if len(images) == 1 else torch.cat(images)

    def extra_repr(self) -> str:
        """What printing shows in the brackets."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, dtype={self.dtype}, kernel={self.kernel!r}"
        )

    def _is_packed_on(self, device_type: str) -> bool:
        usable = device_type == "cpu" and has_onednn_convolution()
        if self.kernel == "onednn" and not usable:
            raise ArgumentError(f"kernel: 'onednn' does not work on device {device_type!r} here; take 'auto'")
        return usable and self.kernel != "plain"

    def _native(self, codes: torch.Tensor, step: float, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
        out = onednn_convolution(
            codes,
            self._pack(),
            step=step,
            zero_point=zero_point,
            weight_scale=self.weight_scale,
            bias=self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            dtype=dtype if dtype in _NATIVE else torch.float32,
        )
        return out.to(dtype)

    def _plain(self, codes: torch.Tensor, step: float, zero_point: int, dtype: torch.dtype) -> torch.Tensor:
        where = (self.stride, self.padding, self.dilation, self.groups)
        with whole_floats(codes.device.type):
            sums = F.conv2d(codes.float() - zero_point, self.plain_codes().float(), None, *where)
        out = sums.mul_((self.weight_scale * step)[:, None, None])
        if self.bias is not None:
            out.add_(self.bias[:, None, None])
        return out.to(dtype)

    def _to_packed(self, codes: torch.Tensor) -> torch.Tensor:
        return pack_convolution(
            codes, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups
        )

    def _from_packed(self, packed: torch.Tensor) -> torch.Tensor:
        return packed.to_dense()


def _pair(numbers: Sequence[int | str] | str) -> tuple[int, int]:
    return int(numbers[0]), int(numbers[1])
