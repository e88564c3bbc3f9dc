"""Cells: where they stand in a network (plans), and how they compute.

A cell is put together from modules that are handed in, so that a network with weights of its own and a supernet, whose
paths share modules, compute by the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError
from sparing.nas.genotype import NUM_INNER, NUM_INPUTS, CellKind, CellNodes, SpaceName
from sparing.nas.primitives import ReluConvNorm, make_primitive

__all__ = ["Cell", "CellPlan", "cell_plans", "make_cell", "make_preprocess"]

STEM_FACTOR = 3


@dataclass(frozen=True)
class CellPlan:
    """One cell's place in a network.

    Attributes:
        index: from 0.
        kind: ``"normal"`` or ``"reduce"``.
        channels: of each of its nodes; it gives 4 times as many.
        in_channels: of its two inputs, the older first.
        in_strides: of the preprocessing of each: 2 where the older input is twice as large as the newer one.
    """

    index: int
    kind: CellKind
    channels: int
    in_channels: tuple[int, int]
    in_strides: tuple[int, int]

    @property
    def out_channels(self) -> int:
        """What it gives: all inner nodes, concatenated."""
        return NUM_INNER * self.channels

    def stride(self, source: int) -> int:
        """Stride of an edge from a node: 2 from the inputs of a reduction cell."""
        return 2 if self.kind == "reduce" and source < NUM_INPUTS else 1


def cell_plans(*, channels: int, num_cells: int) -> tuple[CellPlan, ...]:
    """Lays out a network's cells: those at ⌊n/3⌋ and ⌊2n/3⌋, numbered from 0, halve the size and double the channels.

    Of 8 cells these are 2 and 5; of 3 they are 1 and 2, of 4 also 1 and 2, of 5 they are 1 and 3.

    Args:
        channels: C, of the nodes of the first cells; the stem gives 3·C. 2 or more.
        num_cells: 3 or more.

    Raises:
        ArgumentError: fewer channels or cells.
    """
    if channels < 2:
        raise ArgumentError(f"channels: expected 2 or more, got {channels}")
    if num_cells < 3:
        raise ArgumentError(f"num_cells: expected 3 or more, for two reductions and a normal cell, got {num_cells}")
    plans: list[CellPlan] = []
    older = newer = STEM_FACTOR * channels
    smaller = False  # the newer input than the older
    for index in range(num_cells):
        reduces = index in (num_cells // 3, 2 * num_cells // 3)
        channels *= 2 if reduces else 1
        kind: CellKind = "reduce" if reduces else "normal"
        plans.append(CellPlan(index, kind, channels, (older, newer), (2 if smaller else 1, 1)))
        older, newer, smaller = newer, plans[-1].out_channels, reduces
    return tuple(plans)


def make_preprocess(plan: CellPlan, side: int, *, space: SpaceName, affine: bool = True) -> nn.Module:
    """Builds what brings an input to the cell's channels and size: relu-conv-bn, 1 × 1 (feature space) or 3 × 3.

    Args:
        plan: the cell's place.
        side: 0, the older input, or 1, the newer one.
        space: ``"feature"`` or ``"weight"``.
        affine: of the batch norm.
    """
    kernel = 1 if space == "feature" else 3
    return ReluConvNorm(
        plan.in_channels[side], plan.channels, kernel=kernel, stride=plan.in_strides[side], affine=affine
    )


class Cell(nn.Module):
    """Two inputs, four inner nodes, each the sum of two primitives' outputs; gives all inner nodes, concatenated.

    Args:
        nodes: the edges of each inner node.
        preprocess: of the older and of the newer input.
        edges: a module for each edge, node after node. One module may stand in several places.
    """

    def __init__(self, nodes: CellNodes, preprocess: Sequence[nn.Module], edges: Sequence[nn.Module]) -> None:
        super().__init__()
        self.sources = tuple(tuple(edge.source for edge in node) for node in nodes)
        expected = sum(map(len, self.sources))
        if len(preprocess) != NUM_INPUTS or len(edges) != expected:
            raise ArgumentError(
                f"edges: expected {NUM_INPUTS} modules for inputs and {expected} for edges, got {len(preprocess)} and "
                f"{len(edges)}"
            )
        self.preprocess = nn.ModuleList(preprocess)
        self.edges = nn.ModuleList(edges)

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        """Computes the cell.

        Args:
            older: output of the cell before the last, `n × c0 × h0 × w0`.
            newer: output of the last cell, `n × c1 × h1 × w1`.

        Returns:
            `n × 4·channels × h × w`.
        """
        values = [self.preprocess[0](older), self.preprocess[1](newer)]
        edges = iter(self.edges)
        for sources in self.sources:
            first, second = (next(edges)(values[source]) for source in sources)
            values.append(first + second)
        return torch.cat(values[NUM_INPUTS:], 1)


def make_cell(plan: CellPlan, nodes: CellNodes, *, space: SpaceName, affine: bool = True) -> Cell:
    """Builds a cell with weights of its own.

    Args:
        plan: its place.
        nodes: the edges of each inner node.
        space: decides how inputs are preprocessed.
        affine: of all batch norms.
    """
    edges = [
        make_primitive(edge.primitive, plan.channels, plan.stride(edge.source), affine=affine)
        for node in nodes
        for edge in node
    ]
    return Cell(nodes, [make_preprocess(plan, side, space=space, affine=affine) for side in (0, 1)], edges)
