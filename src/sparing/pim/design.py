"""NetworkDesign: which layers become epitomes and how many bits they hold, as a small value apart from the network."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError

from sparing.errors import ArgumentError
from sparing.pim.crossbar import FLOAT_BITS, BlockGrid, CrossbarSize, block_grid, num_planes
from sparing.pim.epitome import EpitomeShape
from sparing.pim.layers import LayerShape, NetworkShape
from sparing.runs.documents import Document, Settings, parse_document

__all__ = [
    "LayerDesign",
    "NetworkDesign",
    "capped_epitome",
    "dense_design",
    "epitome_refusal",
    "layer_grid",
    "load_design",
    "num_crossbars",
    "uniform_design",
]

_SCHEMA: Literal["sparing.pim.design"] = "sparing.pim.design"
_VERSION: Literal[1] = 1


def _known_bits(bits: int) -> int:
    num_planes(bits)
    return bits


Bits = Annotated[int, AfterValidator(_known_bits)]


class LayerDesign(Settings):
    """What one layer becomes.

    Attributes:
        bits: of its weights, 2 to 16 (sign and magnitude), or 32 for unquantized ones.
        epitome: the epitome in its place; None keeps the layer dense.
    """

    bits: Bits = FLOAT_BITS
    epitome: EpitomeShape | None = None


class NetworkDesign(Document):
    """What each layer of a network becomes; frozen, printable, JSON.

    Attributes:
        layers: from the name of a layer to its design. Layers that are not named stay off the crossbars.
        activation_bits: of the inputs, 1 to 16.
        notes: free text, for people.
    """

    schema_name: Literal["sparing.pim.design"] = _SCHEMA
    version: Literal[1] = _VERSION
    layers: dict[str, LayerDesign]
    activation_bits: Annotated[int, Field(ge=1, le=16)] = 9
    notes: str = ""

    def check(self, network: NetworkShape) -> None:
        """Refuses a design that does not fit a network.

        Raises:
            ArgumentError: a layer that the network lacks, or one that cannot be an epitome; says why.
            ShapeError: an epitome larger than its layer.
        """
        names = {layer.name: layer for layer in network.layers}
        unknown = sorted(set(self.layers) - set(names))
        if unknown:
            raise ArgumentError(f"design: the network has no mapped layer {', '.join(unknown[:5])}")
        for name, layer in self.layers.items():
            if layer.epitome is None:
                continue
            refusal = epitome_refusal(names[name])
            if refusal:
                raise ArgumentError(f"design: {name} cannot be an epitome: {refusal}")
            layer.epitome.check(names[name].weight_shape)


def load_design(path: str | os.PathLike[str]) -> NetworkDesign:
    """Reads a design.

    Raises:
        FormatError: not a design, or an altered one; names the field.
        VersionError: a version that this release does not read.
        OSError: the file cannot be read.
    """
    file = Path(path)
    return parse_document(
        file.read_bytes(), NetworkDesign, schema=_SCHEMA, version=_VERSION, name=file.name, what="a network design"
    )


def epitome_refusal(layer: LayerShape) -> str | None:
    """Why a layer cannot be an epitome; None where it can."""
    if layer.groups > 1:
        return f"it has {layer.groups} groups, and what an epitome shares lies across channels"
    return None


def layer_grid(layer: LayerShape, design: LayerDesign, crossbar: CrossbarSize) -> BlockGrid:
    """The crossbars of one plane of a layer as designed."""
    if design.epitome is None:
        elements = layer.kernel[0] * layer.kernel[1]
        return block_grid(layer.in_channels, layer.out_channels, elements, crossbar, groups=layer.groups)
    out, in_, p, q = design.epitome.size_of(layer.weight_shape)
    return block_grid(in_, out, p * q, crossbar)


def num_crossbars(network: NetworkShape, design: NetworkDesign, crossbar: CrossbarSize) -> int:
    """Crossbars (a positive and a negative one count as one) of all planes of all layers.

    Raises:
        ArgumentError, ShapeError: as :meth:`NetworkDesign.check`.
    """
    design.check(network)
    return sum(
        layer_grid(layer, design.layers[layer.name], crossbar).num_blocks * num_planes(design.layers[layer.name].bits)
        for layer in network.layers
        if layer.name in design.layers
    )


def dense_design(network: NetworkShape, *, bits: int = FLOAT_BITS, activation_bits: int = 9) -> NetworkDesign:
    """Every layer as it is.

    Args:
        network: the layers.
        bits: of the weights.
        activation_bits: of the inputs.

    Raises:
        ArgumentError: bits out of range.
    """
    num_planes(bits)
    return _designed({layer.name: LayerDesign(bits=bits) for layer in network.layers}, activation_bits)


def capped_epitome(
    layer: LayerShape, crossbar: CrossbarSize, *, max_rows: int, max_cols: int, wrapped: bool = False
) -> EpitomeShape | None:
    """The largest epitome of a layer's own kernel within rows and columns; whole kernels to a crossbar.

    Args:
        layer: the layer.
        crossbar: the size.
        max_rows: of the epitome's matrix.
        max_cols: of the epitome's matrix.
        wrapped: see :class:`~sparing.pim.EpitomeShape`.

    Returns:
        The shape; None where the layer fits as it is, is not to be an epitome, or where not one kernel fits.
    """
    if epitome_refusal(layer):
        return None
    elements = layer.kernel[0] * layer.kernel[1]
    per_block = crossbar.rows // elements
    whole, rest = divmod(max_rows, crossbar.rows)
    most = whole * per_block + rest // elements if per_block else max_rows // elements
    in_, out = min(most, layer.in_channels), min(max_cols, layer.out_channels)
    if in_ < 1 or out < 1 or (in_, out) == (layer.in_channels, layer.out_channels):
        return None
    return EpitomeShape(out_channels=out, in_channels=in_, wrapped=wrapped and out < layer.out_channels)


def uniform_design(
    network: NetworkShape,
    crossbar: CrossbarSize,
    *,
    bits: int,
    max_rows: int = 1024,
    max_cols: int = 256,
    min_weights: int = 262_144,
    wrapped: bool = False,
    bits_of: Mapping[str, int] | None = None,
    activation_bits: int = 9,
) -> NetworkDesign:
    """The published form: one epitome size for all large convolutions; small ones and linear layers stay dense.

    Args:
        network: the layers.
        crossbar: the size.
        bits: of the weights.
        max_rows: of the epitomes' matrices.
        max_cols: of the epitomes' matrices.
        min_weights: convolutions with more weights than this become epitomes.
        wrapped: see :class:`~sparing.pim.EpitomeShape`.
        bits_of: other bits for some layers.
        activation_bits: of the inputs.

    Raises:
        ArgumentError: bits or sizes out of range, or a layer that is not there.
    """
    others = dict(bits_of or {})
    for value in (bits, *others.values()):
        num_planes(value)
    for name, most in (("max_rows", max_rows), ("max_cols", max_cols)):
        if most < 1:
            raise ArgumentError(f"{name}: expected at least 1, got {most}")
    unknown = sorted(set(others) - {layer.name for layer in network.layers})
    if unknown:
        raise ArgumentError(f"bits_of: the network has no mapped layer {', '.join(unknown[:5])}")
    designs = {}
    for layer in network.layers:
        large = layer.kind == "conv" and layer.num_weights > min_weights
        epitome = capped_epitome(layer, crossbar, max_rows=max_rows, max_cols=max_cols, wrapped=wrapped)
        designs[layer.name] = LayerDesign(bits=others.get(layer.name, bits), epitome=epitome if large else None)
    return _designed(designs, activation_bits)


def _designed(layers: dict[str, LayerDesign], activation_bits: int) -> NetworkDesign:
    try:
        return NetworkDesign(layers=layers, activation_bits=activation_bits)
    except ValidationError as error:
        raise ArgumentError.from_validation("design", error) from None
