"""Networks in fixed point: 8-bit weights and features, trained straight through, calibrated, and taken back.

The number format and the modules that round to it are in :mod:`sparing.faults.number_format`. Batch normalization
itself, sums, pools and logits are not rounded.
"""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError, NonFiniteError
from sparing.faults.number_format import FixedPointFeatures, FixedPointWeight, exponent_of, writable
from sparing.faults.sites import (
    FaultSite,
    check_model,
    fault_sites,
    fixed_point_features,
    image_batches,
    register_before_corrections,
)
from sparing.quant.packing import Int8Layer
from sparing.runs.modes import evaluating

__all__ = ["calibrate_", "fixed_point_", "is_fixed_point", "remove_fixed_point_"]


def fixed_point_(model: nn.Module, images: Tensor | Iterable[Tensor]) -> tuple[FaultSite, ...]:
    """Makes a network compute with 8-bit weights and features, in training and evaluation.

    Weights of all layers get a :class:`FixedPointWeight`, after any parametrization that is there; features of
    convolutions a :class:`FixedPointFeatures`. Int8 layers keep their weights. Logits, and the features of other
    linear layers, are not rounded. Parameters stay the objects they are; a weight's name in the state dict becomes
    ``….parametrizations.weight.original``, and ``….fixed_point.peak`` and ``….step`` join.

    Args:
        model: changed in place; nothing changes on an error.
        images: one batch n × c × h × w, or several, for the ranges of features.

    Returns:
        The layers that faults can hit.

    Raises:
        ArgumentError: a fixed-point model already, no layers, no images, or a compiled model.
        DtypeError, NonFiniteError, ShapeError: as :func:`~sparing.faults.fault_sites`, or a weight with NaN.

    Example:
        >>> sites = fixed_point_(model, images)
        >>> sites[0].output
        'bn1'
    """
    if is_fixed_point(model):
        raise ArgumentError("model: it is a fixed-point model already; use calibrate_ for new ranges")
    batches = image_batches(images, "images")
    sites = fault_sites(model, batches[0])
    modules = dict(model.named_modules())
    for site in sites:
        weight = modules[site.name].weight if not isinstance(modules[site.name], Int8Layer) else None
        if isinstance(weight, Tensor):
            exponent_of(weight, f"weight of {site.name}")
    try:
        for site in sites:
            layer, output = modules[site.name], modules[site.output]
            if not isinstance(layer, Int8Layer):
                parametrize.register_parametrization(layer, "weight", FixedPointWeight().train(layer.training))
            if site.feature_shape is not None:
                output.add_module("fixed_point", FixedPointFeatures(layer, site.feature_shape).train(output.training))
                register_before_corrections(output, _round_output)
        calibrate_(model, batches)
    except BaseException:
        remove_fixed_point_(model)
        raise
    return fault_sites(model)


def calibrate_(model: nn.Module, images: Tensor | Iterable[Tensor]) -> None:
    """Finds the ranges of features anew: those of the largest values of the images, in evaluation mode.

    Args:
        model: a fixed-point model; nothing changes on an error.
        images: one batch n × c × h × w, or several.

    Raises:
        ArgumentError: no fixed-point model, or no images.
        DtypeError, NonFiniteError, ShapeError: images that are no batch, or NaN or infinity in them or in features.
    """
    check_model(model)
    if not is_fixed_point(model):
        raise ArgumentError("model: expected a fixed-point model; use fixed_point_ first")
    found = fixed_point_features(model)
    batches = image_batches(images, "images")
    before = [(features, features.peak.clone(), features.step.clone()) for _, features in found]
    try:
        with evaluating(model), torch.no_grad():
            for features, _, _ in before:
                features.restart_()
            for batch in batches:
                model(batch)
            for name, features in found:
                if not all(math.isfinite(float(peak)) for peak in features.seen or ()):
                    raise NonFiniteError(f"features of {name}: expected finite numbers, got NaN or infinity")
    except BaseException:
        for features, peak, step in before:
            features.peak.copy_(peak)
            features.step.copy_(step)
        raise
    finally:
        for features, _, _ in before:
            features.seen = None


def remove_fixed_point_(model: nn.Module) -> None:
    """Takes everything back that :func:`fixed_point_` did: float weights and features, the names they had.

    Args:
        model: changed in place; left alone if it is no fixed-point model.
    """
    for _, module in list(model.named_modules()):
        if isinstance(module._modules.get("fixed_point"), FixedPointFeatures):
            del module._modules["fixed_point"]
            for key in [key for key, hook in module._forward_hooks.items() if hook is _round_output]:
                del module._forward_hooks[key]
        if parametrize.is_parametrized(module, "weight"):
            _remove_from_weight_(module)


def is_fixed_point(model: nn.Module) -> bool:
    """Whether a model rounds weights or features to the format."""
    return any(isinstance(module, FixedPointFeatures | FixedPointWeight) for module in model.modules())


def _round_output(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    """A hook of the module's, so that copies of a model have their own."""
    features = writable(module, output)
    cast("FixedPointFeatures", module.fixed_point)(features)
    return features


def _remove_from_weight_(layer: nn.Module) -> None:
    parts = cast("parametrize.ParametrizationList", layer.parametrizations.weight)  # type: ignore[union-attr]
    kept = [part for part in parts if not isinstance(part, FixedPointWeight)]
    if len(kept) == len(parts):
        return
    if kept:
        for place in reversed(range(len(parts))):
            if isinstance(parts[place], FixedPointWeight):
                del parts[place]
        return
    # A parametrized layer has a class of its own, which copies of the layer share, and PyTorch takes the weight out of
    # that class: so this layer gets another first.
    shared = type(layer)
    own = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, own)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    if "bias" in layer._parameters:
        # The weight before the bias, as it was: optimizers know parameters by their order.
        layer._parameters["bias"] = layer._parameters.pop("bias")
