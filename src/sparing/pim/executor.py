"""The bit-true executor: a network whose mapped layers compute as the chip would, every bit plane and input cycle.

Bias, norms and what else stands between layers stay digital. How one layer is replayed is in ``datapath.py``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, NonFiniteError, ShapeError
from sparing.pim.adc import AdcModel
from sparing.pim.datapath import layer_sums
from sparing.pim.layers import check_plain, padding_of
from sparing.pim.mapping import LayerMapping, NetworkMapping
from sparing.pim.nonideal import NetworkCells
from sparing.pim.readout import LayerProgram, layer_program
from sparing.runs.modes import evaluating

__all__ = ["execute", "executing"]


def execute(
    model: nn.Module,
    mapping: NetworkMapping,
    images: Tensor,
    *,
    adc: AdcModel,
    cells: NetworkCells | None = None,
    fast: bool = False,
) -> Tensor:
    """Runs a network whose mapped layers compute as on the chip; see :func:`executing`."""
    with executing(model, mapping, adc=adc, cells=cells, fast=fast):
        found: Tensor = model(images)
    return found


@contextmanager
def executing(
    model: nn.Module,
    mapping: NetworkMapping,
    *,
    adc: AdcModel,
    cells: NetworkCells | None = None,
    fast: bool = False,
) -> Iterator[None]:
    """Lets the mapped layers of a model compute as on the chip while the block lasts; evaluation mode, no gradients.

    Results are the same bytes whatever the batch, the number of threads and the kernels: every column sum is exact.

    Args:
        model: with the layers of the mapping; not for several threads at once. Restored at the end, also after errors.
        mapping: of the model; weights are its own, the model's are not read.
        adc: how column sums are read.
        cells: of :func:`~sparing.pim.nonideal.change_cells`; None for cells without faults.
        fast: take whole integer products where the ADC is ideal, instead of every plane and cycle; equal without
            `cells`.

    Raises:
        ArgumentError: a layer that is not there or has other settings, `fast` with a real ADC, or other cells.
    """
    modules = dict(model.named_modules())
    if cells is not None and set(cells) != set(mapping.layers):
        odd = ", ".join(sorted(set(cells) ^ set(mapping.layers))[:5])
        raise ArgumentError(f"cells: expected the layers of the mapping, differs in {odd}")
    planned: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    for name, layer in mapping.layers.items():
        module = modules.get(name)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise ArgumentError(
                f"mapping: {name}: expected a Conv2d or Linear of the model, got {type(module).__name__}"
            )
        _check_module(module, layer)
        device = next(iter(module.parameters())).device
        own = None if cells is None else cells[name]
        program = layer_program(layer, adc, cells=own, fast=fast, device=device)
        planned.append((module, _forward(module, program)))
    before = [(module, module.__dict__.get("forward")) for module, _ in planned]
    try:
        for module, forward in planned:
            module.forward = forward
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for module, forward_before in before:
            module.__dict__.pop("forward", None)
            if forward_before is not None:
                module.forward = forward_before


def _forward(module: nn.Conv2d | nn.Linear, program: LayerProgram) -> Callable[[Tensor], Tensor]:
    layer, bits = program.mapping.layer, program.mapping.activation_bits
    low, high, step = -(1 << (bits - 1)), (1 << (bits - 1)) - 1, program.mapping.input_step

    def forward(input: Tensor) -> Tensor:  # noqa: A002 - as the layers name it
        if not bool(torch.isfinite(input).all()):
            raise NonFiniteError(f"input: {layer.name}: expected finite numbers, got NaN or infinity")
        codes = (input.float() / step).round_().clamp_(low, high)
        if layer.kind == "linear":
            if input.ndim < 1 or input.shape[-1] != layer.in_channels:
                raise ShapeError(
                    f"input: {layer.name}: expected {layer.in_channels} features, got {tuple(input.shape)}"
                )
            result = layer_sums(program, codes.int().reshape(-1, layer.in_channels, 1, 1)).flatten(1)
            result = result.to(input.dtype).view(*input.shape[:-1], layer.out_channels)
            return result if module.bias is None else result + module.bias
        expected = (layer.in_channels, *layer.in_size)
        if input.ndim not in (3, 4) or tuple(input.shape[-3:]) != expected:
            raise ShapeError(f"input: {layer.name}: expected maps of {expected}, as traced, got {tuple(input.shape)}")
        result = layer_sums(program, codes.int().view(-1, *expected)).to(input.dtype)
        if module.bias is not None:
            result = result + module.bias[:, None, None]
        return result if input.ndim == 4 else result.squeeze(0)

    return forward


def _check_module(module: nn.Conv2d | nn.Linear, mapping: LayerMapping) -> None:
    layer = mapping.layer
    if isinstance(module, nn.Linear):
        found: tuple[Any, ...] = ("linear", module.in_features, module.out_features, *[(1, 1)] * 2, (0, 0), (1, 1), 1)
    else:
        where = (module.kernel_size, module.stride, padding_of(module), module.dilation, module.groups)
        found = ("conv", module.in_channels, module.out_channels, *where)
    sizes = (layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups)
    expected = (layer.kind, layer.in_channels, layer.out_channels, *sizes)
    if found != expected:
        raise ArgumentError(f"mapping: {layer.name}: expected the model's layer to be {expected}, got {found}")
    check_plain(module, layer.name)
