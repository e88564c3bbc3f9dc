"""The quantized layers of a model: their codes and steps, what lies behind them, and what rounding costs them."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError
from sparing.pim.block_quantizer import BlockQuantizer
from sparing.pim.block_ranges import spread_steps
from sparing.pim.epitome import Epitome
from sparing.pim.input_quantizer import InputQuantizer

__all__ = ["INPUT_QUANTIZER", "QuantizedLayer", "is_quantized", "quantized_layers", "stored_weight", "weight_parts"]

INPUT_QUANTIZER = "input_quantizer"
"""Name under which a layer holds the quantizer of its inputs."""


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A layer with quantized weights.

    Attributes:
        name: of the layer.
        module: the layer.
        weights: its quantizer; its ``steps`` and :attr:`codes` are what is put on the chip.
        stored: the unrounded weight that lies behind, (Eo, Ei, p, q) of an epitome, else the layer's own; an optimizer
            changes it.
        epitome: None for a dense layer.
        inputs: the quantizer of its inputs; None where they stay in float.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    weights: BlockQuantizer
    stored: Tensor
    epitome: Epitome | None
    inputs: InputQuantizer | None

    @property
    def codes(self) -> Tensor:
        """Rows × columns of the crossbars' matrix, int8 up to 8 bits, else int16."""
        return self.weights.codes(self.stored)

    @property
    def num_weights(self) -> int:
        """Weights that the layer computes with, without bias."""
        return self.stored.numel() if self.epitome is None else self.epitome.index.numel()

    def squared_error(self) -> float:
        """|W − Q(W)|² of the weight that the layer computes with."""
        return self._weigh()[0]

    def relative_error(self) -> float:
        """|W − Q(W)|² / |W|² of the weight that the layer computes with."""
        error, energy = self._weigh()
        return error / energy if energy else 0.0

    @torch.no_grad()
    def _weigh(self) -> tuple[float, float]:
        stored, counts = self.stored.double().flatten(1), self.weights.counts
        steps = spread_steps(self.weights.steps.double(), self.weights.grid, (stored.shape[1], stored.shape[0])).T
        uses = torch.ones_like(stored) if counts is None else counts.T
        error = stored - self.codes.T * steps
        return float((uses * error.square()).sum()), float((uses * stored.square()).sum())


def quantized_layers(model: nn.Module) -> list[QuantizedLayer]:
    """The layers of a model whose weights are quantized, in the order of its modules."""
    found = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        for part in weight_parts(module):
            epitome = part if isinstance(part, Epitome) else None
            weights = part if epitome is None else epitome.quantizer
            if isinstance(weights, BlockQuantizer):
                inputs = module._modules.get(INPUT_QUANTIZER)
                of_inputs = inputs if isinstance(inputs, InputQuantizer) else None
                found.append(QuantizedLayer(name, module, weights, stored_weight(module), epitome, of_inputs))
    return found


def is_quantized(module: nn.Module) -> bool:
    """Whether a module is a layer whose weight or inputs are quantized."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return False
    return INPUT_QUANTIZER in module._modules or any(
        isinstance(part, BlockQuantizer) or (isinstance(part, Epitome) and part.quantizer is not None)
        for part in weight_parts(module)
    )


def stored_weight(module: nn.Conv2d | nn.Linear, *, name: str = "module") -> Tensor:
    """The parameter behind a layer's weight: the epitome where there is one, unrounded in any case.

    Raises:
        ArgumentError: there are several, by some other parametrization, or none: a hook computes the weight (pruning,
            weight norm). The message begins with `name`.
    """
    if not parametrize.is_parametrized(module, "weight"):
        if module._parameters.get("weight") is None:
            raise ArgumentError(
                f"{name}: expected a weight that is a parameter, got one that is computed (pruning, weight or spectral "
                "norm); make it permanent first"
            )
        return module.weight
    stored = getattr(module.parametrizations.weight, "original", None)  # type: ignore[union-attr]
    if stored is None:
        raise ArgumentError(f"{name}: its weight is made of several tensors; remove that parametrization first")
    return cast("Tensor", stored)


def weight_parts(module: nn.Module) -> list[nn.Module]:
    """The parametrizations of a layer's weight, the first first."""
    if not parametrize.is_parametrized(module, "weight"):
        return []
    return list(cast("parametrize.ParametrizationList", module.parametrizations.weight))  # type: ignore[union-attr]
