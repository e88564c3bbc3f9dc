"""Networks of searched cells: genotypes, their spaces, what they cost, pictures, export. Needs the extra ``nas``.

A :class:`Genotype` describes two cells; :class:`CellNetwork` builds a classifier of them; :class:`SearchSpace` turns
genotypes into vectors for a search. :func:`run_search` finds a genotype for images and a kind of fault,
:func:`train_genotype` trains its network.
"""

from sparing.errors import MissingExtraError as _MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise _MissingExtraError("torch", extra="nas", purpose="sparing.nas") from _error

from sparing.nas.archive import Evaluated, read_archive
from sparing.nas.cost import NetworkCost, network_cost
from sparing.nas.cost_table import widest_channels
from sparing.nas.derive import SearchResult, derive, load_search_result
from sparing.nas.final_training import FinalTrainingConfig, TrainedGenotype, final_config, train_genotype
from sparing.nas.genotype import GENOTYPES, Edge, Genotype, load_genotype, save_genotype
from sparing.nas.network import CellNetwork, CellNetworkConfig
from sparing.nas.search import run_search
from sparing.nas.search_config import SearchConfig, preset_config
from sparing.nas.space import SearchSpace

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "CellNetwork",
    "CellNetworkConfig",
    "Edge",
    "Evaluated",
    "FinalTrainingConfig",
    "GENOTYPES",
    "Genotype",
    "NetworkCost",
    "SearchConfig",
    "SearchResult",
    "SearchSpace",
    "TrainedGenotype",
    "derive",
    "final_config",
    "load_genotype",
    "load_search_result",
    "network_cost",
    "preset_config",
    "read_archive",
    "run_search",
    "save_genotype",
    "train_genotype",
    "widest_channels",
]
