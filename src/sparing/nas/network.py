"""Networks made of cells, from a genotype."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from sparing.errors import ArgumentError
from sparing.nas.cells import STEM_FACTOR, Cell, CellPlan, cell_plans, make_cell
from sparing.nas.genotype import Genotype
from sparing.runs.documents import Settings, validated
from sparing.vision._initial import initialize_

__all__ = ["CellNetwork", "CellNetworkConfig", "make_stem"]


class CellNetworkConfig(Settings):
    """The architecture of a network of cells; frozen.

    Attributes:
        genotype: its cells.
        num_classes: 1 to 1,000,000.
        channels: C, 2 to 4096: of the nodes of the first cells.
        num_cells: 3 to 256; see :func:`~sparing.nas.cells.cell_plans` for which of them reduce.
        dropout: before the classifier.
    """

    genotype: Genotype
    num_classes: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    channels: Annotated[int, Field(ge=2, le=4096)] = 20
    num_cells: Annotated[int, Field(ge=3, le=256)] = 8
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class CellNetwork(nn.Module):
    """A classifier: 3 × 3 stem to 3·C channels with batch norm, cells, global average, dropout, linear layer.

    Each cell reads the outputs of the two before it (the stem's twice at first). Nothing is changed in place.

    Args:
        genotype: its cells.
        num_classes: see :class:`CellNetworkConfig`, as for the other fields.
        channels: C.
        num_cells: see there.
        dropout: see there.
        affine: whether batch norms have factors and offsets.
        seed: of the first weights (He initialisation), 0 or more. On the meta device there are none.
        cells: to be used instead of new ones, for paths through a supernet; with `stem` and `classifier`.
        stem: see `cells`.
        classifier: see `cells`.

    Attributes:
        config: the architecture.
        plans: each cell's place.
        num_features: width of the penultimate features.

    Raises:
        ConfigError: a field out of range.
        ArgumentError: some parts but not all, or another number of cells.

    Example:
        >>> CellNetwork(load_genotype("w-ftt-net"), channels=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        genotype: Genotype,
        num_classes: int = 10,
        *,
        channels: int = 20,
        num_cells: int = 8,
        dropout: float = 0.0,
        affine: bool = True,
        seed: int = 0,
        cells: Sequence[Cell] | None = None,
        stem: nn.Module | None = None,
        classifier: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.config = _config(
            genotype=genotype, num_classes=num_classes, channels=channels, num_cells=num_cells, dropout=dropout
        )
        self.plans: tuple[CellPlan, ...] = cell_plans(channels=channels, num_cells=num_cells)
        self.num_features = self.plans[-1].out_channels
        parts = (cells, stem, classifier)
        own = all(part is None for part in parts)
        if not own and any(part is None for part in parts):
            raise ArgumentError("cells, stem, classifier: expected all of them or none")
        if cells is not None and len(cells) != num_cells:
            raise ArgumentError(f"cells: expected {num_cells}, got {len(cells)}")
        self.stem = make_stem(channels, affine=affine) if stem is None else stem
        if cells is None:
            cells = [
                make_cell(plan, genotype.cell(plan.kind), space=genotype.space, affine=affine) for plan in self.plans
            ]
        self.cells = nn.ModuleList(cells)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(self.num_features, num_classes) if classifier is None else classifier
        if own:
            initialize_(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            Logits, `n × num_classes`.
        """
        return self.classifier(self.dropout(self._pooled(x)))  # type: ignore[no-any-return]

    def penultimate(self, x: Tensor) -> Tensor:
        """Gives what the last layer sees, without dropout.

        Args:
            x: `n × 3 × h × w` floats in [−1, 1].

        Returns:
            Penultimate features, `n × num_features` float32.
        """
        return self._pooled(x).float()

    @property
    def last_linear(self) -> nn.Linear:
        """The layer from the penultimate features to the logits: `classifier`."""
        return self.classifier

    def _pooled(self, x: Tensor) -> Tensor:
        older = newer = self.stem(x)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return torch.flatten(self.pool(newer), 1)


def make_stem(channels: int, *, affine: bool = True) -> nn.Sequential:
    """Builds the first layer: a 3 × 3 convolution from 3 to 3·`channels`, and a batch norm."""
    out = STEM_FACTOR * channels
    return nn.Sequential(nn.Conv2d(3, out, 3, padding=1, bias=False), nn.BatchNorm2d(out, affine=affine))


def _config(**fields: object) -> CellNetworkConfig:
    return validated(CellNetworkConfig, fields, name="CellNetwork")
