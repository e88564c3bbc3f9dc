"""Where faults hit: the layers of a network that multiply by weights, and the places where their outputs are stored."""

import fnmatch
import math
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError
from sparing.faults.number_format import FixedPointFeatures, exponent_of
from sparing.quant import Int8Conv2d, Int8Linear
from sparing.quant.packing import Int8Layer
from sparing.runs.modes import evaluating

__all__ = [
    "FaultSite",
    "UnreachedWeightsWarning",
    "check_images",
    "check_model",
    "fault_sites",
    "fixed_point_features",
    "image_batches",
    "name_patterns",
    "register_before_corrections",
    "select_sites",
    "sharing_layers",
    "storage_of",
    "stored_weight",
    "tell_no_more",
]

_CONVOLUTIONS = (_ConvNd, Int8Conv2d)
_LINEAR = (nn.Linear, Int8Linear)
_NAMED = 5
"""Layers that a warning names."""
_TOLD: WeakSet[nn.Module] = WeakSet()
"""Networks of which it is known what faults do not reach."""


class UnreachedWeightsWarning(UserWarning):
    """A network has weights that faults never hit: it would seem to bear more than it does."""


@dataclass(frozen=True)
class FaultSite:
    """A layer that faults can hit: in its weights, and if it is a convolution, in its features.

    Attributes:
        name: of the layer in the model.
        weight_shape: (Cout, Cin / groups, kh, kw), transposed convolutions (Cin, Cout / groups, kh, kw), or (out, in);
            convolutions of one or three axes have one or three k.
        stored_shape: of what is stored for it: the weight, or the tensor that a parametrization makes it from.
        num_macs: M, products summed up for an output: (Cin / groups) · kh · kw; of a transposed convolution, whose
            outputs differ in it, their mean: that divided by the strides.
        is_convolution: features are hit in convolutions only, never those of a classifier.
        output: module behind which features are hit: the batch normalization that takes the layer's output and
            nothing else, or the layer. Without an example it is the layer, if the model is no fixed-point model.
        feature_shape: (C, H, W) there, or as many axes as the convolution has; None if not known.
        exponent: S of the features' number format; None if not known.
    """

    name: str
    weight_shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    num_macs: float
    is_convolution: bool
    output: str
    feature_shape: tuple[int, ...] | None = None
    exponent: int | None = None


def fault_sites(model: nn.Module, example: Tensor | None = None) -> tuple[FaultSite, ...]:
    """Lists the layers that faults can hit.

    Args:
        model: with convolutions (plain or transposed, of one to three axes, or Int8Conv2d) or Linear or Int8Linear
            layers. It is not changed.
        example: n × c × h × w images (or what else the model takes) for one forward pass in evaluation mode, which says
            where and in which range features are; not needed for a fixed-point model.

    Returns:
        In the order of ``model.named_modules()``.

    Warns:
        UnreachedWeightsWarning: other modules have weights too (recurrent layers, attention, embeddings); once a model.

    Raises:
        ArgumentError: no such layer, a weight that a hook or several tensors make, or a compiled model.
        DtypeError: no module, or a layer that is quantized in a way that is not known.
        NonFiniteError: NaN or infinity in the example or in features.
        ShapeError: features that are not n × c × …, with as many axes as the convolution has.
    """
    check_model(model)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _CONVOLUTIONS + _LINEAR)]
    if not layers:
        raise ArgumentError("model: expected at least one convolution or Linear layer, got none")
    if model not in _TOLD:
        _tell(model, [layer for _, layer in layers])
        tell_no_more(model)
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


def tell_no_more(model: nn.Module) -> None:
    """Lets a model pass without warnings, for example where a copy of it had them."""
    _TOLD.add(model)


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
    groups: dict[Hashable, list[str]] = {}
    for site in sites:
        groups.setdefault(storage_of(model.get_submodule(site.name)), []).append(site.name)
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
        ArgumentError: a compiled or scripted model, or one with a lazy layer that has not run yet.
        DtypeError: no module.
    """
    if not isinstance(model, nn.Module):
        raise DtypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if getattr(module, "has_uninitialized_params", bool)():
            raise ArgumentError(f"model: {name or 'it'} is lazy and has no weights yet; run the model once")
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


def image_batches(images: Tensor | Iterable[Tensor], name: str, *, least: int = 1) -> list[Tensor]:
    """One batch or several as a list, each checked.

    Args:
        images: what a caller gave.
        name: of the argument.
        least: images of a batch.

    Raises:
        ArgumentError: no batch.
        DtypeError, NonFiniteError, ShapeError: as :func:`check_images`, or a batch of fewer images.
    """
    given: object = images
    if not isinstance(given, Iterable):
        raise DtypeError(f"{name}: expected one batch or several, got {type(given).__name__}")
    batches = [images] if isinstance(images, Tensor) else list(images)
    if not batches:
        raise ArgumentError(f"{name}: expected at least one batch, got none")
    for batch in batches:
        check_images(batch, name)
        if len(batch) < least:
            raise ShapeError(f"{name}: expected batches of {least} or more images, got shape {tuple(batch.shape)}")
    return batches


def _site(name: str, layer: nn.Module) -> FaultSite:
    stored = tuple(stored_weight(layer).shape)
    is_convolution = isinstance(layer, _CONVOLUTIONS)
    num_macs: float
    if isinstance(layer, _ConvNd):
        num_macs = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        first, second = layer.out_channels, layer.in_channels
        if isinstance(layer, _ConvTransposeNd):
            first, second = second, first
            strides = math.prod(layer.stride)
            num_macs = num_macs / strides if num_macs % strides else num_macs // strides
        shape: tuple[int, ...] = (first, second // layer.groups, *layer.kernel_size)
    elif isinstance(layer, nn.Linear):
        num_macs, shape = layer.in_features, (layer.out_features, layer.in_features)
    else:
        shape = stored
        num_macs = int(torch.Size(stored[1:]).numel())
    return FaultSite(name, shape, stored, num_macs, is_convolution, name)


def register_before_corrections(module: nn.Module, hook: Callable[..., Tensor]) -> Callable[[], None]:
    """Registers a hook before those that correct faults, behind all others."""
    handle = module.register_forward_hook(hook)
    hooks = cast("OrderedDict[int, Any]", module._forward_hooks)
    others = [key for key in hooks if key != handle.id]
    first = next((at for at, key in enumerate(others) if getattr(hooks[key], "after_faults", False)), len(others))
    for key in others[first:]:
        hooks.move_to_end(key)
    return handle.remove


def storage_of(layer: nn.Module) -> Hashable:
    """What tells the weights of layers apart: equal where they are stored in the same numbers."""
    return id(layer) if isinstance(layer, Int8Layer) else _tensor_key(stored_weight(layer))


def _tensor_key(tensor: Tensor) -> Hashable:
    if tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _tell(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Warns of modules that have weights and are no site."""
    reached = {storage_of(layer): stored_weight(layer).numel() for layer in layers}
    unreached: dict[str, int] = {}
    for name, module in model.named_modules():
        for weight in module.parameters(recurse=False):
            # Factors and offsets, one a channel, are no weights.
            if _tensor_key(weight) not in reached and sum(size > 1 for size in weight.shape) > 1:
                named = f"{name or 'itself'} ({module._get_name()})"
                unreached[named] = unreached.get(named, 0) + weight.numel()
    if not unreached:
        return
    missing = sum(unreached.values())
    first = sorted(unreached, key=lambda named: -unreached[named])[:_NAMED]
    more = f" and {len(unreached) - _NAMED} more" if len(unreached) > _NAMED else ""
    warnings.warn(
        f"model: faults reach {100 * (1 - missing / (missing + sum(reached.values()))):.3g} % of its weights (those of "
        f"convolutions and linear layers); no fault ever hits {', '.join(first)}{more}",
        UnreachedWeightsWarning,
        stacklevel=3,
    )


def _placed(site: FaultSite, output: str, shape: tuple[int, ...] | None, exponent: int | None) -> FaultSite:
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


def _trace(model: nn.Module, example: Tensor) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Where convolutions' features are, by layer: one forward pass in evaluation mode."""
    check_images(example, "example")
    outputs: dict[str, tuple[Any, int]] = {}
    calls: Counter[str] = Counter()
    taken: dict[str, list[str]] = {}
    axes = {
        name: 1 + len(module.kernel_size) for name, module in model.named_modules() if isinstance(module, _CONVOLUTIONS)
    }
    features: dict[str, tuple[tuple[int, ...], int]] = {}

    def keep(layer: str, at: str, output: Any) -> None:
        # At once: what comes next may change features in place.
        shape, exponent = _described(layer, output, axes[layer])
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


def _described(name: str, features: Any, axes: int) -> tuple[tuple[int, ...], int]:
    if not isinstance(features, Tensor) or features.ndim != 1 + axes:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ShapeError(f"model: {name}: expected features n × {' × '.join('c' + 'dhw'[4 - axes :])}, got {shape}")
    return tuple(features.shape[1:]), exponent_of(features, f"features of {name}")
