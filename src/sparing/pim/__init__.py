"""Epitomes on processing-in-memory crossbars: design, map, quantize and simulate any convolutional network.

Needs the extra ``vision``.
"""

from sparing.errors import MissingExtraError as _MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise _MissingExtraError("torch", extra="vision", purpose="sparing.pim") from _error

from sparing.pim.adc import AdcModel
from sparing.pim.block_quantizer import BlockQuantizer
from sparing.pim.convert import ConvertedLayer, convert_, epitomes_of, materialize_
from sparing.pim.cost import layer_cost
from sparing.pim.crossbar import FLOAT_BITS, BlockGrid, CrossbarSize, block_grid, num_planes
from sparing.pim.design import (
    LayerDesign,
    NetworkDesign,
    capped_epitome,
    dense_design,
    layer_grid,
    load_design,
    num_crossbars,
    uniform_design,
)
from sparing.pim.design_tables import DesignTables, design_tables
from sparing.pim.epitome import Epitome, EpitomeShape, Patch, epitome_index, fit_epitome, patches_of, repetition_map
from sparing.pim.error_proxy import error_proxy
from sparing.pim.evaluation import ChipCost
from sparing.pim.exact_search import BoundedDesign, bounded_best, exact_best, exact_front
from sparing.pim.executor import execute, executing
from sparing.pim.hardware import PRESETS, Hardware, load_hardware
from sparing.pim.input_quantizer import InputQuantizer
from sparing.pim.layer_options import layer_options, network_options
from sparing.pim.layers import LayerShape, NetworkShape, SkippedLayer, trace_layers
from sparing.pim.mapping import LayerMapping, NetworkMapping, map_layer, map_network
from sparing.pim.mapping_files import load_mapping, save_mapping
from sparing.pim.matching import MatchedDesign, design_error, match_design
from sparing.pim.mixed_precision import mixed_precision_design
from sparing.pim.nonideal import CellVariation, NetworkCells, change_cells
from sparing.pim.option_costs import option_costs
from sparing.pim.programmed import cell_weights, programmed
from sparing.pim.quantization import calibrate_inputs_, dequantize_, quantize_
from sparing.pim.quantized_layers import QuantizedLayer, quantized_layers
from sparing.pim.report import CrossbarRatio, HardwareReport, StepReport, hardware_report
from sparing.pim.search import DesignFront, FoundDesign, search_designs
from sparing.pim.step_cost import StepCost
from sparing.pim.steps import Step

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "AdcModel",
    "BlockGrid",
    "BlockQuantizer",
    "BoundedDesign",
    "CellVariation",
    "ChipCost",
    "ConvertedLayer",
    "CrossbarRatio",
    "CrossbarSize",
    "DesignFront",
    "DesignTables",
    "Epitome",
    "EpitomeShape",
    "FLOAT_BITS",
    "FoundDesign",
    "Hardware",
    "HardwareReport",
    "InputQuantizer",
    "LayerDesign",
    "LayerMapping",
    "LayerShape",
    "MatchedDesign",
    "NetworkCells",
    "NetworkDesign",
    "NetworkMapping",
    "NetworkShape",
    "PRESETS",
    "Patch",
    "QuantizedLayer",
    "SkippedLayer",
    "Step",
    "StepCost",
    "StepReport",
    "block_grid",
    "bounded_best",
    "calibrate_inputs_",
    "capped_epitome",
    "cell_weights",
    "change_cells",
    "convert_",
    "dense_design",
    "dequantize_",
    "design_error",
    "design_tables",
    "epitome_index",
    "epitomes_of",
    "error_proxy",
    "exact_best",
    "exact_front",
    "execute",
    "executing",
    "fit_epitome",
    "hardware_report",
    "layer_cost",
    "layer_grid",
    "layer_options",
    "load_design",
    "load_hardware",
    "load_mapping",
    "map_layer",
    "map_network",
    "match_design",
    "materialize_",
    "mixed_precision_design",
    "network_options",
    "num_crossbars",
    "num_planes",
    "option_costs",
    "patches_of",
    "programmed",
    "quantize_",
    "quantized_layers",
    "repetition_map",
    "save_mapping",
    "search_designs",
    "trace_layers",
    "uniform_design",
]
