"""Weights in a quarter of the bytes: large matrices as int8 codes with a step for each output channel, on the disk.

Loading gives float32, whatever the dtype was; what is large is rounded by at most half a step. The quantizer's codes
stay as they are: which token an image turns into hangs on their last digits. A state that was rounded once is not
changed by being rounded again.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparing.errors import FormatError
from sparing.quant import QuantParams, QuantSpec, dequantize, find_params, quantize

__all__ = ["is_packed_exactly", "pack_state", "unpack_state"]

_SPEC = QuantSpec(bits=8, granularity="channel")
_FEWEST_VALUES = 4096
_CODES, _STEPS = ".codes", ".steps"
_LEFT = "quantize."


def pack_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounds what is large.

    Args:
        state: name to tensor.

    Returns:
        The same with float tensors of two axes or more as ``NAME.codes`` int8 and ``NAME.steps`` float32; small ones
        and the quantizer's are left.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(_LEFT) or tensor.ndim < 2 or tensor.numel() < _FEWEST_VALUES or tensor.shape[0] == 1:
            packed[name] = tensor
            continue
        weight = tensor.detach().float()
        steps = _short(find_params(weight, _SPEC).scale)
        packed[name + _CODES] = quantize(weight, QuantParams(steps), spec=_SPEC)
        packed[name + _STEPS] = steps.flatten()
    return packed


def _short(steps: Tensor) -> Tensor:
    """Steps rounded up to 16 binary digits: 127 of them are exact then, so that rounding again changes nothing."""
    return ((steps.view(torch.int32) + 0xFF) & ~0xFF).view(torch.float32)


def unpack_state(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turns what :func:`pack_state` made into float32 tensors under their own names; integers are left.

    Raises:
        FormatError: codes without steps, or steps that do not fit them.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(_STEPS) and name.removesuffix(_STEPS) + _CODES in packed:
            continue
        if not name.endswith(_CODES):
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
            continue
        whole = name.removesuffix(_CODES)
        steps = packed.get(whole + _STEPS)
        fits = steps is not None and steps.shape == tensor.shape[:1] and steps.dtype == torch.float32
        if steps is None or not fits or tensor.dtype != torch.int8:
            raise FormatError(f"{whole}: expected int8 codes and a float32 step for each of {len(tensor)} channels")
        state[whole] = dequantize(tensor, QuantParams(steps[:, None]), spec=_SPEC, dtype=torch.float32)
    return state


def is_packed_exactly(state: Mapping[str, Tensor]) -> bool:
    """Returns whether packing loses nothing, as for a state that was loaded from a packed file."""
    back = unpack_state(pack_state(state))
    return all(torch.equal(back[name].to(tensor.dtype), tensor.cpu()) for name, tensor in state.items())
