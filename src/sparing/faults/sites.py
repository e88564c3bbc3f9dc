"""Where faults hit: the layers of a network that multiply by weights, and the places where their outputs are stored."""

import fnmatch
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from sparing.faults.number_format import FixedPointFeatures, exponent_of
from sparing.quant import Int8Conv2d, Int8Linear
from sparing.quant.packing import Int8Layer
from sparing.runs.modes import evaluating

__all__ = [
    "FaultSite",
    "check_images",
    "check_model",
    "fault_sites",
    "fixed_point_features",
    "name_patterns",
    "select_sites",
    "sharing_layers",
    "stored_weight",
]

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d, Int8Conv2d)
_LINEAR = (nn.Linear, Int8Linear)


@dataclass(frozen=True)
class FaultSite:
    """A layer that faults can hit: in its weights, and if it is a convolution, in its features.

    Attributes:
        name: of the layer in the model.
        weight_shape: (Cout, Cin / groups, kh, kw), transposed convolutions (Cin, Cout / groups, kh, kw), or (out, in).
        stored_shape: of what is stored for it: the weight, or the tensor that a parametrization makes it from.
        num_macs: M, products summed up for an output: (Cin / groups) · kh · kw.
        is_convolution: features are hit in convolutions only, never those of a classifier.
        output: module behind which features are hit: the batch normalization that takes the layer's output and
            nothing else, or the layer. Without an example it is the layer, if the model is no fixed-point model.
        feature_shape: (C, H, W) there; None if not known.
        exponent: S of the features' number format; None if not known.
    """

    name: str
    weight_shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    num_macs: int
    is_convolution: bool
    output: str
    feature_shape: tuple[int, int, int] | None = None
    exponent: int | None = None


def fault_sites(model: nn.Module, example: Tensor | None = None) -> tuple[FaultSite, ...]:
    """Lists the layers that faults can hit.

    Args:
        model: with Conv2d, ConvTranspose2d, Linear, Int8Conv2d or Int8Linear layers. It is not changed.
        example: n × c × h × w images for one forward pass in evaluation mode, which says where and in which range
            features are; not needed for a fixed-point model.

    Returns:
        In the order of ``model.named_modules()``.

    Raises:
        ArgumentError: no such layer, a weight that a hook or several tensors make, or a compiled model.
        DtypeError: no module, or a layer that is quantized in a way that is not known.
        NonFiniteError: NaN or infinity in the example or in features.
        ShapeError: features that are not n × c × h × w.
    """
    check_model(model)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _CONVOLUTIONS + _LINEAR)]
    if not layers:
        raise ArgumentError("model: expected at least one Conv2d, ConvTranspose2d or Linear layer, got none")
    found = [_site(name, layer) for name, layer in layers]
    placed = {id(features.layer): (name, features) for name, features in fixed_point_features(model)}
    traced = {} if example is None or placed else _trace(model, example)
    sites = []
    for site, (_, layer) in zip(found, layers, strict=True):
        at, shape, exponent = site.output, None, None
        if id(layer) in placed:
            at, features = placed[id(layer)][0], placed[id(layer)][1]
            shape, exponent = features.feature_shape, features.exponent
        elif site.name in traced:
            at, shape, exponent = traced[site.name]
        sites.append(_placed(site, at, shape, exponent))
    return tuple(sites)


def stored_weight(layer: nn.Module) -> Tensor:
    """What a layer's weight is stored as: the parameter, the tensor behind a parametrization, or int8 codes.

    Of an int8 layer that is packed it is a copy.

    Raises:
        ArgumentError: a weight that a hook or several tensors make.
        DtypeError: a layer that is quantized in a way that is not known.
    """
    if isinstance(layer, Int8Layer):
        return layer.plain_codes()
    kind = type(layer).__name__
    if hasattr(layer, "_packed_params"):
        raise DtypeError(f"model: {kind} keeps its weight in a format that is not known; use sparing.quant's layers")
    stored: Any
    if parametrize.is_parametrized(layer, "weight"):
        parts = cast("parametrize.ParametrizationList", layer.parametrizations.weight)  # type: ignore[union-attr]
        stored = parts.original if parts.is_tensor else None
    else:
        stored = layer._parameters.get("weight")
    if not isinstance(stored, Tensor):
        raise ArgumentError(
            f"model: {kind}: expected a weight that is one stored tensor, got one that is computed from others "
            "(weight norm, pruning); make it permanent first"
        )
    if not stored.is_floating_point():
        raise DtypeError(f"model: {kind}: expected a weight of floats, got {stored.dtype}; use sparing.quant's layers")
    return stored


def sharing_layers(model: nn.Module, sites: Sequence[FaultSite]) -> dict[str, tuple[str, ...]]:
    """Which of some sites have the same stored weight, by the name of each, in the order of `sites`."""
    groups: dict[int, list[str]] = {}
    for site in sites:
        layer = model.get_submodule(site.name)
        groups.setdefault(id(layer if isinstance(layer, Int8Layer) else stored_weight(layer)), []).append(site.name)
    return {name: tuple(group) for group in groups.values() for name in group}


def name_patterns(patterns: Sequence[str] | None, name: str) -> tuple[str, ...] | None:
    """Names of sites, or patterns for them, as a tuple.

    Raises:
        ArgumentError: one text instead of several.
    """
    if isinstance(patterns, str):
        raise ArgumentError(f"{name}: expected a sequence of names, got the text {patterns!r}; write ({patterns!r},)")
    return None if patterns is None else tuple(patterns)


def select_sites(
    sites: Sequence[FaultSite], include: Sequence[str] | None, exclude: Sequence[str] | None
) -> tuple[FaultSite, ...]:
    """Chooses sites by name.

    Args:
        sites: all of a model.
        include: names or patterns (``layer3.*``); None: all.
        exclude: the same, left out.

    Raises:
        ArgumentError: a name or pattern that fits no site, one text instead of several, or nothing is left.
    """
    wanted, unwanted = name_patterns(include, "include"), name_patterns(exclude, "exclude")
    chosen = {site.name for site in sites} if wanted is None else _matching(sites, wanted, "include")
    left_out = set() if unwanted is None else _matching(sites, unwanted, "exclude")
    found = tuple(site for site in sites if site.name in chosen - left_out)
    if not found:
        raise ArgumentError(f"include, exclude: expected to leave a layer, got {include} and {exclude}")
    return found


def fixed_point_features(model: nn.Module) -> list[tuple[str, FixedPointFeatures]]:
    """Where a fixed-point model rounds features: names of modules, and what rounds behind them."""
    return [
        (name, features)
        for name, module in model.named_modules()
        if isinstance(features := module._modules.get("fixed_point"), FixedPointFeatures)
    ]


def check_model(model: nn.Module) -> None:
    """Refuses what hooks do not reach.

    Raises:
        ArgumentError: a compiled or scripted model.
        DtypeError: no module.
    """
    if not isinstance(model, nn.Module):
        raise DtypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        is_compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if is_compiled or isinstance(module, torch.jit.ScriptModule):
            raise ArgumentError(
                f"model: {name or 'it'} is compiled or scripted and would not see faults; give the plain module "
                "(of torch.compile: model._orig_mod), and call that"
            )


def check_images(images: Tensor, name: str) -> None:
    """Refuses what is no batch.

    Raises:
        DtypeError, NonFiniteError, ShapeError: as it says.
    """
    if not isinstance(images, Tensor):
        raise DtypeError(f"{name}: expected a tensor of images, got {type(images).__name__}")
    if images.ndim == 0 or images.shape[0] == 0:
        raise ShapeError(f"{name}: expected at least one image, got shape {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise NonFiniteError(f"{name}: expected finite numbers, got NaN or infinity")


def _site(name: str, layer: nn.Module) -> FaultSite:
    stored = tuple(stored_weight(layer).shape)
    is_convolution = isinstance(layer, _CONVOLUTIONS)
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        num_macs = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
        pair = (layer.out_channels, layer.in_channels)
        first, second = pair if isinstance(layer, nn.Conv2d) else pair[::-1]
        shape: tuple[int, ...] = (first, second // layer.groups, *layer.kernel_size)
    elif isinstance(layer, nn.Linear):
        num_macs, shape = layer.in_features, (layer.out_features, layer.in_features)
    else:
        shape = stored
        num_macs = int(torch.Size(stored[1:]).numel())
    return FaultSite(name, shape, stored, num_macs, is_convolution, name)


def _placed(site: FaultSite, output: str, shape: tuple[int, int, int] | None, exponent: int | None) -> FaultSite:
    return FaultSite(
        site.name, site.weight_shape, site.stored_shape, site.num_macs, site.is_convolution, output, shape, exponent
    )


def _matching(sites: Sequence[FaultSite], patterns: Sequence[str], name: str) -> set[str]:
    names, found = [site.name for site in sites], set()
    for pattern in patterns:
        fitting = [site for site in names if site == pattern or fnmatch.fnmatchcase(site, pattern)]
        if not fitting:
            raise ArgumentError(f"{name}: no layer is called {pattern!r}; there are {', '.join(map(repr, names))}")
        found |= set(fitting)
    return found


def _trace(model: nn.Module, example: Tensor) -> dict[str, tuple[str, tuple[int, int, int], int]]:
    """Where convolutions' features are, by layer: one forward pass in evaluation mode."""
    check_images(example, "example")
    outputs: dict[str, tuple[Any, int]] = {}
    calls: Counter[str] = Counter()
    taken: dict[str, list[str]] = {}
    features: dict[str, tuple[tuple[int, int, int], int]] = {}

    def keep(layer: str, at: str, output: Any) -> None:
        # At once: what comes next may change features in place.
        shape, exponent = _described(layer, output)
        features[at] = shape, max(exponent, features[at][1]) if at in features else exponent

    def after_layer(name: str, output: Any) -> None:
        keep(name, name, output)
        outputs[name] = output, _changes(output)
        calls[name] += 1

    def after_norm(name: str, given: Any, output: Any) -> None:
        for layer, (known, changes) in outputs.items():
            # The same tensor, and nothing has changed it in between (a ReLU in place would).
            if known is given and changes == _changes(given):
                taken.setdefault(name, []).append(layer)
                keep(layer, name, output)

    with ExitStack() as stack, evaluating(model), torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, _CONVOLUTIONS):
                handle = module.register_forward_hook(lambda _, __, output, name=name: after_layer(name, output))
            elif isinstance(module, _BatchNorm):
                handle = module.register_forward_hook(
                    lambda _, given, output, name=name: after_norm(name, given[0] if given else None, output)
                )
            else:
                continue
            stack.callback(handle.remove)
        model(example)
    # A normalization behind several layers, or not behind every call of its layer: then the layer's own output counts.
    followers = Counter(layer for layers in taken.values() for layer in set(layers))
    behind = {
        layers[0]: norm
        for norm, layers in taken.items()
        if layers == [layers[0]] * calls[layers[0]] and followers[layers[0]] == 1
    }
    return {name: (behind.get(name, name), *features[behind.get(name, name)]) for name in outputs}


def _changes(x: Tensor) -> int:
    """How often a tensor was changed in place, as far as it is counted."""
    return 0 if x.is_inference() else x._version


def _described(name: str, features: Any) -> tuple[tuple[int, int, int], int]:
    if not isinstance(features, Tensor) or features.ndim != 4:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ShapeError(f"model: {name}: expected features n × c × h × w, got {shape}")
    return (features.shape[1], features.shape[2], features.shape[3]), exponent_of(features, f"features of {name}")
