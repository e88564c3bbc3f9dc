"""Visual autoregressive image generation with less compute: models, training, compression plans, quality.

Needs the extra ``var``.

Example:
    >>> pipe = VARPipeline.from_pretrained("model")  # doctest: +SKIP
    >>> apply_(pipe, calibrate(pipe, budget=QualityBudget(0.02)))  # doctest: +SKIP
    >>> pipe([3, 5], seed=1).images.shape  # doctest: +SKIP
    torch.Size([2, 3, 32, 32])
"""

from sparing.errors import MissingExtraError as _MissingExtraError

try:
    import huggingface_hub as _huggingface_hub  # noqa: F401
    import safetensors as _safetensors  # noqa: F401
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise _MissingExtraError(_error.name or "torch", extra="var", purpose="sparing.var") from _error

from sparing.var.apply import apply_, remove_
from sparing.var.calibrate import (
    ComputeBudget,
    FrontPoint,
    QualityBudget,
    calibrate,
    plan_front,
    uniform_plan,
)
from sparing.var.checkpoints import read_state, tokenizer_from, transformer_from
from sparing.var.config import (
    PATCH_NUMS_256,
    PATCH_NUMS_512,
    PATCH_NUMS_1024,
    RELEASED,
    TokenizerConfig,
    VARConfig,
    released_config,
)
from sparing.var.cost import AttentionCost, ModelCost, attention_cost, model_cost, shared_removal
from sparing.var.divergence import CalibrationConfig, divergence
from sparing.var.engine import Engine
from sparing.var.formats import int8_precision, precision_plan
from sparing.var.grid import difference_grid, image_grid, save_png
from sparing.var.layout import cached_tokens, load_tokenizer, save_tokenizer
from sparing.var.pipeline import VAROutput, VARPipeline
from sparing.var.plan import CompressionPlan, LinearFormat, PrecisionPlan, SharingPlan, load_plan
from sparing.var.quality import (
    QualityReport,
    Samples,
    cross_entropy,
    draw_samples,
    frechet_distance,
    measure_quality,
    precision_recall,
)
from sparing.var.quantizer import MultiScaleQuantizer
from sparing.var.sampling import SamplingSettings
from sparing.var.sensitivity import Sensitivity, load_sensitivity, measure_sensitivity
from sparing.var.training.loop import TrainingResult
from sparing.var.training.tokenizer import TokenizerTrainingConfig, train_tokenizer_
from sparing.var.training.transformer import (
    TokenDataset,
    TransformerTrainingConfig,
    encode_dataset,
    train_transformer_,
)
from sparing.var.transformer import VARTransformer
from sparing.var.vqvae import VQVAE

__all__ = [  # noqa: RUF022 - sorted as the tests want it, by letters
    "AttentionCost",
    "CalibrationConfig",
    "CompressionPlan",
    "ComputeBudget",
    "Engine",
    "FrontPoint",
    "LinearFormat",
    "ModelCost",
    "MultiScaleQuantizer",
    "PATCH_NUMS_1024",
    "PATCH_NUMS_256",
    "PATCH_NUMS_512",
    "PrecisionPlan",
    "QualityBudget",
    "QualityReport",
    "RELEASED",
    "Samples",
    "SamplingSettings",
    "Sensitivity",
    "SharingPlan",
    "TokenDataset",
    "TokenizerConfig",
    "TokenizerTrainingConfig",
    "TrainingResult",
    "TransformerTrainingConfig",
    "VARConfig",
    "VAROutput",
    "VARPipeline",
    "VARTransformer",
    "VQVAE",
    "apply_",
    "attention_cost",
    "cached_tokens",
    "calibrate",
    "cross_entropy",
    "difference_grid",
    "divergence",
    "draw_samples",
    "encode_dataset",
    "frechet_distance",
    "image_grid",
    "int8_precision",
    "load_plan",
    "load_sensitivity",
    "load_tokenizer",
    "measure_quality",
    "measure_sensitivity",
    "model_cost",
    "plan_front",
    "precision_plan",
    "precision_recall",
    "read_state",
    "released_config",
    "remove_",
    "save_png",
    "save_tokenizer",
    "shared_removal",
    "tokenizer_from",
    "train_tokenizer_",
    "train_transformer_",
    "transformer_from",
    "uniform_plan",
]
