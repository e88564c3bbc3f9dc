"""Architectures as small documents: which primitive each inner node of a cell applies to which earlier nodes.

====================  ===================================================================
in papers             here
====================  ===================================================================
genotype              :class:`Genotype`: one normal cell, one reduction cell
nodes 0, 1            the cell's inputs: output of the cell before the last, of the last
nodes 2 to 5          inner nodes: each the sum of two primitives' outputs
edge                  :class:`Edge`: an earlier node and the primitive applied to it
====================  ===================================================================

Source: X. Ning et al., *FTT-NAS*, arXiv 2003.10375, 2020; primitives and the published genotype as in the authors'
public code.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparing.errors import ArgumentError
from sparing.runs.atomic import replace_file
from sparing.runs.documents import parse_document, validated

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "CellKind",
    "CellNodes",
    "Edge",
    "FEATURE_PRIMITIVES",
    "GENOTYPES",
    "Genotype",
    "NUM_INNER",
    "NUM_INPUTS",
    "SPACES",
    "SpaceName",
    "WEIGHT_PRIMITIVES",
    "load_genotype",
    "save_genotype",
]

_SCHEMA: Literal["sparing.nas.genotype"] = "sparing.nas.genotype"
_VERSION: Literal[1] = 1  # 1: first

NUM_INPUTS, NUM_INNER = 2, 4

SpaceName: TypeAlias = Literal["feature", "weight"]
CellKind: TypeAlias = Literal["normal", "reduce"]

FEATURE_PRIMITIVES = ("none", "max3", "avg3", "skip", "sep3", "sep5", "dil3", "dil5")
"""Of the search against feature faults: nothing, pools, skip, separable and dilated separable convolutions."""

WEIGHT_PRIMITIVES = (*FEATURE_PRIMITIVES, "rcb3", "rcb5", "conv1")
"""Of the search against weight faults: besides, relu-conv-bn of 3 × 3 and 5 × 5, and a bare 1 × 1 convolution."""

SPACES: dict[SpaceName, tuple[str, ...]] = {"feature": FEATURE_PRIMITIVES, "weight": WEIGHT_PRIMITIVES}
"""Primitives by the name of the space; their order is that of the options in vectors."""


class Edge(NamedTuple):
    """An input of an inner node.

    Attributes:
        source: number of an earlier node, 0 to 4.
        primitive: what is applied to it.
    """

    source: Annotated[int, Field(strict=True)]
    primitive: str


CellNodes: TypeAlias = tuple[tuple[Edge, ...], ...]
"""Edges of each inner node, nodes 2 to 5."""


class Genotype(BaseModel):
    """The two cells that a network is made of; frozen, can be hashed and compared.

    Attributes:
        schema_name: of the document.
        version: of the document.
        space: ``"feature"`` (8 primitives, cells' inputs preprocessed 1 × 1) or ``"weight"`` (11, 3 × 3).
        normal: of cells that keep the size: for each of the nodes 2 to 5 its two edges (source, primitive).
        reduce: of cells that halve it: edges from the nodes 0 and 1 have stride 2.

    Example:
        >>> load_genotype("w-ftt-net").normal[0]
        (Edge(source=0, primitive='rcb3'), Edge(source=0, primitive='rcb5'))
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: Literal["sparing.nas.genotype"] = _SCHEMA
    version: Literal[1] = _VERSION
    space: SpaceName
    normal: CellNodes
    reduce: CellNodes

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = SPACES[self.space]
        for kind, nodes in (("normal", self.normal), ("reduce", self.reduce)):
            if len(nodes) != NUM_INNER:
                raise ValueError(f"{kind}: expected {NUM_INNER} inner nodes, got {len(nodes)}")
            for node, edges in enumerate(nodes, NUM_INPUTS):
                if len(edges) != 2:
                    raise ValueError(f"{kind}, node {node}: expected 2 inputs, got {len(edges)}")
                for source, primitive in edges:
                    if primitive not in known:
                        raise ValueError(
                            f"{kind}, node {node}: expected a primitive of the {self.space} space "
                            f"({', '.join(known)}), got {primitive!r}"
                        )
                    if not 0 <= source < node:
                        raise ValueError(f"{kind}, node {node}: expected inputs from 0 to {node - 1}, got {source}")
        return self

    @classmethod
    def build(cls, space: SpaceName, normal: Any, reduce: Any) -> "Genotype":
        """Makes a genotype from nested sequences of (source, primitive).

        Raises:
            ConfigError: which cell, node and edge is wrong, what was expected and what came.
        """
        return validated(cls, {"space": space, "normal": normal, "reduce": reduce}, name="genotype")

    def cell(self, kind: CellKind) -> CellNodes:
        """The nodes of a kind of cell."""
        return self.normal if kind == "normal" else self.reduce

    def canonical(self) -> "Genotype":
        """The same architecture in one form: a node's edges in order, ``none`` always from node 0.

        Genotypes of one canonical form compute the same sums. Others may be equal too, by nodes in another order.
        """
        order = SPACES[self.space].index
        cells = [
            tuple(
                tuple(
                    sorted(
                        (Edge(0 if edge.primitive == "none" else edge.source, edge.primitive) for edge in edges),
                        key=lambda edge: (edge.source, order(edge.primitive)),
                    )
                )
                for edges in nodes
            )
            for nodes in (self.normal, self.reduce)
        ]
        return self.model_copy(update={"normal": cells[0], "reduce": cells[1]})

    def to_json(self) -> str:
        """The document, one line a node; :meth:`from_json` reads it."""

        def cell(nodes: CellNodes) -> str:
            return "[\n" + ",\n".join(f"    {json.dumps(edges)}" for edges in nodes) + "\n  ]"

        head = f'{{\n  "schema_name": "{self.schema_name}",\n  "version": {self.version},\n  "space": "{self.space}",\n'
        return f'{head}  "normal": {cell(self.normal)},\n  "reduce": {cell(self.reduce)}\n}}\n'

    @classmethod
    def from_json(cls, data: str | bytes, *, name: str = "genotype") -> "Genotype":
        """Reads what :meth:`to_json` wrote.

        Args:
            data: JSON.
            name: of the file, for messages.

        Raises:
            FormatError: not such a document; names each field, VersionError: of another version.
        """
        return parse_document(data, cls, schema=_SCHEMA, version=_VERSION, name=name, what="a genotype")


def _cell(text: str) -> CellNodes:
    """From ``"rcb3 0, rcb5 0 | conv1 1, dil3 1 | …"``."""
    pairs = [[edge.split() for edge in node.split(",")] for node in text.split("|")]
    return tuple(tuple(Edge(int(source), primitive) for primitive, source in node) for node in pairs)


GENOTYPES: dict[str, Genotype] = {
    "w-ftt-net": Genotype(
        space="weight",
        normal=_cell("rcb3 0, rcb5 0 | conv1 1, dil3 1 | sep3 1, sep3 0 | max3 2, rcb5 1"),
        reduce=_cell("skip 0, rcb5 1 | dil3 2, sep3 0 | max3 1, conv1 3 | dil3 4, skip 2"),
    )
}
"""Published genotypes by name: W-FTT-Net, found by the authors' search against weight faults."""


def load_genotype(path_or_name: str | os.PathLike[str]) -> Genotype:
    """Opens a genotype.

    Args:
        path_or_name: a name in :data:`GENOTYPES`, or a JSON file.

    Raises:
        ArgumentError: neither such a name nor a file.
        FormatError, VersionError: a file that is no genotype, or of another version.
        OSError: the file cannot be read.
    """
    found = GENOTYPES.get(os.fspath(path_or_name))
    if found is not None:
        return found
    path = Path(path_or_name)
    if not path.is_file():
        raise ArgumentError(
            f"genotype: expected one of {', '.join(sorted(GENOTYPES))}, or a JSON file, got {os.fspath(path_or_name)!r}"
        )
    return Genotype.from_json(path.read_bytes(), name=path.name)


def save_genotype(path: str | os.PathLike[str], genotype: Genotype) -> None:
    """Writes a genotype to a JSON file, replacing it as a whole.

    Raises:
        OSError: the file cannot be written; an older one is unchanged.
    """
    with replace_file(path) as file:
        file.write(genotype.to_json().encode())
