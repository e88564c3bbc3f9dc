"""The supernet: every primitive at every edge of every cell once, and architectures as paths through it.

====================  =====================================================================================
in papers             here
====================  =====================================================================================
supernet, shared      :class:`Supernet`: a module for each (cell, edge, primitive)
weights
candidate network     path: a :class:`~sparing.nas.network.CellNetwork` of the supernet's own modules
====================  =====================================================================================

A path has only the modules of its architecture, so that nothing else computes, gets gradients or is hit by faults. The
names of its layers follow from cell, edge and primitive alone: architectures that share a layer share its faults.

Source: X. Ning et al., *FTT-NAS*, 2020; H. Pham et al., *Efficient Neural Architecture Search*, 2018.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparing.errors import ConfigError
from sparing.faults import fixed_point_
from sparing.nas.cells import Cell, CellPlan, cell_plans, make_preprocess
from sparing.nas.genotype import NUM_INNER, NUM_INPUTS, SPACES, CellNodes, Genotype, SpaceName
from sparing.nas.network import CellNetwork, make_stem
from sparing.nas.primitives import make_primitive
from sparing.vision._initial import initialize_

__all__ = ["Supernet"]


class Supernet(nn.Module):
    """The shared weights of all architectures of a space. Batch norms have no factors and offsets.

    Weights and features are of 8 bits (:func:`~sparing.faults.fixed_point_`), so that faults have a format to hit.

    Args:
        space: ``"feature"`` or ``"weight"``.
        num_classes: of the images.
        channels: C.
        num_cells: 3 or more.
        image_size: side in pixels, for the shapes of features.
        dropout: before the classifier.
        seed: of the first weights.

    Raises:
        ArgumentError: a number out of range.

    Example:
        >>> supernet = Supernet("feature", num_classes=10, channels=4, num_cells=3, image_size=8)
        >>> supernet.path(genotype)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        space: SpaceName,
        *,
        num_classes: int,
        channels: int,
        num_cells: int,
        image_size: int,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.space, self.num_classes, self.channels, self.dropout = space, num_classes, channels, dropout
        plans = cell_plans(channels=channels, num_cells=num_cells)
        self.stem = make_stem(channels, affine=False)
        self.cells = nn.ModuleList(_SharedCell(plan, space) for plan in plans)
        self.classifier = nn.Linear(plans[-1].out_channels, num_classes)
        initialize_(self, seed)
        # Two images are enough: ranges are taken anew for each architecture.
        generator = torch.Generator().manual_seed(seed)
        fixed_point_(self, torch.rand(2, 3, image_size, image_size, generator=generator) * 2 - 1)

    def path(self, genotype: Genotype) -> CellNetwork:
        """One architecture, as a network whose modules are this supernet's own; cheap, nothing is copied.

        Args:
            genotype: of this space.

        Raises:
            ConfigError: of another space.
        """
        if genotype.space != self.space:
            raise ConfigError(f"genotype: expected one of the {self.space} space, got {genotype.space}")
        return CellNetwork(
            genotype,
            self.num_classes,
            channels=self.channels,
            num_cells=len(self.cells),
            dropout=self.dropout,
            cells=[cell.path(genotype) for cell in self._shared()],
            stem=self.stem,
            classifier=self.classifier,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Runs every module once and mixes all, which shows where features are; not an architecture.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            `n × num_classes`.
        """
        older = newer = self.stem(x)
        for cell in self._shared():
            older, newer = newer, cell(older, newer)
        return self.classifier(newer.mean((2, 3)))  # type: ignore[no-any-return]

    def _shared(self) -> "Iterator[_SharedCell]":
        for cell in self.cells:
            if not isinstance(cell, _SharedCell):
                raise AssertionError("unreachable: all cells are shared ones")
            yield cell


class _SharedCell(nn.Module):
    """A cell with every primitive at every edge."""

    def __init__(self, plan: CellPlan, space: SpaceName) -> None:
        super().__init__()
        self._plan, self._space = plan, space
        self.preprocess = nn.ModuleList(make_preprocess(plan, side, space=space, affine=False) for side in (0, 1))
        self.edges = nn.ModuleDict(
            {
                _key(source, node, primitive): make_primitive(
                    primitive, plan.channels, plan.stride(source), affine=False
                )
                for node in range(NUM_INPUTS, NUM_INPUTS + NUM_INNER)
                for source in range(node)
                for primitive in SPACES[space]
            }
        )

    def path(self, genotype: Genotype) -> Cell:
        nodes = genotype.cell(self._plan.kind)
        return _PathCell(nodes, list(self.preprocess), self.edges)

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        values = [self.preprocess[0](older), self.preprocess[1](newer)]
        for node in range(NUM_INPUTS, NUM_INPUTS + NUM_INNER):
            outputs = [
                self.edges[_key(source, node, primitive)](values[source])
                for source in range(node)
                for primitive in SPACES[self._space]
            ]
            values.append(torch.stack(outputs).mean(0))
        return torch.cat(values[NUM_INPUTS:], 1)


class _PathCell(Cell):
    """A cell of shared modules, under the names that they have in the supernet."""

    def __init__(self, nodes: CellNodes, preprocess: list[nn.Module], shared: nn.ModuleDict) -> None:
        keys = [
            _key(edge.source, node, edge.primitive) for node, edges in enumerate(nodes, NUM_INPUTS) for edge in edges
        ]
        super().__init__(nodes, preprocess, [shared[key] for key in keys])
        self.edges = _NamedEdges(keys, shared)


class _NamedEdges(nn.ModuleList):
    """Gives modules in the order of a cell's edges; each has one name, however often it is used."""

    def __init__(self, keys: list[str], shared: nn.ModuleDict) -> None:
        super().__init__()
        self._keys = keys
        for key in dict.fromkeys(keys):
            self.add_module(key, shared[key])

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self.get_submodule(key) for key in self._keys])


def _key(source: int, node: int, primitive: str) -> str:
    return f"{source}_{node}_{primitive}"
