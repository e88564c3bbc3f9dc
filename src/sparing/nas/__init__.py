"""Networks of searched cells: genotypes, their spaces, what they cost, pictures, export. Needs the extra ``nas``.

A :class:`Genotype` describes two cells; :class:`CellNetwork` builds a classifier of them; :class:`SearchSpace` turns
genotypes into vectors for a search.
"""

from sparing.errors import MissingExtraError as _MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise _MissingExtraError("torch", extra="nas", purpose="sparing.nas") from _error

from sparing.nas.cost import NetworkCost, network_cost
from sparing.nas.genotype import GENOTYPES, Edge, Genotype, load_genotype, save_genotype
from sparing.nas.network import CellNetwork, CellNetworkConfig
from sparing.nas.space import SearchSpace

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "CellNetwork",
    "CellNetworkConfig",
    "Edge",
    "GENOTYPES",
    "Genotype",
    "NetworkCost",
    "SearchSpace",
    "load_genotype",
    "network_cost",
    "save_genotype",
]
