"""Weights as their cells hold them: a network at the speed of floats that computes what an ideal ADC would read.

What a block's cells conduct, plane by plane and sign by sign, is a matrix of weights again: Σ 2^k · (g⁺ − g⁻) · step.
With that in place of the codes, a network under stuck or badly programmed cells is measured on thousands of images in
the time in which :mod:`sparing.pim.executor` replays a few dozen bit by bit. An element of an epitome is in one place,
so whatever its cells do reaches all the weights that it gives.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparing.errors import ArgumentError
from sparing.pim.mapping import LayerMapping, NetworkMapping
from sparing.pim.nonideal import NetworkCells
from sparing.pim.quantized_layers import QuantizedLayer, quantized_layers
from sparing.runs.modes import evaluating

__all__ = ["cell_weights", "programmed"]


@contextmanager
def programmed(model: nn.Module, mapping: NetworkMapping, cells: NetworkCells) -> Iterator[None]:
    """Lets quantized layers compute with what their cells hold while the block lasts; evaluation mode, no gradients.

    Equal, but for float32's rounding of sums, to :func:`~sparing.pim.executor.executing` with the same cells and an
    ideal ADC; a real ADC's clipping and rounding are not in it.

    Args:
        model: quantized, with the layers of the mapping; restored at the end, also after errors. Not for several
            threads at once.
        mapping: of the model.
        cells: of :func:`~sparing.pim.nonideal.change_cells`.

    Raises:
        ArgumentError: a layer that is not there, is not quantized as mapped, or is in such a block already; cells of
            another mapping; a grouped convolution with conductance where it has no weights.
    """
    if set(cells) != set(mapping.layers):
        odd = ", ".join(sorted(set(cells) ^ set(mapping.layers))[:5])
        raise ArgumentError(f"cells: expected the layers of the mapping, differs in {odd}")
    quantized = {layer.name: layer for layer in quantized_layers(model)}
    planned = []
    for name, own in mapping.layers.items():
        layer = _quantized(name, own, quantized.get(name))
        held = torch.from_numpy(cell_weights(own, cells[name]).T.copy()).to(layer.stored.device)
        planned.append((layer.weights, held.view(layer.weights.shape).to(layer.stored.dtype)))
    try:
        for weights, held in planned:
            weights.held = held
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for weights, _ in planned:
            weights.held = None


def cell_weights(mapping: LayerMapping, cells: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The weights that a layer's cells amount to.

    Args:
        mapping: of the layer.
        cells: conductances block by block, (b − 1) × 2 × rows × columns, in units of a cell that is on.

    Returns:
        Rows × columns of the crossbars' matrix, of one group × all groups' columns, times the blocks' steps.

    Raises:
        ArgumentError: cells of other blocks, or conductance off the diagonal of a grouped convolution.
    """
    blocks, rows_each = mapping.blocks, mapping.cells.shape[2]
    if [c.shape for c in cells] != [(*mapping.cells.shape[:2], b.num_rows, b.num_cols) for b in blocks]:
        raise ArgumentError(f"cells: {mapping.layer.name}: expected the blocks of this mapping, got others")
    planes = np.array([2.0**k for k in range(mapping.cells.shape[0])], np.float32)
    weights = np.zeros(mapping.cells.shape[2:], np.float32)
    each = mapping.layer.out_channels // mapping.layer.groups
    for block, own in zip(blocks, cells, strict=True):
        by_sign = np.tensordot(planes, own.astype(np.float32), 1)
        values = (by_sign[0] - by_sign[1]) * np.float32(block.step)
        cols = np.arange(block.col_start, block.col_start + block.num_cols)
        if mapping.layer.groups == 1:
            weights[block.row_start : block.row_start + block.num_rows, cols] = values
            continue
        rows = block.row_start + np.arange(block.num_rows)
        at_row, at_col = np.nonzero((rows // rows_each)[:, None] == cols // each)
        weights[rows[at_row] % rows_each, cols[at_col]] = values[at_row, at_col]
        if np.count_nonzero(values) != np.count_nonzero(values[at_row, at_col]):
            raise ArgumentError(
                f"cells: {mapping.layer.name}: a grouped convolution has conductance between groups, which no weight "
                "of it can hold; use executing"
            )
    return weights


def _quantized(name: str, mapping: LayerMapping, layer: QuantizedLayer | None) -> QuantizedLayer:
    """The model's layer of a mapping's."""
    if layer is None or layer.inputs is None:
        raise ArgumentError(f"model: {name}: expected quantized weights and inputs; call quantize_ first")
    if layer.weights.held is not None:
        raise ArgumentError(f"model: {name} computes with other cells already; leave that block first")
    expected = (mapping.design.bits, mapping.grid, mapping.activation_bits, np.float32(mapping.input_step))
    found = (layer.weights.bits, layer.weights.grid, layer.inputs.bits, np.float32(float(layer.inputs.step)))
    if found != expected:
        raise ArgumentError(f"mapping: {name}: expected a model quantized like this, {expected}, got {found}")
    return layer
