"""CompressionPlan: what is left out of a model, as a small value apart from it that is printed, saved and compared."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
from pydantic import Field, model_validator

from sparing.runs.documents import Document, Settings, parse_document
from sparing.var.config import VARConfig, linear_names
from sparing.var.windows import DENSE, Widths, first_windowed

__all__ = [
    "CompressionPlan",
    "LayerWindows",
    "LinearFormat",
    "PrecisionPlan",
    "SharingPlan",
    "load_plan",
    "with_options",
]

_SCHEMA: Literal["sparing.var.plan"] = "sparing.var.plan"
_VERSION: Literal[1] = 1
_SHOWN = 4
_Bits = Annotated[int, Field(ge=2, le=8)]
_Width = Annotated[int, Field(ge=DENSE, lt=2**31)]
LayerWindows: TypeAlias = tuple[tuple[tuple[_Width, ...], ...] | None, ...]
"""For each scale of a layer (segment, head) widths of :mod:`sparing.var.windows`, or None where it stays dense."""


class SharingPlan(Settings):
    """Where the unconditional branch takes the conditional branch's attention.

    Attributes:
        variant: ``"output"`` skips qkv, scores, values and proj for that half; ``"map"`` keeps its own values.
        first_scale: for each layer the first scale that shares (all later ones do too), or None for none.
    """

    variant: Literal["output", "map"]
    first_scale: tuple[Annotated[int, Field(ge=0)] | None, ...]


class LinearFormat(Settings):
    """Numbers of one linear layer.

    Attributes:
        weight_bits: of the weights, per output channel; None leaves them.
        activation_bits: of the inputs, per token; None leaves them.
        input_format: how inputs are rounded; the dual formats are made for what comes out of GELU.
        real: integer products (8 bits only); otherwise rounded numbers in the usual arithmetic (simulated).
    """

    weight_bits: _Bits | None = None
    activation_bits: _Bits | None = None
    input_format: Literal["uniform", "dual_range", "dual_sqrt"] = "uniform"
    real: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.real and (self.weight_bits, self.activation_bits, self.input_format) != (8, 8, "uniform"):
            raise ValueError("real: integer products need 8-bit uniform weights and inputs")
        if self.input_format != "uniform" and self.activation_bits is None:
            raise ValueError(f"input_format: {self.input_format} needs activation_bits, which are None")
        return self


class PrecisionPlan(Settings):
    """Numbers of a model.

    Attributes:
        linears: from the name of a linear layer (``"blocks.3.fc1"``, ``"head"``) to its format; others are left.
        kv_bits: of the cached keys and values; None leaves them.
        attention_bits: of q, k, v and the softmax map (simulated); None leaves them.
        decoder_bits: of the tokenizer's decoder, with integer products; None leaves it.
    """

    linears: dict[str, LinearFormat] = Field(default_factory=dict)
    kv_bits: Literal[8] | None = None
    attention_bits: _Bits | None = None
    decoder_bits: Literal[8] | None = None


class CompressionPlan(Document):
    """What is left out of one model.

    Attributes:
        schema_name, version: of the file.
        model: the settings of the model that it was made for.
        weights: fingerprint of that model's weights.
        windows: for each layer, for each scale (segment, head) widths of :mod:`sparing.var.windows`, or None for a
            scale that stays dense; None for no windows at all.
        sharing: where attention is shared across guidance; None for nowhere.
        precision: the numbers; None leaves all.
        notes: how it was made and what was estimated, for people.
    """

    schema_name: Literal["sparing.var.plan"] = _SCHEMA
    version: Literal[1] = _VERSION
    model: VARConfig
    weights: str
    windows: tuple[LayerWindows, ...] | None = None
    sharing: SharingPlan | None = None
    precision: PrecisionPlan | None = None
    notes: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        depth, scales = self.model.depth, len(self.model.patch_nums)
        if self.sharing is not None and len(self.sharing.first_scale) != depth:
            raise ValueError(f"sharing.first_scale: expected {depth} layers, got {len(self.sharing.first_scale)}")
        latest = max((first or 0 for first in self.sharing.first_scale), default=0) if self.sharing is not None else 0
        if latest >= scales:
            raise ValueError(f"sharing.first_scale: expected 0 to {scales - 1}, or null for none, got {latest}")
        names = linear_names(self.model)
        if self.precision is not None and (unknown := sorted(set(self.precision.linears) - set(names))):
            raise ValueError(
                f"precision.linears: no linear layer of this model is named {', '.join(map(repr, unknown[:_SHOWN]))}; "
                f"expected names such as {', '.join(map(repr, [*names[:_SHOWN], names[-1]]))}"
            )
        if self.windows is None:
            return self
        if len(self.windows) != depth or any(len(layer) != scales for layer in self.windows):
            raise ValueError(f"windows: expected {depth} layers of {scales} scales")
        for layer in self.windows:
            for scale, widths in enumerate(layer):
                segments = scale + 1 - first_windowed(scale)
                if widths is not None and (
                    len(widths) != segments or any(len(row) != self.model.num_heads for row in widths)
                ):
                    raise ValueError(f"windows: expected ({segments}, {self.model.num_heads}) widths at scale {scale}")
        return self

    def widths(self, layer: int, scale: int) -> Widths | None:
        """Returns (segments, heads) widths, or None where the scale stays dense."""
        found = None if self.windows is None else self.windows[layer][scale]
        return None if found is None else np.asarray(found, dtype=np.int64).reshape(-1, self.model.num_heads)

    def shares(self, layer: int, scale: int) -> bool:
        """Returns whether a layer's attention is shared at a scale."""
        first = None if self.sharing is None else self.sharing.first_scale[layer]
        return first is not None and scale >= first


def load_plan(path: str | os.PathLike[str]) -> CompressionPlan:
    """Reads a plan.

    Raises:
        FormatError: not a plan, or an altered one; names the field.
        VersionError: a version that this release does not read.
        OSError: the file cannot be read.
    """
    file = Path(path)
    return parse_document(
        file.read_bytes(),
        CompressionPlan,
        schema=_SCHEMA,
        version=_VERSION,
        name=file.name,
        what="a compression plan",
    )


def with_options(
    plan: CompressionPlan,
    *,
    windows: tuple[tuple[LayerWindows, ...], ...] = (),
    tau_of: dict[int, int] | None = None,
    variant: Literal["output", "map"] = "output",
    first_of: dict[int, int] | None = None,
) -> CompressionPlan:
    """Returns a plan with windows and sharing in some layers.

    Args:
        plan: what else it says.
        windows: for each layer and τ those of all scales.
        tau_of: from layer to index of τ; layers not named stay dense.
        variant: what is shared.
        first_of: from layer to the first scale that shares; layers not named share nothing.
    """
    depth, scales = plan.model.depth, len(plan.model.patch_nums)
    changes: dict[str, Any] = {}
    if tau_of:
        dense: LayerWindows = (None,) * scales
        changes["windows"] = tuple(windows[i][tau_of[i]] if i in tau_of else dense for i in range(depth))
    if first_of:
        first = tuple(first_of.get(i) for i in range(depth))
        changes["sharing"] = SharingPlan(variant=variant, first_scale=first)
    return plan.model_copy(update=changes)
