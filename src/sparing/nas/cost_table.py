"""What each primitive costs at each place, added up for an architecture in no time; equal to counting the network."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sparing.nas.cells import cell_plans
from sparing.nas.cost import NetworkCost, network_cost
from sparing.nas.genotype import NUM_INNER, NUM_INPUTS, Edge, Genotype
from sparing.nas.primitives import make_primitive
from sparing.nas.space import SearchSpace

__all__ = ["CostTable"]

_FREE = ("none", "max3", "avg3")


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


@lru_cache(maxsize=4096)
def _primitive_cost(primitive: str, channels: int, stride: int, side: int) -> tuple[int, int]:
    if primitive in _FREE or (primitive == "skip" and stride == 1):
        return 0, 0
    module = make_primitive(primitive, channels, stride)
    found = network_cost(module, image_size=side, in_channels=channels)
    return found.num_parameters, found.num_macs
