"""What a campaign was asked and what it found, as documents: settings, one result a rate, site or bit, and files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sparing.errors import ArgumentError, FormatError
from sparing.faults.statistics import Interval, PairedDifference, paired_difference, share_interval
from sparing.runs.documents import Document, Settings, differences, parse_document

__all__ = ["CampaignConfig", "CampaignResult", "PointResult", "compare", "load_campaign_result"]

_SCHEMA: Literal["sparing.faults.campaign"] = "sparing.faults.campaign"
_VERSION = 1  # 1: first
RESULT_FILE = "result.json"

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]


class CampaignConfig(Settings):
    """How much is drawn.

    Attributes:
        min_draws: draws before which nothing stops, 2 or more. Rare but heavy faults need many to be seen at all.
        max_draws: draws after which everything stops.
        half_width: stop once half the width of the mean accuracy's interval is at most this, as a share (0.01 is one
            point); None: always `max_draws`. Draws that are all equal need some 1.8 / `half_width` of them at 95 %.
        confidence: of all intervals, above 0 and at most .9995.
        seed: draw d takes the same generators for every rate and every network, from (seed, d); 0 or more.
        transient: as in :func:`~sparing.faults.inject`: None for weights drawn once a draw and features anew for each
            batch, False for one fixed map a draw (a given chip), True for weights drawn anew for each batch too.

    Raises:
        ConfigError: a number out of range (:meth:`of`; the constructor itself raises pydantic's error).
    """

    min_draws: Annotated[int, Field(ge=2)] = 10
    max_draws: Annotated[int, Field(ge=2)] = 100
    half_width: Annotated[float, Field(gt=0, lt=1)] | None = 0.01
    confidence: Annotated[float, Field(gt=0, le=0.9995)] = 0.95
    seed: _Count = 0
    transient: bool | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_draws < self.min_draws:
            raise ValueError(f"max_draws: expected at least min_draws = {self.min_draws}, got {self.max_draws}")
        return self


class PointResult(Settings):
    """What was measured at one rate, with one site hit, or with one bit hit.

    Attributes:
        label: the rate, the site or the bit, as text.
        rate: of the faults.
        num_draws: draws measured; 0 where there are no faults at that rate and the network's own accuracy stands.
        mean: of the accuracies, 0 to 1.
        sd: of the accuracies from draw to draw.
        low: lower end of the mean's interval over draws, 0 or more: Student's t, or where most draws are equal, one
            that allows for what no draw has met.
        high: its upper end, 1 or less.
        quantile_05: accuracy that 5 % of the draws fall below (interpolated).
        sdc: share of images whose prediction changes against the network without faults (silent data corruption),
            averaged over draws; right or wrong does not matter.
        sdc_low: lower end of its interval.
        sdc_high: its upper end.
        mean_hits: positions hit a draw, over all batches.
        accuracies: of each draw, in order.
    """

    label: str
    rate: Annotated[float, Field(ge=0)]
    num_draws: _Count
    mean: _Share
    sd: Annotated[float, Field(ge=0)]
    low: _Share
    high: _Share
    quantile_05: _Share
    sdc: _Share
    sdc_low: _Share
    sdc_high: _Share
    mean_hits: Annotated[float, Field(ge=0)]
    accuracies: tuple[_Share, ...]

    @property
    def interval(self) -> Interval:
        """That of the mean accuracy."""
        return Interval(self.low, self.high)

    @classmethod
    def from_counts(
        cls,
        label: str,
        rate: float,
        counts: Sequence[tuple[int, int, int]],
        *,
        num_images: int,
        confidence: float,
    ) -> Self:
        """Sums up draws.

        Args:
            label: of the point.
            rate: of the faults.
            counts: of each draw, in order: images classified rightly, images whose prediction changed, positions hit.
            num_images: of a draw.
            confidence: of the intervals.
        """
        right, changed, hits = (np.array(column, np.float64) for column in zip(*counts, strict=True))
        accuracies, sdc = right / num_images, changed / num_images
        around, corrupted = (share_interval(shares, confidence=confidence) for shares in (accuracies, sdc))
        return cls(
            label=label,
            rate=rate,
            num_draws=len(counts),
            mean=float(accuracies.mean()),
            sd=float(accuracies.std(ddof=1)),
            low=around.low,
            high=around.high,
            quantile_05=float(np.quantile(accuracies, 0.05)),
            sdc=float(sdc.mean()),
            sdc_low=corrupted.low,
            sdc_high=corrupted.high,
            mean_hits=float(hits.mean()),
            accuracies=tuple(accuracies.tolist()),
        )

    @classmethod
    def without_faults(cls, label: str, accuracy: float) -> Self:
        """The point of a rate of 0, which needs no draw."""
        return cls(
            label=label,
            rate=0,
            num_draws=0,
            mean=accuracy,
            sd=0,
            low=accuracy,
            high=accuracy,
            quantile_05=accuracy,
            sdc=0,
            sdc_low=0,
            sdc_high=0,
            mean_hits=0,
            accuracies=(),
        )


class CampaignResult(Document):
    """What a campaign found. The same campaign gives the same bytes when saved, however often it was interrupted.

    Attributes:
        schema_name: ``"sparing.faults.campaign"``.
        version: of the schema.
        kind: what the points are: rates, sites or bits.
        fault: the fault model as its JSON, without a rate in a sweep.
        config: how much was drawn.
        include: names or patterns of the sites that were hit; None: all, or the points are sites.
        exclude: those left out.
        identity: of the model (class, layout and weights), the data, and the images for normalizations if any, as the
            folder's fingerprint has them.
        num_images: that each draw was measured on.
        clean_accuracy: without faults, of the model as it was given.
        points: in the order asked for.
    """

    schema_name: Literal["sparing.faults.campaign"] = _SCHEMA
    version: int = _VERSION
    kind: Literal["rates", "sites", "bits"]
    fault: dict[str, Any]
    config: CampaignConfig
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    identity: dict[str, Any]
    num_images: Annotated[int, Field(ge=1)]
    clean_accuracy: _Share
    points: tuple[PointResult, ...]


def load_campaign_result(path: str | os.PathLike[str]) -> CampaignResult:
    """Reads a saved result.

    Args:
        path: a file of :meth:`CampaignResult.save`, or a campaign's folder.

    Raises:
        FileNotFoundError: there is no such file, or the folder's campaign has not ended yet.
        FormatError, VersionError: not a campaign's result, or in another version.
    """
    file = Path(path)
    if file.is_dir():
        file = file / RESULT_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{path}: holds no {RESULT_FILE}: the campaign has not ended; resume it")
    try:
        data = file.read_bytes()
    except IsADirectoryError as error:
        raise FormatError(f"{path}: expected a file") from error
    return parse_document(
        data, CampaignResult, schema=_SCHEMA, version=_VERSION, name=str(path), what="a campaign's result"
    )


def compare(first: CampaignResult, second: CampaignResult) -> tuple[PairedDifference, ...]:
    """By how much the first network is more accurate than the second, rate by rate, over common draws.

    Pairing removes what both suffer from alike, so that fewer draws are needed to rank two networks than to know either
    accuracy. A rate without faults gives the difference of the clean accuracies, without draws.

    Args:
        first: of a sweep.
        second: of the same sweep with another network: same faults, sites, seed, confidence and images.

    Returns:
        One difference for each rate that both have, in the first's order.

    Raises:
        ArgumentError: not two sweeps of the same faults, sites, seed, confidence and images, or no common rate.
    """
    if (first.kind, second.kind) != ("rates", "rates"):
        raise ArgumentError(f"first, second: expected two sweeps over rates, got {first.kind} and {second.kind}")
    odd = differences(_paired_by(first), _paired_by(second))
    if odd:
        text = "; ".join(odd).replace("saved", "first").replace("now", "second")
        raise ArgumentError(f"first, second: draws are not paired: {text}")
    others = {point.rate: point for point in second.points}
    common = [(point, others[point.rate]) for point in first.points if point.rate in others]
    if not common:
        raise ArgumentError("first, second: expected a common rate, got none")
    return tuple(_difference(a, b, first.config.confidence) for a, b in common)


def _paired_by(result: CampaignResult) -> dict[str, Any]:
    settings = result.config.model_dump(include={"seed", "confidence", "transient"})
    sites = {"include": result.include, "exclude": result.exclude}
    return {"fault": result.fault, "config": settings, "data": result.identity.get("data", {}), **sites}


def _difference(a: PointResult, b: PointResult, confidence: float) -> PairedDifference:
    if a.num_draws and b.num_draws:
        return paired_difference(a.accuracies, b.accuracies, rate=a.rate, confidence=confidence)
    known = a.mean - b.mean
    return PairedDifference(
        rate=a.rate, num_draws=0, mean=known, sd=0.0, interval=Interval(known, known), correlation=None
    )
