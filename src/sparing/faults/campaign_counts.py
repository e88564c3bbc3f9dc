"""Draws counted in their order: what comes next, when a point has enough, and how much is still to do."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparing.errors import FormatError
from sparing.faults.campaign_records import DrawRecord
from sparing.faults.campaign_result import CampaignConfig, PointResult
from sparing.faults.models import FaultModel
from sparing.faults.statistics import enough_draws, share_interval
from sparing.runs.progress import Progress

__all__ = ["DrawCounts", "FaultPoint"]


@dataclass(frozen=True)
class FaultPoint:
    """What is measured together: one rate, one site, or one bit.

    Attributes:
        label: its name in records and tables, one of its own.
        rate: of the faults.
        fault: None: none at this rate, nothing to draw.
        include: sites, as of :func:`~sparing.faults.inject`.
        exclude: sites left out.
    """

    label: str
    rate: float
    fault: FaultModel | None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None


class DrawCounts:
    """Order: draw 0 of every point, draw 1 of every point that has not stopped by then, and so on.

    Args:
        points: what is measured.
        config: when a point has enough draws.
        num_images: of a draw.
        progress: called as ``("draws", done, total)``, where `total` is an estimate until all points have stopped.

    Attributes:
        stopped: of each point, whether it has enough draws.
    """

    def __init__(
        self, points: Sequence[FaultPoint], config: CampaignConfig, *, num_images: int, progress: Progress | None
    ) -> None:
        self._points, self._config, self._num_images, self._progress = points, config, num_images, progress
        self._counts: list[list[tuple[int, int, int]]] = [[] for _ in points]
        self._accuracies: list[list[float]] = [[] for _ in points]
        self.stopped = [point.fault is None for point in points]
        self._order = self.upcoming()
        self._next = next(self._order, None)
        self._report()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to draw."""
        return all(self.stopped)

    def upcoming(self) -> Iterator[tuple[int, int]]:
        """Gives (number of the point, draw) in order, without points that have stopped when they would come."""
        begun = [len(counts) for counts in self._counts]
        for draw in range(self._config.max_draws):
            for number, first in enumerate(begun):
                if draw >= first and not self.stopped[number]:
                    yield number, draw

    def replay(self, record: DrawRecord) -> None:
        """Takes a draw from the records.

        Raises:
            FormatError: it is not the one that comes next, or counts more images than there are.
        """
        expected = None if self._next is None else (self._points[self._next[0]].label, self._next[1])
        if self._next is None or expected != (record.point, record.draw):
            wanted = "none" if expected is None else f"draw {expected[1]} of {expected[0]!r}"
            raise FormatError(
                f"draws.jsonl: expected {wanted}, got draw {record.draw} of {record.point!r}: it was altered"
            )
        if max(record.correct, record.changed) > self._num_images:
            raise FormatError(f"draws.jsonl: {record} counts more than the {self._num_images} images: it was altered")
        self.add(self._next[0], record)

    def add(self, number: int, record: DrawRecord) -> None:
        """Takes the draw that comes next."""
        self._counts[number].append((record.correct, record.changed, record.hits))
        values = self._accuracies[number]
        values.append(record.correct / self._num_images)
        config = self._config
        self.stopped[number] = enough_draws(
            values,
            min_draws=config.min_draws,
            max_draws=config.max_draws,
            half_width=config.half_width,
            confidence=config.confidence,
        )
        self._next = next(self._order, None)
        self._report()

    def results(self, clean_accuracy: float) -> tuple[PointResult, ...]:
        """Sums up all points."""
        return tuple(
            PointResult.without_faults(point.label, clean_accuracy)
            if point.fault is None
            else PointResult.from_counts(
                point.label, point.rate, counts, num_images=self._num_images, confidence=self._config.confidence
            )
            for point, counts in zip(self._points, self._counts, strict=True)
        )

    def _report(self) -> None:
        if self._progress is not None:
            done = sum(map(len, self._counts))
            self._progress("draws", done, sum(map(self._expected, range(len(self._points)))))

    def _expected(self, number: int) -> int:
        """How many draws a point will take, as far as one can tell: the half width falls with the root of draws."""
        values, config = self._accuracies[number], self._config
        if self.stopped[number]:
            return len(values)
        if config.half_width is None:
            return config.max_draws
        if len(values) < 2:
            return config.min_draws
        now = share_interval(values, confidence=config.confidence).half_width
        wanted = math.ceil(len(values) * min((now / config.half_width) ** 2, config.max_draws))
        return min(max(wanted, config.min_draws, len(values) + 1), config.max_draws)
