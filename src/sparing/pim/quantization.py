"""Quantized layers into a network and out of it again: weights block by block, inputs bit-serial, as a design says."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError, DtypeError
from sparing.pim.block_quantizer import BlockQuantizer
from sparing.pim.block_ranges import RangeRule
from sparing.pim.convert import remove_weight_parts_
from sparing.pim.crossbar import FLOAT_BITS, BlockGrid, CrossbarSize, block_grid
from sparing.pim.design import LayerDesign, NetworkDesign
from sparing.pim.epitome import Epitome, repetition_map
from sparing.pim.input_quantizer import InputQuantizer
from sparing.pim.quantized_layers import (
    INPUT_QUANTIZER,
    QuantizedLayer,
    is_quantized,
    quantized_layers,
    stored_weight,
    weight_parts,
)
from sparing.quant.ranges import check_finite
from sparing.runs.modes import evaluating

__all__ = ["calibrate_inputs_", "dequantize_", "quantize_"]


def quantize_(
    model: nn.Module,
    design: NetworkDesign,
    *,
    crossbar: CrossbarSize,
    rule: RangeRule = "weighted_mse",
    refresh_every: int | None = None,
    inputs: bool = True,
    input_percentile: float = 100.0,
    calibration: Tensor | Iterable[Tensor] | None = None,
) -> list[QuantizedLayer]:
    """Quantizes the weights and inputs of the design's layers that have fewer than 32 bits.

    Training then trains the network as it will compute; :func:`dequantize_` gives the float network back. A layer keeps
    its class, its bias and its place, and its stored weight stays the parameter that it was.

    Args:
        model: changed in place, after :func:`~sparing.pim.convert.convert_` with the same design; nothing changes on an
            error.
        design: of this network.
        crossbar: blocks of this size have a step of their own.
        rule: how steps are found, see :mod:`sparing.pim.block_ranges`.
        refresh_every: steps are found anew at every so many calls in training mode; None: see
            :class:`~sparing.pim.block_quantizer.BlockQuantizer`.
        inputs: quantize inputs too, to ``design.activation_bits``.
        input_percentile: see :class:`~sparing.pim.input_quantizer.InputQuantizer`.
        calibration: a batch for the model, or batches, from which inputs get their ranges, those quantized before too;
            None: from the first steps of training.

    Returns:
        The quantized layers, in the order of the design.

    Raises:
        ArgumentError: a layer that is not there, is no Conv2d or Linear, is quantized already, is not the epitome of
            the design, or has a weight that a hook computes (pruning, weight norm); numbers out of range; no batch in
            `calibration`, or one without `inputs`.
        DtypeError: `calibration` without tensors.
        NonFiniteError: a weight, or what calibration feeds to a layer, with NaN or infinity.
        ShapeError: a weight that its blocks do not cut.
    """
    if calibration is not None and not inputs:
        raise ArgumentError("calibration: expected None with inputs=False, as only inputs get ranges from it")
    modules, names = dict(model.named_modules()), [n for n, x in design.layers.items() if x.bits != FLOAT_BITS]
    planned = []
    for name in names:
        module = modules.get(name)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise ArgumentError(
                f"design: {name}: expected a Conv2d or Linear of the model, got {type(module).__name__}"
            )
        layer = design.layers[name]
        epitome, stored = _epitome_of(name, module, layer), stored_weight(module, name=f"design: {name}")
        check_finite(stored, name=f"model: {name}")
        uses = None if epitome is None else repetition_map(epitome.index, epitome.size)
        grid = _grid(module, epitome, crossbar)
        weights = BlockQuantizer(stored, grid, layer.bits, rule=rule, counts=uses, refresh_every=refresh_every)
        bits, device = design.activation_bits, stored.device
        fed = InputQuantizer(bits, percentile=input_percentile, device=device) if inputs else None
        planned.append((module, epitome, weights, fed))
    try:
        for module, epitome, weights, fed in planned:
            _attach_(module, epitome, weights, fed)
        if inputs and calibration is not None:
            calibrate_inputs_(model, calibration)
    except BaseException:
        for module, *_ in planned:
            _detach_(module)
        raise
    found = {layer.name: layer for layer in quantized_layers(model)}
    return [found[name] for name in names]


def dequantize_(model: nn.Module) -> list[str]:
    """Takes all quantizers of :func:`quantize_` out; the stored weights are as they are, bit for bit.

    Args:
        model: changed in place. Epitomes stay; see :func:`~sparing.pim.convert.materialize_`. Weights that it made
            plain stay rounded; their inputs no longer are.

    Returns:
        The names of the layers that changed.
    """
    changed = {name: module for name, module in model.named_modules() if is_quantized(module)}
    for module in changed.values():
        _detach_(module)
    return list(changed)


def calibrate_inputs_(model: nn.Module, batches: Tensor | Iterable[Tensor]) -> None:
    """Gives the inputs of all quantized layers the ranges that some batches need; what they had is forgotten.

    Args:
        model: quantized; weights are rounded while ranges are found, inputs are not. Its mode stays.
        batches: a batch for the model, or several.

    Raises:
        ArgumentError: no batch, no quantized inputs, or a layer with quantized inputs that the model never calls.
        DtypeError: not tensors.
        NonFiniteError: NaN or infinity reaches a layer. In all cases the ranges are as before.
    """
    given = [batches] if isinstance(batches, Tensor) else list(batches)
    if not given:
        raise ArgumentError("calibration: expected at least one batch, got none")
    for batch in given:
        if not isinstance(batch, Tensor):
            raise DtypeError(f"calibration: expected tensors, got {type(batch).__name__}")
    quantizers = {x.name: x.inputs for x in quantized_layers(model) if x.inputs is not None}
    if not quantizers:
        raise ArgumentError("model: expected quantized inputs, found none; call quantize_ first")
    before = {name: (q.step.clone(), q.calls.clone()) for name, q in quantizers.items()}
    device = next(iter(quantizers.values())).step.device
    try:
        for quantizer in quantizers.values():
            quantizer.forget_()
        with _observing(model, quantizers.values()), torch.no_grad():
            for batch in given:
                model(batch.to(device))
        idle = [name for name, quantizer in quantizers.items() if not int(quantizer.calls)]
        if idle:
            raise ArgumentError(f"design: the model never calls {', '.join(idle[:5])}; leave such layers out")
        for name, quantizer in quantizers.items():
            check_finite(quantizer.step, name=f"calibration: inputs of {name}")
    except BaseException:
        for name, (step, calls) in before.items():
            quantizers[name].restore_(step, calls)
        raise


def _epitome_of(name: str, module: nn.Conv2d | nn.Linear, design: LayerDesign) -> Epitome | None:
    """The epitome of a layer that is as designed and not quantized yet."""
    parts = weight_parts(module)
    epitome = parts[0] if parts and isinstance(parts[0], Epitome) else None
    if is_quantized(module):
        raise ArgumentError(f"design: {name} is quantized already; dequantize_ the model first")
    if len(parts) > 1 or (parts and epitome is None):
        raise ArgumentError(f"design: {name}: its weight has another parametrization; remove that first")
    shape, asked = None if epitome is None else epitome.shape, design.epitome
    if shape != asked:
        raise ArgumentError(
            f"design: {name}: expected {asked or 'a dense weight'}, got a model with {shape or 'a dense weight'}; "
            f"convert_ it with this design first"
        )
    return epitome


def _attach_(
    module: nn.Conv2d | nn.Linear, epitome: Epitome | None, weights: BlockQuantizer, fed: InputQuantizer | None
) -> None:
    if epitome is None:
        # In evaluation mode: the call that registers must not count as a step of training.
        parametrize.register_parametrization(module, "weight", weights.eval())
    else:
        epitome.quantizer = weights
    weights.train(module.training)
    if fed is not None:
        module.add_module(INPUT_QUANTIZER, fed.train(module.training))
        module.register_forward_pre_hook(_round_inputs, with_kwargs=True)


def _detach_(module: nn.Module) -> None:
    """Takes out what :func:`_attach_` put in, as far as it is there."""
    for part in weight_parts(module):
        if isinstance(part, BlockQuantizer):
            remove_weight_parts_(module, leave_parametrized=False)
        elif isinstance(part, Epitome):
            part.quantizer = None
    # Not by the hook's handle, which a copy of the model would not have.
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _round_inputs]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    module._modules.pop(INPUT_QUANTIZER, None)


def _grid(module: nn.Conv2d | nn.Linear, epitome: Epitome | None, crossbar: CrossbarSize) -> BlockGrid:
    if epitome is not None:
        out, in_, p, q = epitome.size
        return block_grid(in_, out, p * q, crossbar)
    out, in_, *kernel = module.weight.shape
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return block_grid(in_ * groups, out, kernel[0] * kernel[1] if kernel else 1, crossbar, groups=groups)


def _round_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    quantizer = module.get_submodule(INPUT_QUANTIZER)
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": quantizer(kwargs["input"])}


@contextmanager
def _observing(model: nn.Module, quantizers: Iterable[InputQuantizer]) -> Iterator[None]:
    observed = list(quantizers)
    for quantizer in observed:
        quantizer.observing = True
    try:
        with evaluating(model):
            yield
    finally:
        for quantizer in observed:
            quantizer.observing = False
