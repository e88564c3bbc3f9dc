"""The measuring sessions: each takes all its contestants in one interleaved run and returns plain results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.hybrid import contestants
from benchmarks.hybrid.building import Setup, ensure_built, facts_of, open_all
from benchmarks.hybrid.data import Collection, K
from benchmarks.hybrid.front import time_at
from benchmarks.hybrid.oracle import exact_top_k
from benchmarks.hybrid.rivals.protocol import Contestant, Queries
from benchmarks.hybrid.timing import Job, measure
from benchmarks.hybrid.tuning import best_pairings, good_jobs
from sparing.hybrid import HybridConfig

EQUAL = (0.5, 0.5)
WEIGHTS = [(1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)]
QUERY_SEED = 0
USUAL_POOL = 50  # two routes are also shown with lists of at least this length, as they are mostly used


@dataclass(frozen=True)
class Bench:
    """A set-up with its data loaded and its queries drawn."""

    setup: Setup
    data: Collection
    rows: np.ndarray  # the queries drawn, rows of the collection's
    rounds: int

    @classmethod
    def create(cls, setup: Setup, num_queries: int, rounds: int) -> Bench:
        """Loads the data and draws the queries at random, seeded."""
        data = setup.load()
        drawn = np.random.default_rng(QUERY_SEED).choice(len(data.query_dense), num_queries, replace=False)
        return cls(setup, data, np.sort(drawn), rounds)

    def queries(self, weights: tuple[float, float]) -> Queries:
        """The batch under these weights."""
        return Queries(
            np.ascontiguousarray(self.data.query_dense[self.rows]),
            self.data.query_sparse[self.rows],
            weights,
            self.setup.scale,
        )

    def exact(self, weights: tuple[float, float]) -> np.ndarray:
        """Exact weighted top k of the batch."""
        everything = len(self.data.query_dense)
        scale, work = self.setup.scale, self.setup.work
        answers = exact_top_k(self.data, weights, scale, num_queries=everything, k=K, work=work)
        return np.asarray(answers[self.rows])


def _gather(jobs: Sequence[Job], points: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    table: dict[str, list[dict[str, Any]]] = {}
    for job, point in zip(jobs, points, strict=True):
        table.setdefault(job.name, []).append(point)
    return table


def _describe(bench: Bench, table: dict[str, list[dict[str, Any]]], everyone: Sequence[Contestant]) -> dict[str, Any]:
    """Points and the facts of the builds they used, a contestant each."""
    known = {contestant.name: contestant for contestant in everyone}
    result = {}
    for name, points in table.items():
        entry: dict[str, Any] = {"points": points}
        if name in known:
            entry["family"] = known[name].family
            used = {repr(point["build"]): point["build"] for point in points}
            entry["builds"] = [{"build": build, **facts_of(bench.setup, known[name], build)} for build in used.values()]
        else:
            entry["family"] = "two routes"
        entry["ms_at_recall_95"] = time_at(points, 0.95)
        entry["best_recall"] = max(point["recall"] for point in points)
        result[name] = entry
        print(f"{name:32s} best recall {entry['best_recall']:.4f}, ms at .95: {entry['ms_at_recall_95']}", flush=True)
    return result


def curves(bench: Bench, only: list[str] | None = None) -> dict[str, Any]:
    """Hybrid search at equal weights: ours, both databases, kannolo, and the four two-route pairings."""
    queries, exact = bench.queries(EQUAL), bench.exact(EQUAL)
    singles = [contestants.ours()[0], *contestants.rivals()]
    dense, sparse = contestants.dense_routes(), contestants.sparse_routes()
    jobs: list[Job] = []
    for contestant in singles:
        if not only or contestant.name in only:
            ensure_built(bench.setup, contestant)
            jobs += good_jobs(bench.setup, contestant, bench.data, queries, exact)
    tables: dict[str, list[dict[str, Any]]] = {}
    for left in dense:
        for right in sparse:
            if only and not {left.name, right.name} <= set(only):
                continue
            ensure_built(bench.setup, left)
            ensure_built(bench.setup, right)
            for smallest in (0, USUAL_POOL):
                jobs += best_pairings(bench.setup, left, right, bench.data, queries, exact, tables, smallest)
    points = measure(jobs, queries, exact, rounds=bench.rounds)
    return _describe(bench, _gather(jobs, points), singles)


def ladder(bench: Bench, only: list[str] | None = None) -> dict[str, Any]:
    """Ours, from naive to the default, every step over the same grid."""
    queries, exact = bench.queries(EQUAL), bench.exact(EQUAL)
    steps = [step for step in contestants.ours() if not only or step.name in only]
    jobs: list[Job] = []
    for step in steps:
        ensure_built(bench.setup, step)
        jobs += good_jobs(bench.setup, step, bench.data, queries, exact)
    return _describe(bench, _gather(jobs, measure(jobs, queries, exact, rounds=bench.rounds)), steps)


def dense_only(bench: Bench, only: list[str] | None = None) -> dict[str, Any]:
    """Dense-only queries: our hybrid index, asked without a sparse part, against dense HNSW libraries."""
    queries, exact = bench.queries((1.0, 0.0)), bench.exact((1.0, 0.0))
    entrants = [contestants.ours()[0], *contestants.dense_routes()]
    jobs: list[Job] = []
    for contestant in entrants:
        if not only or contestant.name in only:
            ensure_built(bench.setup, contestant)
            jobs += good_jobs(bench.setup, contestant, bench.data, queries, exact)
    return _describe(bench, _gather(jobs, measure(jobs, queries, exact, rounds=bench.rounds)), entrants)


def weights(bench: Bench, curve_results: dict[str, Any]) -> dict[str, Any]:
    """Recall and time at five weights on the same graph: ours around its default beam, rivals at recall .95 or best."""
    chosen: list[Job] = []
    default = contestants.ours()[0]
    build, engine = open_all(bench.setup, default, bench.data)[0]
    chosen += [Job("ours", engine, build, {"beam": beam}) for beam in [24, 48, 96, HybridConfig().beam]]
    chosen += _rival_jobs(bench, curve_results)
    result: dict[str, Any] = {}
    for pair in WEIGHTS:
        queries, exact = bench.queries(pair), bench.exact(pair)
        jobs = [Job(job.name, job.engine, job.build, job.params) for job in chosen]
        table = _gather(jobs, measure(jobs, queries, exact, rounds=bench.rounds))
        result[f"{pair[0]:g}/{pair[1]:g}"] = table
        print(pair, {name: [(p["recall"], round(p["ms"], 3)) for p in points] for name, points in table.items()})
    return result


def _rival_jobs(bench: Bench, curve_results: dict[str, Any]) -> list[Job]:
    """Each rival that is one index, at its fastest setting with recall .95 or else its best."""
    jobs = []
    for contestant in contestants.rivals():
        if contestant.name not in curve_results:
            continue
        points = curve_results[contestant.name]["points"]
        good = [point for point in points if point["recall"] >= 0.95]
        best = min(good, key=lambda point: point["ms"]) if good else max(points, key=lambda point: point["recall"])
        engine = next(e for build, e in open_all(bench.setup, contestant, bench.data) if build == best["build"])
        jobs.append(Job(contestant.name, engine, best["build"], best["params"]))
    return jobs


def build_times(bench: Bench, rounds: int) -> dict[str, Any]:
    """Ours, built anew with one and with two threads; best of rounds. Nothing else may run meanwhile."""
    result: dict[str, Any] = {}
    default = contestants.ours()[0]
    for threads in (1, 2):
        setup = Setup(
            bench.setup.data_folder, bench.setup.work, bench.setup.passages, bench.setup.scale, build_threads=threads
        )
        for build in default.builds():
            runs = []
            for _ in range(rounds):
                ensure_built(setup, _OneBuild(default, build), again=True)
                runs.append(facts_of(setup, default, build))
            best = min(runs, key=lambda facts: facts["seconds"])
            entry = {"build": build, **best, "all_seconds": [facts["seconds"] for facts in runs]}
            result.setdefault(f"{threads} threads", []).append(entry)
    _, engine = open_all(bench.setup, default, bench.data)[0]
    stats = engine.index.stats  # type: ignore[attr-defined]
    result["index"] = stats.to_dict()
    return result


class _OneBuild:
    """A contestant with a grid of one build."""

    def __init__(self, contestant: Contestant, build: dict[str, Any]) -> None:
        self._contestant, self._build = contestant, build

    def __getattr__(self, name: str) -> Any:
        return getattr(self._contestant, name)

    def builds(self) -> list[dict[str, Any]]:
        return [self._build]
