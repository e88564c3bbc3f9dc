"""Epitomes into a network and out of it again: each changed layer stays the module it was, with another weight."""

from collections import Counter
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError
from sparing.pim.design import NetworkDesign
from sparing.pim.epitome import Epitome
from sparing.pim.quantized_layers import stored_weight

__all__ = ["ConvertedLayer", "convert_", "epitomes_of", "materialize_", "remove_weight_parts_"]


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer that became an epitome.

    Attributes:
        name: of the layer.
        residual: |W − W'|² / |W|² of the weight it had, 0 to 1.
        num_weights: before.
        num_stored: of the epitome.
    """

    name: str
    residual: float
    num_weights: int
    num_stored: int


def convert_(model: nn.Module, design: NetworkDesign) -> list[ConvertedLayer]:
    """Replaces the weights of the design's layers by epitomes fitted to them.

    A layer keeps its class, its bias and its place; ``layer.weight`` is gathered from the epitome at each use, and the
    epitome, ``layer.parametrizations.weight.original``, is what an optimizer changes and a state dict holds.

    Args:
        model: changed in place; nothing changes on an error.
        design: of this network. Layers without an epitome stay as they are; bits are for :mod:`sparing.pim` 's
            quantization.

    Returns:
        What the fit left over, layer by layer.

    Raises:
        ArgumentError: a layer that is not there, is no Conv2d or Linear, has groups, shares its weight with another
            layer, has another parametrization already, or a weight that a hook computes (pruning, weight norm).
        ShapeError: an epitome larger than its layer.
        NonFiniteError: a weight with NaN or infinity.
    """
    modules, uses = dict(model.named_modules()), _uses(model)
    planned: list[tuple[str, nn.Module, Epitome]] = []
    for name, layer in design.layers.items():
        if layer.epitome is None:
            continue
        module = modules.get(name)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise ArgumentError(
                f"design: {name}: expected a Conv2d or Linear of the model, got {type(module).__name__}"
            )
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            raise ArgumentError(f"design: {name} cannot be an epitome: it has {module.groups} groups")
        if parametrize.is_parametrized(module, "weight"):
            raise ArgumentError(f"design: {name}: its weight is parametrized already; materialize_ the model first")
        weight = stored_weight(module, name=f"design: {name}")
        if uses[id(weight)] > 1:
            raise ArgumentError(f"design: {name} shares its weight with another layer; leave it dense")
        epitome = Epitome(tuple(weight.shape), layer.epitome).to(weight.device)
        # Fitted twice, here to find out whether it can be.
        epitome.right_inverse(weight)
        planned.append((name, module, epitome))
    report = []
    for name, module, epitome in planned:
        num_weights = cast("Tensor", module.weight).numel()
        parametrize.register_parametrization(module, "weight", epitome)
        stored = cast("Tensor", module.parametrizations.weight.original)  # type: ignore[union-attr]
        stored.grad = None  # of the old weight's shape
        report.append(ConvertedLayer(name, epitome.residual or 0.0, num_weights, stored.numel()))
    return report


def materialize_(model: nn.Module) -> list[str]:
    """Turns epitomes back into plain weights; the model computes what it computed, bit for bit.

    Args:
        model: changed in place. What is exported (``torch.export``, ONNX) should be materialized. Of a quantized model
            the weights come out rounded, and inputs go on being rounded; to train on, dequantize_ it first.

    Returns:
        The names of the layers that changed.
    """
    names = [name for name, _ in epitomes_of(model)]
    modules = dict(model.named_modules())
    for name in names:
        remove_weight_parts_(modules[name], leave_parametrized=True)
        cast("Tensor", modules[name].weight).grad = None  # of the epitome's shape
    return names


def epitomes_of(model: nn.Module) -> list[tuple[str, Epitome]]:
    """The epitomes of a model, by the names of their layers."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and parametrize.is_parametrized(module, "weight"):
            parts = cast("parametrize.ParametrizationList", module.parametrizations.weight)  # type: ignore[union-attr]
            found += [(name, part) for part in parts if isinstance(part, Epitome)]
    return found


def remove_weight_parts_(module: nn.Module, *, leave_parametrized: bool) -> None:
    """Removes all parametrizations of a layer's weight, in this layer alone.

    A parametrized layer has a class of its own, which copies of the layer share (``copy.deepcopy``); PyTorch takes the
    weight out of that class, and so breaks the copies.

    Args:
        module: with a parametrized weight.
        leave_parametrized: keep the weight as it is computed; False: the one behind it.
    """
    shared = type(module)
    own = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)
    cast("nn.Module", module.parametrizations).eval()  # reading the weight is no step of training
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=leave_parametrized)
    if "bias" in module._parameters:
        # The weight before the bias, as it was: optimizers know parameters by their order.
        module._parameters["bias"] = module._parameters.pop("bias")


def _uses(model: nn.Module) -> Counter[int]:
    """How many layers hold each parameter."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
