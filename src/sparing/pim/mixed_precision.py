"""Bits for each layer within a number of crossbars: curvature times quantization error, and the best choice of all.

Source: Z. Dong et al., *HAWQ-V2: Hessian Aware trace-Weighted Quantization*, 2020: what rounding a layer costs in
loss is about ½ · mean eigenvalue of its Hessian · |W − Q(W)|², and traces come from products of the Hessian with random
signs (M. Hutchinson, 1989). Here W is the weight that the layer computes with: where it is gathered from an epitome, an
element's curvature is taken to grow with its uses, as its error does, c(e)·(e − Q(e))².
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, NonFiniteError, ShapeError
from sparing.explore.allocate import allocate_exact, allocate_greedy
from sparing.pim.block_ranges import RangeRule, max_code
from sparing.pim.crossbar import CrossbarSize, num_planes
from sparing.pim.design import LayerDesign, NetworkDesign, layer_grid
from sparing.pim.layers import NetworkShape
from sparing.pim.quantization import dequantize_, quantize_
from sparing.pim.quantized_layers import is_quantized, stored_weight
from sparing.runs.modes import evaluating

__all__ = ["BitSensitivity", "hessian_traces", "measure_bit_sensitivity", "mixed_precision_design"]

# Estimates below this share of the median trace a weight are raised to it: a trace may come out negative by chance, and
# no layer is free.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class BitSensitivity:
    """What each number of bits would cost each layer.

    Attributes:
        layers: names.
        bits: the choices, rising.
        traces: of each layer's Hessian with respect to its stored weight, as estimated; may be negative.
        errors: for each layer and each choice |W − Q(W)|².
        loss: for each layer and each choice the loss to expect in nats, ½ · trace / number of weights · error.
    """

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    traces: tuple[float, ...]
    errors: tuple[tuple[float, ...], ...]
    loss: tuple[tuple[float, ...], ...]


def hessian_traces(
    model: nn.Module, images: Tensor, labels: Tensor, layers: Sequence[str], *, num_samples: int = 8, seed: int = 0
) -> list[float]:
    """Estimates the trace of each layer's Hessian of the mean cross-entropy, in evaluation mode.

    Args:
        model: in float, with or without epitomes; nothing of it changes.
        images: a batch for the model.
        labels: its classes, int64.
        layers: names of Conv2d and Linear layers; their stored weights are meant (the epitome where there is one).
        num_samples: random directions, at least 1; the estimate's variance falls with it.
        seed: of the directions; the same seed gives the same estimate on one device.

    Returns:
        A trace for each layer; negative ones happen. Cost: `num_samples` times about four passes over the batch.

    Raises:
        ArgumentError: a quantized model; a layer that is not there, is named twice, or has a weight that a hook
            computes; fewer than 1 sample.
        NonFiniteError: the loss or a trace is NaN or infinite.
        ShapeError: images and labels that differ in number.
    """
    if num_samples < 1:
        raise ArgumentError(f"num_samples: expected at least 1, got {num_samples}")
    if len(images) != len(labels):
        raise ShapeError(f"labels: expected one for each of {len(images)} images, got {len(labels)}")
    _check_float(model)
    stored = [_stored(model, name) for name in layers]
    if len({id(parameter) for parameter in stored}) < len(stored):
        raise ArgumentError("layers: expected each stored weight once, got one twice")
    asked = [parameter.requires_grad for parameter in stored]
    try:
        for parameter in stored:
            parameter.requires_grad_()
        with evaluating(model), torch.enable_grad():
            return _hutchinson(model, images, labels, stored, num_samples, seed)
    finally:
        for parameter, before in zip(stored, asked, strict=True):
            parameter.requires_grad_(before)


def measure_bit_sensitivity(
    model: nn.Module,
    design: NetworkDesign,
    images: Tensor,
    labels: Tensor,
    *,
    crossbar: CrossbarSize,
    bits: Sequence[int] = (3, 5, 7, 9),
    rule: RangeRule = "weighted_mse",
    num_samples: int = 8,
    seed: int = 0,
) -> BitSensitivity:
    """Measures what each choice of bits would cost each layer of a design.

    Args:
        model: in float, all of it, after :func:`~sparing.pim.convert.convert_` with the design; as it was in the end.
        design: names the layers; its bits do not matter.
        images: a batch for the model.
        labels: its classes, int64.
        crossbar: blocks of this size have a step of their own.
        bits: the choices, 2 to 16.
        rule: how steps are found.
        num_samples: see :func:`hessian_traces`.
        seed: see :func:`hessian_traces`.

    Raises:
        ArgumentError, NonFiniteError, ShapeError: as :func:`hessian_traces` and
            :func:`~sparing.pim.quantization.quantize_`; or no layers, or no or unknown bits.
    """
    _check_float(model)
    choices = tuple(sorted({*bits}))
    if not choices or not design.layers:
        raise ArgumentError("bits, design: expected at least one choice of bits and one layer")
    for choice in choices:
        max_code(choice)
    names = tuple(design.layers)
    errors = []
    for choice in choices:
        layers = {name: layer.model_copy(update={"bits": choice}) for name, layer in design.layers.items()}
        trial = design.model_copy(update={"layers": layers})
        quantized = quantize_(model, trial, crossbar=crossbar, rule=rule, inputs=False)
        try:
            errors.append([layer.squared_error() for layer in quantized])
            sizes = [layer.num_weights for layer in quantized]
        finally:
            dequantize_(model)
    traces = hessian_traces(model, images, labels, names, num_samples=num_samples, seed=seed)
    means = torch.tensor(traces, dtype=torch.float64) / torch.tensor(sizes)
    positive = means[means > 0]
    least = _LEAST_SHARE * float(positive.median()) if len(positive) else 1.0
    of_layers = list(zip(*errors, strict=True))
    loss = [
        tuple(0.5 * mean * error for error in row)
        for mean, row in zip(means.clamp(min=least).tolist(), of_layers, strict=True)
    ]
    return BitSensitivity(names, choices, tuple(traces), tuple(of_layers), tuple(loss))


def mixed_precision_design(
    network: NetworkShape,
    design: NetworkDesign,
    sensitivity: BitSensitivity,
    *,
    crossbar: CrossbarSize,
    max_crossbars: int,
    bits_of: Mapping[str, int] | None = None,
    exact: bool = True,
) -> NetworkDesign:
    """Chooses bits layer by layer: the least loss to expect within a number of crossbars.

    Args:
        network: the layers.
        design: of this network; its epitomes stay.
        sensitivity: of this design.
        crossbar: the size.
        max_crossbars: of all layers and planes together.
        bits_of: bits that are settled, for some layers; such layers may be missing from `sensitivity`.
        exact: the best there is (crossbars are whole numbers, so that few sums have to be kept); False: the greedy
            answer, for thousands of layers.

    Returns:
        The design with its bits.

    Raises:
        ArgumentError: layers without a sensitivity, bits that no crossbar holds, or too few crossbars.
        ShapeError: an epitome larger than its layer.
    """
    design.check(network)
    fixed = dict(bits_of or {})
    unknown = sorted(set(fixed) - set(design.layers))
    if unknown:
        raise ArgumentError(f"bits_of: the design has no layer {', '.join(unknown[:5])}")
    loss_of = dict(zip(sensitivity.layers, sensitivity.loss, strict=True))
    missing = [name for name in design.layers if name not in loss_of and name not in fixed]
    if missing:
        raise ArgumentError(f"sensitivity: nothing is known of {', '.join(missing[:5])}")
    losses, crossbars, options = [], [], []
    for name, layer in design.layers.items():
        choices = (fixed[name],) if name in fixed else sensitivity.bits
        blocks = layer_grid(network[name], layer, crossbar).num_blocks
        options.append(choices)
        losses.append((0.0,) if name in fixed else loss_of[name])
        crossbars.append([blocks * num_planes(choice) for choice in choices])
    least = sum(min(counts) for counts in crossbars)
    if max_crossbars < least:
        raise ArgumentError(f"max_crossbars: expected at least {least}, what the fewest bits take, got {max_crossbars}")
    # What the allocation calls errors is spent within a budget, here crossbars; its costs are what it makes small.
    allocate = allocate_exact if exact else allocate_greedy
    found = allocate(crossbars, losses, budget=max_crossbars)
    layers: dict[str, LayerDesign] = {}
    for (name, layer), choices, chosen in zip(design.layers.items(), options, found.choices, strict=True):
        layers[name] = layer.model_copy(update={"bits": choices[chosen]})
    return design.model_copy(update={"layers": layers})


def _check_float(model: nn.Module) -> None:
    if any(is_quantized(module) for module in model.modules()):
        raise ArgumentError("model: expected an unquantized one, whose loss is smooth; dequantize_ it first")


def _stored(model: nn.Module, name: str) -> Tensor:
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise ArgumentError(f"layers: {name}: expected a Conv2d or Linear of the model, got {type(module).__name__}")
    return stored_weight(module, name=f"layers: {name}")


def _hutchinson(
    model: nn.Module, images: Tensor, labels: Tensor, stored: list[Tensor], num_samples: int, seed: int
) -> list[float]:
    device = stored[0].device if stored else torch.device("cpu")
    loss = nn.functional.cross_entropy(model(images.to(device)).float(), labels.to(device))
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError(f"model: expected a finite loss on these images, got {float(loss.detach())}")
    slopes = torch.autograd.grad(loss, stored, create_graph=True)
    generator = torch.Generator(device).manual_seed(seed)
    traces = torch.zeros(len(stored), dtype=torch.float64)
    for sample in range(num_samples):
        # One direction for all layers at once: products between layers are zero in the mean.
        signs = [torch.randint(0, 2, x.shape, generator=generator, device=device).to(x).mul_(2).sub_(1) for x in stored]
        bends = torch.autograd.grad(slopes, stored, signs, retain_graph=sample + 1 < num_samples)
        traces += torch.tensor([float((v * h).sum(dtype=torch.float64)) for v, h in zip(signs, bends, strict=True)])
    if not bool(traces.isfinite().all()):
        raise NonFiniteError("model: expected finite second derivatives on these images, got NaN or infinity")
    return (traces / num_samples).tolist()
