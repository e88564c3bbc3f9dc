"""Accuracy of mapped networks whose one-bit cells are stuck: what it costs that an epitome's cell gives many weights.

Draw d has the same seed for all networks. Reading is ideal, so that only the cells matter.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.pim.contestants import CROSSBAR, Masks
from sparing.faults import StuckAt
from sparing.faults.normalization import recalibrated_norms
from sparing.pim import (
    CellVariation,
    NetworkCells,
    NetworkDesign,
    NetworkMapping,
    NetworkShape,
    change_cells,
    map_network,
    programmed,
)
from sparing.vision import ImageDataset, evaluate_classifier

RATES = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08)


def stuck_accuracies(
    model: nn.Module,
    network: NetworkShape,
    design: NetworkDesign,
    test: ImageDataset,
    *,
    draws: int,
    masks: Masks | None = None,
    recalibration: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Measures a network, rate by rate.

    Args:
        model: quantized, its inputs with ranges.
        network: its layers.
        design: of this network.
        test: images under each draw.
        draws: chips for each rate above 0.
        masks: of pruned blocks, which are not there and have no cells.
        recalibration: images on which each chip's normalizations are measured anew; None: they stay.
    """
    mapping = map_network(model, network, design, CROSSBAR)
    rows = []
    for rate in RATES:
        found = []
        for draw in range(draws if rate else 1):
            cells = change_cells(mapping, CellVariation.of_fault(StuckAt(rate=rate, form="bit")), seed=draw)
            if masks is not None:
                _take_out_(cells, mapping, masks)
            again = nullcontext() if recalibration is None else recalibrated_norms(model, recalibration)
            with programmed(model, mapping, cells), again:
                found.append(evaluate_classifier(model, test))
        rows.append({"rate": rate, "accuracies": found})
    return rows


def _take_out_(cells: NetworkCells, mapping: NetworkMapping, masks: Masks) -> None:
    """Lets blocks that were pruned away conduct nothing."""
    for name, mask in masks.items():
        kept = mask.flatten(1).T.numpy()
        for block, own in zip(mapping.layers[name].blocks, cells[name], strict=True):
            rows = slice(block.row_start, block.row_start + block.num_rows)
            if not np.any(kept[rows, block.col_start : block.col_start + block.num_cols]):
                own[...] = 0
