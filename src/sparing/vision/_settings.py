"""Fields to a settings object, with errors that name each bad field; what settings share; a device's arithmetic."""

from collections.abc import Mapping
from typing import Literal, TypeAlias, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from sparing.errors import ArgumentError, ConfigError

__all__ = ["Precision", "Stem", "resolve_precision", "validated"]

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]
Stem: TypeAlias = Literal["imagenet", "cifar"]
_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], fields: Mapping[str, object]) -> _Model:
    """Validates fields.

    Raises:
        ConfigError: naming each bad field, what was expected and what came.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise ConfigError.from_validation(model.__name__, error) from None


def resolve_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Turns ``"auto"`` into bfloat16 where the device computes it natively, else float32; never float16.

    Raises:
        ArgumentError: another precision.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ArgumentError(f"precision: expected 'auto', 'float32' or 'bfloat16', got {precision!r}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    try:
        native = device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        native = False
    return "bfloat16" if native else "float32"
