"""Quantization: specs, ranges, rounding, real int8 layers and simulated ones. Needs the extra ``torch``.

Load → :func:`find_params` → :func:`quantize` / :func:`dequantize`, or :func:`fake_quantize` for both at once.
:class:`Int8Linear` and :class:`Int8Conv2d` compute with real integers; :class:`FakeQuantLinear` simulates any
:class:`QuantSpec`.
"""

from sparing.errors import MissingExtraError as _MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise _MissingExtraError("torch", extra="torch", purpose="sparing.quant") from _error

from sparing.quant.conv import Int8Conv2d
from sparing.quant.functional import dequantize, fake_quantize, quantize
from sparing.quant.gptq import gptq
from sparing.quant.kernels import available_kernels, integer_matmul
from sparing.quant.linear import Int8Linear
from sparing.quant.ranges import find_params
from sparing.quant.simulated import FakeQuantLinear
from sparing.quant.spec import QuantParams, QuantSpec, make_spec

__all__ = [
    "FakeQuantLinear",
    "Int8Conv2d",
    "Int8Linear",
    "QuantParams",
    "QuantSpec",
    "available_kernels",
    "dequantize",
    "fake_quantize",
    "find_params",
    "gptq",
    "integer_matmul",
    "make_spec",
    "quantize",
]
