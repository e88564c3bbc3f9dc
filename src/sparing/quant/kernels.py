"""Integer matrix products: which of PyTorch's kernels is exact and fast here, and one that always works.

``onednn``: oneDNN's product with packed weights and a step for each output channel (what Inductor lowers to), CPUs with
AVX-512. Its activations must be *unsigned*: signed ones fall to a scalar reference a thousand times slower. ``int_mm``:
:func:`torch._int_mm`, CPU and CUDA. ``plain``: float32 in slices that cannot round, anywhere.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from sparing.errors import ArgumentError, DtypeError, ShapeError

__all__ = [
    "Kernel",
    "available_kernels",
    "has_onednn_convolution",
    "integer_matmul",
    "onednn_convolution",
    "onednn_product",
    "pack_convolution",
    "pack_weight",
    "unpack_weight",
    "whole_floats",
]

Kernel = Literal["onednn", "int_mm", "plain"]

# 127 * 127 * 1024 < 2**24: a float32 sum of so many products of codes is exact in any order.
_EXACT_SLICE = 1024
_DEEPEST = (2**31 - 1) // 127**2

# Not functools.cache, which torch.compile would trace through.
_found: dict[str, tuple[Kernel, ...]] = {}
_found_convolution: dict[str, bool] = {}


def available_kernels(device_type: str = "cpu") -> tuple[Kernel, ...]:
    """Kernels that give exact products on this kind of device, the fastest first.

    Each is tried with the largest codes on the first call in a process: without VNNI, oneDNN's sums of pairs saturate
    in silence (pytorch/pytorch#136746).

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...
    """
    if device_type not in _found:
        _found[device_type] = _try_kernels(device_type)
    return _found[device_type]


def _try_kernels(device_type: str) -> tuple[Kernel, ...]:
    found: list[Kernel] = []
    if device_type == "cpu" and _has_avx512() and _onednn_is_exact():
        found.append("onednn")
    has_int_mm = device_type == "cuda" or (device_type == "cpu" and torch.backends.mkldnn.is_available())
    if has_int_mm and _int_mm_is_exact(device_type):
        found.append("int_mm")
    found.append("plain")
    return tuple(found)


def integer_matmul(
    a: torch.Tensor, b: torch.Tensor, *, kernel: Literal["auto", "int_mm", "plain"] = "auto"
) -> torch.Tensor:
    """The exact product ``a @ b.T`` of int8 matrices in int32.

    Args:
        a: ``(m, k)``, int8 in [-127, 127].
        b: ``(n, k)``, int8 in [-127, 127], on the same device; ``k`` at most 133,144, so that int32 holds the sums.
        kernel: ``"auto"`` takes the fastest exact one.

    Returns:
        ``(m, n)``, int32.

    Raises:
        ArgumentError: a kernel that does not work on this device.
        DtypeError: not int8.
        ShapeError: not matrices of the same ``k``, or a larger one.
    """
    for name, matrix in (("a", a), ("b", b)):
        if matrix.dtype != torch.int8:
            raise DtypeError(f"{name}: expected int8, got {matrix.dtype}")
        if matrix.ndim != 2:
            raise ShapeError(f"{name}: expected 2 axes, got shape {tuple(matrix.shape)}")
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"b: expected {a.shape[1]} columns, as a has, got {b.shape[1]}")
    if a.shape[1] > _DEEPEST:
        raise ShapeError(f"a: expected at most {_DEEPEST:,} columns, whose sums int32 holds, got {a.shape[1]:,}")
    usable = [name for name in available_kernels(a.device.type) if name != "onednn"]
    if kernel == "auto":
        kernel = "int_mm" if "int_mm" in usable else "plain"
    elif kernel not in usable:
        raise ArgumentError(f"kernel: expected one of {usable} on device {a.device.type!r}, got {kernel!r}")
    return _int_mm(a, b) if kernel == "int_mm" else _plain(a, b)


def whole_floats(device_type: str) -> AbstractContextManager[Any]:
    """No autocast, which would round codes to bfloat16, as long as a ``with`` block lasts."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _plain(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    with whole_floats(a.device.type):
        for start in range(0, a.shape[1], _EXACT_SLICE):
            part = slice(start, start + _EXACT_SLICE)
            total += (a[:, part].float() @ b[:, part].float().t()).to(torch.int32)
    return total


def _int_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.device.type != "cuda":
        # oneDNN refuses leading dimensions below the width, and PyTorch leaves the answer unwritten then. It reads them
        # from strides, which mean nothing along axes of length 1 (pytorch/pytorch#195066).
        return _plain(a, b) if a.shape[1] == 1 else torch._int_mm(_canonical(a), _canonical(b).t())
    # cuBLAS takes more than 16 rows, and widths in multiples of 8.
    m, n, k = a.shape[0], b.shape[0], a.shape[1]
    rows, width, depth = max(24, _up_to_8(m)), _up_to_8(n), _up_to_8(k)
    if (rows, depth) != (m, k):
        a = torch.nn.functional.pad(a, (0, depth - k, 0, rows - m))
    if (width, depth) != (n, k):
        b = torch.nn.functional.pad(b, (0, depth - k, 0, width - n))
    return torch._int_mm(a.contiguous(), b.contiguous().t())[:m, :n]


def _canonical(matrix: torch.Tensor) -> torch.Tensor:
    if matrix.stride() == (matrix.shape[1], 1):
        return matrix
    return torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device).copy_(matrix)


def _up_to_8(length: int) -> int:
    return -(-length // 8) * 8


def pack_weight(codes: torch.Tensor) -> torch.Tensor:
    """Reorders ``(n, k)`` int8 codes into oneDNN's own layout, an opaque tensor of about as many bytes."""
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(codes, None)
    return packed


def unpack_weight(packed: torch.Tensor) -> torch.Tensor:
    """The ``(n, k)`` int8 codes of a packed weight."""
    return packed.to_dense().t().contiguous()


def onednn_product(codes: torch.Tensor, packed: torch.Tensor, *, weight_scale: torch.Tensor) -> torch.Tensor:
    """``(codes - 128) @ weight.T * weight_scale``, summed in int32.

    Args:
        codes: ``(m, k)``, uint8, contiguous.
        packed: of :func:`pack_weight`, from ``(n, k)``.
        weight_scale: ``(n,)``, float32.

    Returns:
        ``(m, n)``, float32.
    """
    zero_points = torch.zeros(len(weight_scale), dtype=torch.int32, device=codes.device)
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 128, packed, weight_scale, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def pack_convolution(
    codes: torch.Tensor, *, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> torch.Tensor:
    """Reorders ``(out, in / groups, kh, kw)`` int8 codes into oneDNN's own layout for such a convolution."""
    # Steps and zero points are given at each call; packing asks only whether there is a zero point.
    steps = torch.ones(len(codes), dtype=torch.float32, device=codes.device)
    packed: torch.Tensor = torch.ops.onednn.qconv_prepack(
        codes, steps, 1.0, 1, list(stride), list(padding), list(dilation), groups, None
    )
    return packed


def onednn_convolution(
    codes: torch.Tensor,
    packed: torch.Tensor,
    *,
    step: float,
    zero_point: int,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Convolves ``(codes - zero_point) * step`` with ``weight * weight_scale``, summed in int32, and adds the bias.

    Args:
        codes: ``(n, in, h, w)``, uint8, channels last.
        packed: of :func:`pack_convolution`, with the same settings.
        step: of the codes.
        zero_point: of the codes, 0..255.
        weight_scale: ``(out,)``, float32.
        bias: ``(out,)``, float32.
        stride: (height, width).
        padding: (height, width), with the zero point.
        dilation: (height, width).
        groups: of channels.
        dtype: of the result, float32 or bfloat16.

    Returns:
        ``(n, out, h', w')``, rounded once to the dtype.
    """
    zero_points = torch.zeros(len(weight_scale), dtype=torch.int32, device=codes.device)
    where = (list(stride), list(padding), list(dilation), groups)
    result: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
        codes, step, zero_point, packed, weight_scale, zero_points, bias, *where, 1.0, 0, dtype, "none", [], ""
    )
    return result


def has_onednn_convolution() -> bool:
    """Whether oneDNN's convolution is fast and exact on this CPU; tried with the largest codes on the first call."""
    if "convolution" not in _found_convolution:
        _found_convolution["convolution"] = "onednn" in available_kernels("cpu") and _convolution_is_exact()
    return _found_convolution["convolution"]


def _has_avx512() -> bool:
    return any(name in torch.backends.cpu.get_cpu_capability() for name in ("AVX512", "AVX10", "AMX"))


def _extreme_codes(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.full((24, 256), 127, dtype=torch.int8, device=device)
    a[1::2, ::3] = -127
    return a, a[:16].flip(0).contiguous()


def _ones(num: int) -> torch.Tensor:
    # Whatever the process's default type and device are: what is found here holds for good.
    return torch.ones(num, dtype=torch.float32, device="cpu")


def _onednn_is_exact() -> bool:
    a, b = _extreme_codes("cpu")
    try:
        packed = pack_weight(b)
        product = onednn_product(a.view(torch.uint8) ^ 128, packed, weight_scale=_ones(16))
        return torch.equal(product.to(torch.int32), _plain(a, b)) and torch.equal(unpack_weight(packed), b)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _convolution_is_exact() -> bool:
    weight = torch.full((16, 32, 3, 3), 127, dtype=torch.int8, device="cpu")
    weight[::2, ::3] = -127
    codes = torch.full((1, 32, 5, 5), 255, dtype=torch.uint8, device="cpu")
    codes[:, ::5] = 0
    where: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    with whole_floats("cpu"):
        expected = torch.nn.functional.conv2d(codes.double() - 77, weight.double(), padding=1)
    try:
        packed = pack_convolution(weight, **where)
        settings: dict[str, Any] = {"weight_scale": _ones(16), "bias": None, "dtype": torch.float32, **where}
        found = onednn_convolution(
            codes.contiguous(memory_format=torch.channels_last), packed, step=1.0, zero_point=77, **settings
        )
        return torch.equal(found.double(), expected) and torch.equal(packed.to_dense(), weight)
    except (AttributeError, RuntimeError, TypeError):
        return False


def _int_mm_is_exact(device_type: str) -> bool:
    a, b = _extreme_codes(device_type)
    try:
        return torch.equal(_int_mm(a, b), _plain(a, b))
    except (AttributeError, RuntimeError, TypeError):
        return False
