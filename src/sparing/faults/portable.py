"""A network as bytes that another process can open, also where its weights are parametrized.

PyTorch refuses to pickle modules with parametrizations (their class is made at run time). Here such a module is taken
apart into its own class, its state and its parametrizations, and put together again on the other side.
"""

import io
import pickle
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError

__all__ = ["network_from_bytes", "network_to_bytes"]


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Takes parametrized modules apart; everything else as usual."""
        if not isinstance(obj, nn.Module) or not parametrize.is_parametrized(obj):
            return NotImplemented
        kind = parametrize.type_before_parametrizations(obj)
        # A state and not arguments: what is inside may refer to the module itself.
        return _new, (kind,), dict(obj.__dict__), None, None, _set_state


def network_to_bytes(model: nn.Module) -> bytes:
    """Packs a network: weights, buffers, hooks and mode.

    Args:
        model: whose classes and hooks can be imported by name.

    Raises:
        ArgumentError: something in it cannot be pickled.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
    except Exception as error:  # whatever an object's own pickling raises
        raise ArgumentError(
            f"model: {type(model).__name__} cannot be sent to other processes: {type(error).__name__}: {error}; "
            "define its classes and hooks in an importable module, or use one worker"
        ) from error
    return buffer.getvalue()


def network_from_bytes(data: bytes) -> nn.Module:
    """Opens what :func:`network_to_bytes` packed. Bytes from elsewhere could run any code: never open them."""
    model: nn.Module = pickle.loads(data)  # noqa: S301 - our own bytes, from our parent
    return model


def _new(kind: type[nn.Module]) -> nn.Module:
    return kind.__new__(kind)


def _set_state(module: nn.Module, state: dict[str, Any]) -> None:
    module.__dict__.update(state, _parameters=dict(state["_parameters"]), _modules={})
    for name in state["_modules"]["parametrizations"]:
        # A stand-in makes PyTorch build the class and the property; then the real modules take its place.
        module.register_parameter(name, nn.Parameter(torch.zeros(1), requires_grad=False))
        parametrize.register_parametrization(module, name, nn.Identity(), unsafe=True)
    module.__dict__.update(_parameters=state["_parameters"], _modules=state["_modules"])
