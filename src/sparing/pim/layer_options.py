"""What a layer may become in a design search: itself, and epitomes in whole crossbars."""

from collections.abc import Mapping, Sequence

import numpy as np

from sparing.errors import ArgumentError
from sparing.pim.crossbar import CrossbarSize, num_planes
from sparing.pim.design import LayerDesign, capped_epitome, epitome_refusal, layer_grid
from sparing.pim.layers import LayerShape, NetworkShape

__all__ = ["layer_options", "network_options"]


def layer_options(
    layer: LayerShape,
    crossbar: CrossbarSize,
    *,
    bits: Sequence[int] = (3,),
    wrapped: bool = True,
    epitomes: bool = True,
    max_sizes: int = 32,
) -> tuple[LayerDesign, ...]:
    """What a layer may become: itself, and epitomes of its own kernel in whole crossbars, each with each of the bits.

    Args:
        layer: the layer.
        crossbar: the size.
        bits: choices.
        wrapped: offer wrapped epitomes too, where there are fewer output channels than the layer's.
        epitomes: False for the layer itself only.
        max_sizes: of rows, and of columns; where there are more, so many are taken, evenly spread.

    Returns:
        By rising number of crossbars, then of columns; each once.

    Raises:
        ArgumentError: no bits, or bits that no crossbar holds.
    """
    if not bits:
        raise ArgumentError("bits: expected at least one choice, got none")
    planes = {choice: num_planes(choice) for choice in bits}
    shapes = {None: None} | {
        capped_epitome(layer, crossbar, max_rows=r * crossbar.rows, max_cols=c * crossbar.cols, wrapped=w): None
        for r, c, w in _sizes(layer, crossbar, wrapped, max_sizes)
        if epitomes
    }
    found = []
    for shape in shapes:
        design = LayerDesign(bits=bits[0], epitome=shape)
        blocks = layer_grid(layer, design, crossbar).num_blocks
        cols = layer.out_channels if shape is None else shape.out_channels
        turn = 2 if shape is None else int(shape.wrapped)
        found += [((blocks * planes[b], cols, turn, b), LayerDesign(bits=b, epitome=shape)) for b in planes]
    return tuple(option for _, option in sorted(found, key=lambda pair: pair[0]))


def _sizes(layer: LayerShape, crossbar: CrossbarSize, wrapped: bool, max_sizes: int) -> list[tuple[int, int, bool]]:
    """Rows and columns in crossbars, and whether to wrap."""
    if epitome_refusal(layer):
        return []
    grid = layer_grid(layer, LayerDesign(), crossbar)
    rows, cols = (_spread(len(cuts), max_sizes) for cuts in (grid.row_cuts, grid.col_cuts))
    return [(r, c, w) for r in rows for c in cols for w in ((False, True) if wrapped else (False,))]


def _spread(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(1, count + 1))
    return sorted({round(x) for x in np.linspace(1, count, most).tolist()})


def network_options(
    network: NetworkShape,
    crossbar: CrossbarSize,
    *,
    bits: Sequence[int] = (3,),
    bits_of: Mapping[str, Sequence[int]] | None = None,
    wrapped: bool = True,
    linear: bool = False,
    dense: Sequence[str] = (),
    max_sizes: int = 32,
) -> dict[str, tuple[LayerDesign, ...]]:
    """:func:`layer_options` of all layers.

    Args:
        network: the layers.
        crossbar: the size.
        bits: choices.
        bits_of: other choices for some layers.
        wrapped: see :func:`layer_options`.
        linear: offer epitomes for linear layers too.
        dense: names of layers that stay as they are but for their bits.
        max_sizes: see :func:`layer_options`.

    Raises:
        ArgumentError: as :func:`layer_options`, or a layer that is not there.
    """
    others = dict(bits_of or {})
    unknown = sorted({*others, *dense} - {layer.name for layer in network.layers})
    if unknown:
        raise ArgumentError(f"bits_of, dense: the network has no mapped layer {', '.join(unknown[:5])}")
    return {
        layer.name: layer_options(
            layer,
            crossbar,
            bits=others.get(layer.name, bits),
            wrapped=wrapped,
            epitomes=layer.name not in dense and (linear or layer.kind == "conv"),
            max_sizes=max_sizes,
        )
        for layer in network.layers
    }
