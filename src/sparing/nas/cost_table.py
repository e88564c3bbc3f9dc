"""What each primitive costs at each place, added up for an architecture in no time; equal to counting the network."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from sparing.errors import ArgumentError
from sparing.nas.cells import cell_plans
from sparing.nas.cost import NetworkCost, network_cost
from sparing.nas.genotype import NUM_INNER, NUM_INPUTS, Edge, Genotype, SpaceName
from sparing.nas.primitives import make_primitive
from sparing.nas.space import SearchSpace

__all__ = ["CostTable", "widest_channels"]

_FREE = ("none", "max3", "avg3")
_LEAST_CHANNELS, _MOST_CHANNELS = 2, 4096


class CostTable:
    """Parameters and MACs of the final networks of a space.

    Args:
        space: of architectures.
        channels: C.
        num_cells: 3 or more.
        image_size: side in pixels.
        num_classes: of the images.

    Attributes:
        least: of an architecture whose cells are empty.

    Raises:
        ArgumentError: a number out of range.
    """

    def __init__(self, space: SearchSpace, *, channels: int, num_cells: int, image_size: int, num_classes: int) -> None:
        nothing = tuple((Edge(0, "none"), Edge(0, "none")) for _ in range(NUM_INNER))
        self.least = base = network_cost(
            Genotype(space=space.name, normal=nothing, reduce=nothing),
            image_size=image_size,
            channels=channels,
            num_cells=num_cells,
            num_classes=num_classes,
        )
        self._base = np.array([base.num_parameters, base.num_macs])
        self._space = space
        # (normal or reduce, from an input or from an inner node, primitive, parameters and MACs), over all such cells
        self._table = np.zeros((2, 2, len(space.primitives), 2), np.int64)
        side = image_size
        for plan in cell_plans(channels=channels, num_cells=num_cells):
            kind, after = int(plan.kind == "reduce"), -(-side // 2) if plan.kind == "reduce" else side
            for option, primitive in enumerate(space.primitives):
                self._table[kind, 0, option] += _primitive_cost(primitive, plan.channels, plan.stride(0), side)
                self._table[kind, 1, option] += _primitive_cost(primitive, plan.channels, 1, after)
            side = after

    def __call__(self, vector: Sequence[int]) -> NetworkCost:
        """Gives the cost of a vector of the space."""
        sites = np.asarray(vector, np.int64).reshape(2, NUM_INNER, 2, 2)
        kinds = np.arange(2)[:, None, None]
        found = self._table[kinds, (sites[..., 0] >= NUM_INPUTS).astype(np.int64), sites[..., 1]]
        parameters, macs = (self._base + found.sum(axis=(0, 1, 2))).tolist()
        return NetworkCost(parameters, macs)


def widest_channels(
    genotype: Genotype,
    *,
    max_macs: int | None = None,
    max_parameters: int | None = None,
    image_size: int = 32,
    num_cells: int = 8,
    num_classes: int = 10,
) -> int:
    """Finds the most channels C with which a genotype's network is within a budget.

    Args:
        genotype: the cells.
        max_macs: multiply-accumulates for one image, at most; None: any.
        max_parameters: at most; None: any.
        image_size: side in pixels.
        num_cells: 3 or more.
        num_classes: of the images.

    Returns:
        2 to 4096.

    Raises:
        ArgumentError: no limit, or a network of 2 channels is over it; a number out of range.

    Example:
        >>> widest_channels(load_genotype("w-ftt-net"), max_parameters=3_000_000)
        21
    """
    limits = tuple(math.inf if limit is None else limit for limit in (max_macs, max_parameters))
    if limits == (math.inf, math.inf):
        raise ArgumentError("max_macs, max_parameters: expected a limit, got none")
    vector = tuple(SearchSpace(genotype.space).encode(genotype).tolist())

    def fits(channels: int) -> bool:
        cost = _table(genotype.space, channels, num_cells, image_size, num_classes)(vector)
        return cost.num_macs <= limits[0] and cost.num_parameters <= limits[1]

    if not fits(_LEAST_CHANNELS):
        raise ArgumentError(
            f"max_macs, max_parameters: expected room for a network of {_LEAST_CHANNELS} channels, got {max_macs} and "
            f"{max_parameters}"
        )
    fitting, beyond = _LEAST_CHANNELS, 2 * _LEAST_CHANNELS
    while beyond <= _MOST_CHANNELS and fits(beyond):
        fitting, beyond = beyond, min(2 * beyond, _MOST_CHANNELS + 1)
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
    return fitting


@lru_cache(maxsize=256)
def _table(space: SpaceName, channels: int, num_cells: int, image_size: int, num_classes: int) -> CostTable:
    return CostTable(
        SearchSpace(space), channels=channels, num_cells=num_cells, image_size=image_size, num_classes=num_classes
    )


@lru_cache(maxsize=4096)
def _primitive_cost(primitive: str, channels: int, stride: int, side: int) -> tuple[int, int]:
    if primitive in _FREE or (primitive == "skip" and stride == 1):
        return 0, 0
    with torch.device("meta"):
        module = make_primitive(primitive, channels, stride)
    found = network_cost(module, image_size=side, in_channels=channels)
    return found.num_parameters, found.num_macs
