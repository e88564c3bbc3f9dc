"""What an optimizer holds, as named tensors and JSON, for a checkpoint; and the way back."""

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sparing.errors import ArgumentError, FormatError, MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["load_optimizer_", "optimizer_tensors"]


def optimizer_tensors(optimizer: "Optimizer") -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Flattens an optimizer's state.

    Args:
        optimizer: one whose state per parameter is tensors and plain values (SGD, Adam, AdamW and the like).

    Returns:
        Tensors named ``"state.<parameter>.<slot>"`` (or ``"group.<group>.<setting>"`` for a learning rate that is a
        tensor), with parameters numbered in the optimizer's order, and the rest as JSON values. The tensors are the
        optimizer's own, not copies: save them before the next step.

    Raises:
        ArgumentError: the optimizer holds something else (LBFGS keeps lists of tensors, Adafactor tensors of other
            shapes than its parameters').
        MissingExtraError: torch is not installed.
    """
    torch = _torch()
    held = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(held["param_groups"]):
        settings = {key: value for key, value in group.items() if key != "params"}
        groups.append({"num_parameters": len(group["params"]), **_split(torch, settings, f"group.{number}.", tensors)})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, slots in held["state"].items():
        for slot, value in slots.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise ArgumentError(
                    f"optimizer: state.{index}.{slot} has shape {tuple(value.shape)}, its parameter "
                    f"{tuple(parameters[index].shape)}; only optimizers such as SGD, Adam and AdamW can be saved"
                )
    state = {
        str(index): _split(torch, slots, f"state.{index}.", tensors) for index, slots in sorted(held["state"].items())
    }
    return tensors, {"class": type(optimizer).__name__, "groups": groups, "state": state}


def load_optimizer_(optimizer: "Optimizer", tensors: "Mapping[str, Tensor]", state: Mapping[str, Any]) -> None:
    """Gives an optimizer the state that :func:`optimizer_tensors` took, so that its next step is bit for bit the same.

    Saved settings (learning rate, betas, `fused`, a scheduler's additions) replace the optimizer's own; settings that
    the saved state does not know stay. Tensors are copied, in the memory format of their parameter.

    Args:
        optimizer: of the same class, over parameters of the same shapes in the same order and groups.
        tensors: exactly the tensors that were taken.
        state: the JSON values that were taken.

    Raises:
        FormatError: another class, other groups, a shape that does not fit its parameter, or a tensor that is missing
            or not expected. The optimizer is unchanged.
        MissingExtraError: torch is not installed.
    """
    torch = _torch()
    unused = set(tensors)
    try:
        if state["class"] != type(optimizer).__name__:
            raise FormatError(f"state: saved by a {state['class']}, expected a {type(optimizer).__name__}")
        groups = _groups(optimizer, tensors, state["groups"], unused)
        slots = _slots(torch, optimizer, tensors, state["state"], unused)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"state: not what optimizer_tensors gives: {error!r}") from error
    if unused:
        raise FormatError(f"tensors: not expected by the optimizer: {sorted(unused)[:5]}")
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def _groups(
    optimizer: "Optimizer", tensors: "Mapping[str, Tensor]", saved: list[dict[str, Any]], unused: set[str]
) -> list[dict[str, Any]]:
    sizes = [group["num_parameters"] for group in saved]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != expected:
        raise FormatError(f"state: saved with groups of {sizes} parameters, expected {expected}")
    groups, first = [], 0
    for number, own in enumerate(optimizer.param_groups):
        settings = {key: value for key, value in own.items() if key != "params"}
        for key, value in _join(saved[number], f"group.{number}.", tensors, unused).items():
            # JSON has no tuples, and AdamW's betas are one.
            settings[key] = tuple(value) if isinstance(settings.get(key), tuple) else value
        groups.append({**settings, "params": list(range(first, first + sizes[number]))})
        first += sizes[number]
    return groups


def _slots(
    torch: ModuleType,
    optimizer: "Optimizer",
    tensors: "Mapping[str, Tensor]",
    saved: Mapping[str, Any],
    unused: set[str],
) -> dict[int, dict[str, Any]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots = {}
    for key, values in saved.items():
        index = int(key)
        if not 0 <= index < len(parameters):
            raise FormatError(f"state: parameter {index} is not among the optimizer's {len(parameters)}")
        prefix = f"state.{index}."
        slots[index] = {
            slot: _fitted(torch, value, parameters[index], f"{prefix}{slot}")
            for slot, value in _join(values, prefix, tensors, unused).items()
        }
    return slots


def _torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", extra="torch", purpose="an optimizer's state") from error
    return torch


def _split(torch: ModuleType, values: Mapping[str, Any], prefix: str, out: "dict[str, Tensor]") -> dict[str, Any]:
    """Moves the tensors among `values` to `out`, and gives their keys and the plain rest."""
    plain: dict[str, Any] = {}
    keys = []
    for key, value in values.items():
        if isinstance(value, torch.Tensor):
            out[f"{prefix}{key}"] = value
            keys.append(key)
            continue
        items = list(value) if isinstance(value, list | tuple) else [value]
        if not all(item is None or isinstance(item, bool | int | float | str) for item in items):
            raise ArgumentError(
                f"optimizer: {prefix}{key} is neither a tensor nor a plain value but {type(value).__name__}; "
                "only optimizers such as SGD, Adam and AdamW can be saved"
            )
        plain[key] = items if isinstance(value, list | tuple) else value
    return {"tensors": keys, "values": plain}


def _join(saved: Mapping[str, Any], prefix: str, tensors: "Mapping[str, Tensor]", unused: set[str]) -> dict[str, Any]:
    joined = dict(saved["values"])
    for key in saved["tensors"]:
        name = f"{prefix}{key}"
        if name not in tensors:
            raise FormatError(f"tensors: {name!r} is missing")
        joined[key] = tensors[name].clone()
        unused.discard(name)
    return joined


def _fitted(torch: ModuleType, value: Any, parameter: "Tensor", name: str) -> Any:
    if not isinstance(value, torch.Tensor) or value.ndim == 0:
        return value
    if value.shape != parameter.shape:
        raise FormatError(f"tensors: {name!r} has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")
    # Fused kernels walk parameter and state side by side in memory.
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
