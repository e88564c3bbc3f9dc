"""The same images with a pipeline's plan and without: drawn, timed, and what they cost, counted."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparing.quant import Int8Conv2d
from sparing.runs.progress import Progress
from sparing.var import CompressionPlan, VARPipeline, model_cost
from sparing.var.cost import layer_attention_macs, layer_pairs

MAX_CLASSES, NUM_EACH, ROUNDS, SEED = 10, 6, 5, 0


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was drawn and measured.

    Attributes:
        names: of the classes.
        before, after: (classes · NUM_EACH, 3, side, side) uint8 without the plan and with it, class by class.
        same: share of tokens that are the same.
        same_by_scale: the same for each scale.
        before_s, after_s: measured seconds of each round, in which one image of each class is drawn.
    """

    names: list[str]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    same: float
    same_by_scale: list[float]
    before_s: list[float]
    after_s: list[float]


def compare(pipe: VARPipeline, progress: Progress) -> Comparison:
    """Draws and times both; in the rounds they take turns, so that a busy moment of the machine meets both."""
    config = pipe.transformer.config
    plain = VARPipeline(pipe.tokenizer, pipe.transformer)  # the same weights, with no plan
    classes = range(min(MAX_CLASSES, config.num_classes))
    labels = [label for label in classes for _ in range(NUM_EACH)]
    drawn = []
    for done, each in enumerate((plain, pipe), 1):
        drawn.append(each(labels, seed=SEED))
        progress("drawing", done, 2)
    seconds: list[list[float]] = [[], []]
    for done in range(1, ROUNDS + 1):
        for times, each in zip(seconds, (plain, pipe), strict=True):
            times.append(each(classes, seed=SEED).latency_s)
        progress("measuring", done, ROUNDS)
    before, after = drawn
    equal = [a == b for a, b in zip(before.tokens, after.tokens, strict=True)]
    return Comparison(
        [str(label) if pipe.class_names is None else pipe.class_names[label] for label in classes],
        before.images.numpy(),
        after.images.numpy(),
        float(torch.cat(equal, 1).float().mean()),
        [float(part.float().mean()) for part in equal],
        *seconds,
    )


def counted(pipe: VARPipeline) -> dict[str, tuple[int, int]]:
    """What an image costs, from a name to the number without the plan and with it; counted, not measured."""
    dtype = str(pipe.transformer.head.weight.dtype).removeprefix("torch.")
    before, after = (model_cost(pipe.transformer.config, plan, dtype=dtype) for plan in (None, pipe.plan))
    decoders = pipe.tokenizer.decoder, pipe.decoder.decoder
    return {
        "attention, multiply-adds": (before.attention.macs, after.attention.macs),
        "transformer, multiply-adds": (before.macs, after.macs),
        "weights of the transformer, bytes": (before.weight_bytes, after.weight_bytes),
        "weights of the image decoder, bytes": (_num_bytes(decoders[0]), _num_bytes(decoders[1])),
        "keys and values, bytes": (before.cache_bytes, after.cache_bytes),
    }


def _num_bytes(decoder: torch.nn.Module) -> int:
    integers = sum(part.num_bytes for part in decoder.modules() if isinstance(part, Int8Conv2d))
    return integers + sum(p.nbytes for p in decoder.parameters())


def kept(plan: CompressionPlan) -> list[list[float]]:
    """For each layer and scale the share of attention computation that a plan leaves; counted."""
    model, sharing = plan.model, plan.sharing
    shares = []
    for layer in range(model.depth):
        first = None if sharing is None else sharing.first_scale[layer]
        variant = "output" if sharing is None else sharing.variant
        pairs, dense = layer_pairs(model, plan, layer), layer_pairs(model, None, layer)
        row = []
        for scale in range(len(model.patch_nums)):
            alone, all_alone = ([n if i == scale else 0 for i, n in enumerate(counts)] for counts in (pairs, dense))
            macs = layer_attention_macs(model, alone, first_shared=first, variant=variant)
            row.append(macs / layer_attention_macs(model, all_alone, first_shared=None))
        shares.append(row)
    return shares
