"""HybridConfig: every choice of an index, each approximation a switch of its own."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from sparing.runs.documents import Settings, validated

__all__ = ["AlignmentStatistic", "HybridConfig", "make_config"]

Weight = Annotated[float, Field(ge=0, le=1e30)]
AlignmentStatistic = Literal["std", "range", "mean", "none"]


class HybridConfig(Settings):
    """How an index is built and searched; frozen, printable, saved with the index.

    Attributes:
        metric: ``"ip"`` keeps raw inner products; ``"cosine"`` L2-normalises the dense part (and only that).
        degree: out-links an item, 4 to 256.
        build_beam: width of the search that finds an item's neighbours, 8 to 4096; wider is slower and better.
        beam: default width of a search, 1 to 65536.
        seed: seed of the insertion order and of the pairs that align the scales.
        alignment: statistic of the scores of random passage pairs that brings both parts to one scale;
            ``"none"`` uses 1.
        scale: overrides the alignment with a factor of the caller's, 1e-30 to 1e30.
        num_pairs: passage pairs drawn for the alignment.
        dense_code: precision of the dense part in traversal; answers are always re-scored at full precision.
        doc_terms: heaviest terms of an item kept for traversal, 1 to 4096, rounded up to whole groups of 8; ``"auto"``
            takes 56 to 1024 by `term_share`, ``None`` reads all of them at full precision.
        term_share: what ``doc_terms="auto"`` keeps of the squares of all weights, above 0 to 1. The default suits
            queries that weigh their terms as items do; where they weigh all alike (BM25), .99 finds more in long
            texts, and a `TextIndex` of words takes it.
        query_terms: heaviest terms of a query used in traversal; ``None`` uses all.
        two_stage: a search looks at each item's signs and heaviest terms first, and scores only those that may be good.
        weights: weights of construction, dense and sparse, 0 to 1e30, not both 0.
        similarity: how construction compares items: inner product, L2 or cosine of the joint vector.
        num_entries: at least so many items open a search, 1 to 65536: seeds, made up by items spread over the index.
        seeds_per_term: for each term the items in which it is heaviest, at which a sparse query starts too; 0: none.
        seed_terms: how many of the heaviest query terms use them.
    """

    metric: Literal["ip", "cosine"] = "ip"
    degree: Annotated[int, Field(ge=4, le=256)] = 28
    build_beam: Annotated[int, Field(ge=8, le=4096)] = 128
    beam: Annotated[int, Field(ge=1, le=65536)] = 128
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    alignment: AlignmentStatistic = "std"
    scale: Annotated[float, Field(ge=1e-30, le=1e30)] | None = None
    num_pairs: Annotated[int, Field(ge=100, le=10_000_000)] = 10_000
    dense_code: Literal["int4", "int8", "float32"] = "int4"
    doc_terms: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] | None = "auto"
    term_share: Annotated[float, Field(gt=0, le=1)] = 0.87
    query_terms: Annotated[int, Field(ge=1, le=65536)] | None = None
    two_stage: bool = True
    weights: tuple[Weight, Weight] = (0.5, 0.5)
    similarity: Literal["ip", "l2", "cosine"] = "ip"
    num_entries: Annotated[int, Field(ge=1, le=65536)] = 32
    seeds_per_term: Annotated[int, Field(ge=0, le=64)] = 8
    seed_terms: Annotated[int, Field(ge=0, le=1024)] = 8

    @field_validator("weights")
    @classmethod
    def _not_both_zero(cls, weights: tuple[float, float]) -> tuple[float, float]:
        if not np.any(np.asarray(weights, np.float32)):
            raise ValueError("expected a weight above 0")
        return weights

    @classmethod
    def naive(cls, **changes: object) -> "HybridConfig":
        """The single-graph hybrid with every lever off: float32 dense, all terms, no stages; for comparison.

        Args:
            **changes: fields to set on top of that.

        Raises:
            ConfigError: an unknown field or a value out of range.
        """
        return make_config(
            {"dense_code": "float32", "doc_terms": None, "query_terms": None, "two_stage": False, **changes}
        )


def make_config(fields: dict[str, object]) -> HybridConfig:
    """Validates fields into a config.

    Raises:
        ConfigError: naming each bad field, what was expected and what came.
    """
    return validated(HybridConfig, fields, name="config")
