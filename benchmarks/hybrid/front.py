"""Pareto fronts of (recall, time) and the time at a recall, interpolated on the front in log time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

Point = dict[str, Any]


def front(points: Sequence[Point], time_key: str = "ms") -> list[Point]:
    """The points that no other beats in both recall and time, by rising time."""
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each[time_key], -each["recall"])):
        if not best or point["recall"] > best[-1]["recall"]:
            best.append(point)
    return best


def time_at(points: Sequence[Point], recall: float, time_key: str = "ms") -> float | None:
    """Time at a recall on the front; None where it is not reached; the fastest point's where all are above it."""
    line = front(points, time_key)
    if not line or line[-1]["recall"] < recall:
        return None
    if line[0]["recall"] >= recall:
        return float(line[0][time_key])
    for low, high in itertools.pairwise(line):
        if low["recall"] <= recall <= high["recall"]:
            share = (recall - low["recall"]) / (high["recall"] - low["recall"])
            return math.exp((1 - share) * math.log(low[time_key]) + share * math.log(high[time_key]))
    return None


def near_front(points: Sequence[Point], slack: float, time_key: str = "ms") -> list[Point]:
    """Points whose time is within a factor of the front's at their recall: worth measuring again with care."""
    kept = []
    for point in points:
        limit = time_at(points, point["recall"], time_key)
        if limit is not None and point[time_key] <= slack * limit:
            kept.append(point)
    return kept
