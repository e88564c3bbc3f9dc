"""QuantSpec: how a tensor is quantized, as a small saveable value; QuantParams: the steps found for one tensor."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparing.errors import ConfigError

__all__ = ["QuantParams", "QuantSpec", "make_spec"]


class QuantSpec(BaseModel):
    """How a tensor is quantized; frozen, printable, JSON by ``model_dump_json()``.

    Attributes:
        bits: 2 to 16.
        symmetric: ``True`` uses codes ``±(2**(bits-1) - 1)`` around zero; ``False`` uses ``0 .. 2**bits - 1`` with a
            zero point, and still represents zero exactly. For ``format="uniform"``; the dual formats are skewed anyway.
        granularity: what shares a step: the whole ``"tensor"``; a ``"channel"``, one index of the first axis (output
            channels of a weight); a ``"token"``, one vector along the last axis; a ``"group"`` of ``group_size``
            neighbours along the last axis.
        group_size: for ``"group"`` only, 1 or more; must divide the last axis.
        range: ``"minmax"``; ``"percentile"`` clips beyond that percentile; ``"mse"`` searches the clipping with the
            least squared error (about 25 to 50 times the work).
        percentile: for ``"percentile"``, 50 to 100, by nearest rank.
        format: ``"uniform"``; ``"dual_range"``, one step for negative and one for positive values (twin uniform
            quantization: Z. Yuan et al., PTQ4ViT, 2022, section 3.2); ``"dual_sqrt"``, the same with positive values on
            a square-law grid, made for inputs behind GELU (this project; measured in ``dual_range.py``).
        negative_codes: of the dual formats, codes spent on negative values, 1 to ``2**bits - 2``; ``None`` gives half
            of all codes to ``"dual_range"`` and an eighth to ``"dual_sqrt"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bits: Annotated[int, Field(ge=2, le=16)] = 8
    symmetric: bool = True
    granularity: Literal["tensor", "channel", "token", "group"] = "tensor"
    group_size: Annotated[int, Field(ge=1)] | None = None
    range: Literal["minmax", "percentile", "mse"] = "minmax"
    percentile: Annotated[float, Field(ge=50, le=100)] = 99.9
    format: Literal["uniform", "dual_range", "dual_sqrt"] = "uniform"
    negative_codes: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError(
                f"group_size goes with granularity 'group' and only with it, got granularity {self.granularity!r} and "
                f"group_size {self.group_size!r}"
            )
        if self.format != "uniform" and not self.symmetric:
            raise ValueError(f"symmetric=False is a choice of format 'uniform' only, got format {self.format!r}")
        if self.negative_codes is not None:
            if self.format == "uniform":
                raise ValueError("negative_codes goes with the dual formats only, got format 'uniform'")
            if self.negative_codes > 2**self.bits - 2:
                raise ValueError(f"negative_codes: expected at most {2**self.bits - 2}, got {self.negative_codes}")
        return self

    @property
    def code_min(self) -> int:
        """Smallest code."""
        if self.format != "uniform":
            share = 2 if self.format == "dual_range" else 8
            return -(self.negative_codes or max(1, 2**self.bits // share))
        return -(2 ** (self.bits - 1) - 1) if self.symmetric else 0

    @property
    def code_max(self) -> int:
        """Largest code."""
        if self.format == "uniform" and self.symmetric:
            return int(2 ** (self.bits - 1) - 1)
        return int(2**self.bits - 1 + self.code_min)

    @property
    def code_dtype(self) -> torch.dtype:
        """The smallest integer dtype that holds all codes; int8 where it can be."""
        for dtype in (torch.int8, torch.uint8, torch.int16):
            limits = torch.iinfo(dtype)
            if limits.min <= self.code_min and self.code_max <= limits.max:
                return dtype
        return torch.int32


@dataclass(frozen=True)
class QuantParams:
    """The steps of one tensor, a row for each part that shares a step (in C order: 1, channels, tokens or groups).

    Attributes:
        scale: step, ``(rows, 1)``, float32 (float64 for float64 data), > 0; of the positive side in the dual formats.
        zero_point: code of zero, ``(rows, 1)``, int32; ``None`` where zero is code 0.
        negative_scale: step of negative values in the dual formats, ``(rows, 1)``; else ``None``.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    negative_scale: torch.Tensor | None = None


def make_spec(fields: dict[str, Any]) -> QuantSpec:
    """Validates fields, for example of a saved plan, into a spec.

    Raises:
        ConfigError: naming each bad field, what was expected and what came.
    """
    try:
        return QuantSpec.model_validate(fields)
    except ValidationError as error:
        raise ConfigError.from_validation("spec", error) from None
