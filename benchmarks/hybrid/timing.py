"""Interleaved timing: contestants take turns, round by round; best and median of the rounds, wall and CPU time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.hybrid.metrics import recall
from benchmarks.hybrid.rivals.protocol import Answer, Engine, Params, Queries

SHORTEST_S = 0.1  # of a round: one batch of the fastest would be over before its caches are warm


@dataclass
class Job:
    """One engine at one setting, answering one batch."""

    name: str
    engine: Engine
    build: Params
    params: Params
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    routes: list[float] = field(default_factory=list)
    ids: np.ndarray | None = None

    def run(self, queries: Queries, k: int, prepared: Any) -> None:
        """One timed round: the batch, again and again until the round is not too short to time."""
        answers: list[Answer] = []
        cpu, start = time.process_time(), time.perf_counter()
        while not answers or time.perf_counter() - start < SHORTEST_S:
            answers.append(self.engine.search(prepared, k, self.params))
        self.wall.append((time.perf_counter() - start) / len(answers))
        self.cpu.append((time.process_time() - cpu) / len(answers))
        routes = [answer.routes_s for answer in answers if answer.routes_s is not None]
        if routes:
            self.routes.append(statistics.fmean(routes))
        self.ids = answers[-1].ids

    def point(self, exact: np.ndarray) -> dict[str, Any]:
        """The job as a point of a curve; milliseconds a query."""
        assert self.ids is not None
        each = 1e3 / len(exact)
        point = {
            "build": self.build,
            "params": self.params,
            "recall": round(recall(self.ids, exact), 5),
            "ms": min(self.wall) * each,
            "ms_median": statistics.median(self.wall) * each,
            "ms_max": max(self.wall) * each,
            "cpu_ms": min(self.cpu) * each,
            "rounds": len(self.wall),
        }
        if self.routes:
            point["routes_ms"] = min(self.routes) * each
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in point.items()}


def measure(jobs: Sequence[Job], queries: Queries, exact: np.ndarray, *, rounds: int) -> list[dict[str, Any]]:
    """Runs all jobs in turn, `rounds` times over after an untimed warm-up, each round starting at another job."""
    k = exact.shape[1]
    for turn in range(rounds + 1):
        first = turn * len(jobs) // (rounds + 1)
        for job in [*jobs[first:], *jobs[:first]]:
            prepared = job.engine.prepare(queries, job.params)
            gc.collect()
            gc.disable()
            job.run(queries, k, prepared)
            gc.enable()
        if turn == 0:
            for job in jobs:
                job.wall.clear()
                job.cpu.clear()
                job.routes.clear()
    return [job.point(exact) for job in jobs]
