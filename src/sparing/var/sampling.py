"""Guidance and the draw of tokens.

K. Tian et al., *Visual Autoregressive Modeling*, 2024; classifier-free guidance whose strength grows with the scale.

| paper's symbol | name here |
|---|---|
| cfg | ``guidance_scale`` |
| t = cfg · s / (S − 1) | ``strength`` |
"""

import math
import numbers
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparing.errors import ArgumentError, DtypeError

__all__ = ["MAX_GUIDANCE", "SamplingSettings", "guide", "sample_tokens", "whole_number"]

MAX_GUIDANCE = 1e6
"""Times the logits it still fits float32."""
_LEAST_CHANCE = 2.0**-32  # below what torch.rand gives but for 0


def whole_number(value: Any, name: str) -> int:
    """Returns an integer of any kind as Python's.

    Raises:
        DtypeError: not one.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise DtypeError(f"{name}: expected a whole number, got {type(value).__name__}") from None


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn.

    Attributes:
        guidance_scale: strength of the guidance at the last scale, 0 (none) to 10⁶.
        top_k: only the most likely codes (and those that tie with the last); 0 for all, 1 for always the most likely.
        top_p: only the smallest set of codes that holds this share, 0 < p ≤ 1; 1 for all.
    """

    guidance_scale: float = 1.5
    top_k: int = 900
    top_p: float = 0.96

    def check(self, vocab_size: int) -> None:
        """Refuses values that make no sense.

        Raises:
            ArgumentError: a value out of range.
            DtypeError: not a number.
        """
        for name in ("guidance_scale", "top_p"):
            if not isinstance(getattr(self, name), numbers.Real):
                raise DtypeError(f"{name}: expected a number, got {type(getattr(self, name)).__name__}")
        if not (math.isfinite(self.guidance_scale) and 0 <= self.guidance_scale <= MAX_GUIDANCE):
            raise ArgumentError(f"guidance_scale: expected 0 to {MAX_GUIDANCE:g}, got {self.guidance_scale}")
        if not 0 <= whole_number(self.top_k, "top_k") <= vocab_size:
            raise ArgumentError(f"top_k: expected 0 (all) to {vocab_size}, the number of codes, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ArgumentError(f"top_p: expected more than 0 and at most 1, got {self.top_p}")

    def strength(self, scale: int, num_scales: int) -> float:
        """Returns the guidance at a scale: 0 at the first, `guidance_scale` at the last."""
        return self.guidance_scale * scale / max(num_scales - 1, 1)


def guide(cond: Tensor, uncond: Tensor, strength: float) -> Tensor:
    """Moves logits away from those without the class: (1 + t)·cond − t·uncond."""
    return (1 + strength) * cond - strength * uncond


def sample_tokens(logits: Tensor, settings: SamplingSettings, generator: torch.Generator | None) -> Tensor:
    """Draws a code for each position.

    Args:
        logits: (B, n, V) float32.
        settings: which codes may be drawn.
        generator: on the logits' device; the same state gives the same tokens.

    Returns:
        (B, n) int64. Codes whose logits tie with the last one allowed may be drawn too.
    """
    if settings.top_k == 1:
        return logits.argmax(-1)
    # A race: the code with the largest logit − log(E) wins, E of the exponential distribution. Random numbers belong to
    # codes, not to ranks: a model that scores nearly the same draws mostly the same codes from the same seed.
    chance = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(min=_LEAST_CHANCE)
    score = logits - chance.log_().neg_().log_()
    return score.masked_fill_(logits < _least_allowed(logits, settings), -torch.inf).argmax(-1)


def _least_allowed(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """The smallest logit that may be drawn, (B, n, 1); codes that tie with it may be drawn too."""
    count = settings.top_k or logits.shape[-1]
    values = _descending(logits)[..., :count]
    if settings.top_p == 1:
        return values[..., -1:]
    probabilities = values.softmax(-1)
    # The codes before each hold less than p: then it belongs to the smallest set that holds p. The first always.
    before = probabilities.cumsum(-1) - probabilities
    kept = (before < settings.top_p).sum(-1, keepdim=True)
    return values.gather(-1, kept.clamp_(min=1) - 1)


def _descending(x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        # NumPy sorts values alone, with SIMD: eight times faster than PyTorch, which moves their places along. In
        # place, since its own large arrays ask for huge pages, and the process grows by hundreds of megabytes.
        values = x.detach().clone(memory_format=torch.contiguous_format)
        values.numpy().sort(-1)
        return values.flip(-1)
    return x.sort(-1, descending=True).values
