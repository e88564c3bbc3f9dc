"""Training of both parts: the tokenizer and the transformer."""

from sparing.var.training.loop import TrainingResult
from sparing.var.training.tokenizer import TokenizerTrainingConfig, train_tokenizer_

__all__ = ["TokenizerTrainingConfig", "TrainingResult", "train_tokenizer_"]
