"""Error proxy: how much of its weights a layer loses as an epitome in few bits, before anything is trained.

What it is: the squared error of the weights that the layer computes with, |W − Q(W')|², as a share of |W|², times the
number of weights, times a sensitivity where one is known (HAWQ's: the mean curvature times the mean squared weight).
For weights without a pattern (He initialisation, K. He et al., 2015) the least-squares fit leaves over
1 − used elements / weights in the mean, exactly: it is a projection onto so many dimensions. So without a model this is
a count of the weights that are lost, and nothing is drawn at random. Rounding adds the error of a Gaussian rounded with
the best step (J. Max, *Quantizing for Minimum Distortion*, 1960), which is what is left of each element.

What it is not: an accuracy. Training moves an epitome far from its fit, and layers differ in what they can spare. It
sees nothing of how elements are shared, so that a wrapped epitome would be as good as any other of its size; for what
that cannot represent (its output channels are copies) :data:`COPY_PENALTY` takes a share, a guess of this project.
Within one layer it ranks sizes and bits in the order that one expects; between layers trust it only with sensitivities.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from scipy.special import ndtr
from torch import Tensor, nn

from sparing.errors import ArgumentError, NonFiniteError
from sparing.pim.crossbar import FLOAT_BITS, num_planes
from sparing.pim.design import LayerDesign
from sparing.pim.epitome import EpitomeShape, WeightShape, epitome_index, fit_epitome, patches_of, repetition_map
from sparing.pim.layers import LayerShape
from sparing.pim.quantized_layers import stored_weight

__all__ = ["COPY_PENALTY", "error_proxy", "gaussian_rounding_error", "num_used_elements"]

COPY_PENALTY = 0.5
"""Share of what a wrapped epitome keeps that counts as lost for each output channel that is a copy of another."""


def error_proxy(
    model: nn.Module | None = None,
    *,
    sensitivity: Mapping[str, float] | None = None,
    copy_penalty: float = COPY_PENALTY,
) -> Callable[[LayerShape, LayerDesign], float]:
    """A function that gives the proxy of a layer as designed; see the top of this file for what it means.

    Args:
        model: pretrained and not converted, whose weights are fitted; None for weights without a pattern. Rounding is
            that of Gaussian elements in either case.
        sensitivity: of layers by name, >= 0; 1 where a layer is not named.
        copy_penalty: see :data:`COPY_PENALTY`, 0 to 1.

    Returns:
        ``(layer, design) -> error``, >= 0. Cost: microseconds; with a model a fit for each shape of each layer, once.

    Raises:
        ArgumentError: a penalty or sensitivity out of range. The function raises it for a layer that the model lacks,
            and :class:`~sparing.errors.ShapeError` where an epitome does not fit.
    """
    if not 0 <= copy_penalty <= 1:
        raise ArgumentError(f"copy_penalty: expected 0 to 1, got {copy_penalty}")
    weigh = dict(sensitivity or {})
    for name, value in weigh.items():
        if not (math.isfinite(value) and value >= 0):
            raise ArgumentError(f"sensitivity: {name}: expected a number of 0 or more, got {value}")
    weights = None if model is None else _weights(model)
    known: dict[tuple[str, EpitomeShape], float] = {}

    def kept_of(layer: LayerShape, epitome: EpitomeShape) -> float:
        if weights is None:
            return num_used_elements(layer.weight_shape, epitome) / layer.num_weights
        if (layer.name, epitome) not in known:
            if layer.name not in weights:
                raise ArgumentError(f"model: it has no Conv2d or Linear layer {layer.name}")
            weight = weights[layer.name].view(layer.weight_shape)
            index, size = epitome_index(layer.weight_shape, epitome), epitome.size_of(layer.weight_shape)
            known[layer.name, epitome] = 1 - fit_epitome(weight, index, size)[1]
        return known[layer.name, epitome]

    def error(layer: LayerShape, design: LayerDesign) -> float:
        kept = 1.0
        if design.epitome is not None:
            kept = kept_of(layer, design.epitome)
            if design.epitome.wrapped:
                kept *= 1 - copy_penalty * (1 - design.epitome.out_channels / layer.out_channels)
        lost = 1 - kept + kept * gaussian_rounding_error(design.bits)
        return weigh.get(layer.name, 1.0) * layer.num_weights * lost

    return error


@lru_cache(maxsize=4096)
def num_used_elements(weight_shape: WeightShape, epitome: EpitomeShape) -> int:
    """Elements of an epitome that some weight comes from.

    Raises:
        ShapeError: the epitome does not fit the weight.
    """
    size = epitome.size_of(weight_shape)
    if size[2:] != weight_shape[2:]:
        return int((repetition_map(epitome_index(weight_shape, epitome), size) > 0).sum())
    # The first group of inputs of each output group is as wide as the epitome, so that only outputs can be left out.
    is_used = np.zeros(size[0], np.bool_)
    for patch in patches_of(weight_shape, epitome):
        is_used[patch.from_out : patch.from_out + patch.num_out] = True
    return int(is_used.sum()) * size[1] * size[2] * size[3]


@lru_cache(maxsize=32)
def gaussian_rounding_error(bits: int) -> float:
    """Mean squared error of a standard normal number rounded to sign and magnitude with the best step.

    Args:
        bits: 2 to 16, or 32 for no rounding, 0.

    Raises:
        ArgumentError: other bits.
    """
    if num_planes(bits) == FLOAT_BITS:
        return 0.0
    codes = np.arange(1, 2 ** (bits - 1))
    best, low, high = 1.0, 0.3, 12.0  # the largest value, in standard deviations
    for _ in range(4):
        tried = np.linspace(low, high, 25)
        errors = [_rounding_error(most / codes[-1], codes) for most in tried]
        at = int(np.argmin(errors))
        best, low, high = errors[at], tried[max(0, at - 1)], tried[min(24, at + 1)]
    return best


def _rounding_error(step: float, codes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """E(x − Q(x))² = 1 − 2·E(x·Q(x)) + E(Q(x)²), where codes change at halves of the step."""
    edges = (codes - 0.5) * step
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    product = 2 * step * density.sum()
    square = 2 * step**2 * ((2 * codes - 1) * ndtr(-edges)).sum()
    return float(1 - 2 * product + square)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found[name] = stored_weight(module).detach()
            if not bool(found[name].isfinite().all()):
                raise NonFiniteError(f"model: {name}: expected finite weights, got NaN or infinity")
    return found
