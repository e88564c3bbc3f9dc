"""Finds good settings: a quick pass over a contestant's whole grid, and the best pairings of two routes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from benchmarks.hybrid.building import Setup, open_all
from benchmarks.hybrid.data import Collection
from benchmarks.hybrid.front import front, near_front
from benchmarks.hybrid.rivals.protocol import Contestant, Engine, Params, Queries
from benchmarks.hybrid.rivals.two_routes import POOLS, TwoRoutesEngine
from benchmarks.hybrid.timing import Job, measure

SLACK = 1.3
FLOOR = 0.6  # points of lower recall are of no interest
RESCORE_MS = 0.0004  # a candidate; only ranks pairings, never reported


def good_jobs(setup: Setup, contestant: Contestant, data: Collection, queries: Queries, exact: np.ndarray) -> list[Job]:
    """The settings near the front of a contestant's grid after one quick round, as fresh jobs."""
    jobs = [
        Job(contestant.name, engine, build, params)
        for build, engine in open_all(setup, contestant, data)
        for params in contestant.searches(build)
    ]
    if not jobs:
        return []
    points = measure(jobs, queries, exact, rounds=1)
    kept = near_front([point | {"job": job} for point, job in zip(points, jobs, strict=True)], SLACK)
    chosen = [point["job"] for point in kept if point["recall"] >= FLOOR] or [kept[-1]["job"]]
    print(f"{contestant.name}: {len(chosen)} of {len(jobs)} settings kept", flush=True)
    return [Job(job.name, job.engine, job.build, job.params) for job in chosen]


def _route_table(
    setup: Setup, route: Contestant, data: Collection, queries: Queries, exact: np.ndarray
) -> list[dict[str, Any]]:
    """Each setting and pool of a route: its time, and which of the exact answers its list holds."""
    table = []
    for build, engine in open_all(setup, route, data):
        for params, pool in itertools.product(route.searches(build), POOLS):
            if params.get("ef", pool) < pool or params.get("ef", 0) > 4 * pool:
                continue
            table.append(_route_point(route.name, engine, build, params, pool, queries, exact))
    return table


def _route_point(
    name: str, engine: Engine, build: Params, params: Params, pool: int, queries: Queries, exact: np.ndarray
) -> dict[str, Any]:
    wide = np.broadcast_to(exact[:, :1], (len(exact), pool))  # tells `measure` how many answers to ask for
    job = Job(name, engine, build, params)
    point = measure([job], queries, wide, rounds=1)[0]
    assert job.ids is not None
    held = np.array([np.isin(right, mine) for right, mine in zip(exact, job.ids, strict=True)])
    return {
        "engine": engine,
        "build": build,
        "params": params,
        "pool": pool,
        "ms": point["ms"] + RESCORE_MS * pool,
        "held": np.packbits(held),
        "recall": float(held.mean()),
    }


def best_pairings(
    setup: Setup,
    dense: Contestant,
    sparse: Contestant,
    data: Collection,
    queries: Queries,
    exact: np.ndarray,
    tables: dict[str, list[dict[str, Any]]],
    smallest_pool: int = 0,
) -> list[Job]:
    """Jobs for the pairings of both routes' settings on the front of estimated time and union recall.

    Every setting of one route is combined with every setting of the other; only the best are then measured whole.
    `smallest_pool` leaves out shorter lists than that, which few users would dare to set.
    """
    for route in (dense, sparse):
        if route.name not in tables:
            tables[route.name] = near_front_by_pool(_route_table(setup, route, data, queries, exact))
            print(f"{route.name}: {len(tables[route.name])} settings as a route", flush=True)
    pairs = []
    for left, right in itertools.product(tables[dense.name], tables[sparse.name]):
        if min(left["pool"], right["pool"]) < smallest_pool:
            continue
        found = np.bitwise_count(left["held"] | right["held"]).sum() / exact.size
        pairs.append({"recall": float(found), "ms": left["ms"] + right["ms"], "left": left, "right": right})
    name = f"{dense.name} + {sparse.name}" + (f", pools ≥ {smallest_pool}" if smallest_pool else "")
    jobs = []
    for pair in front(pairs):
        if pair["recall"] < FLOOR:
            continue
        left, right = pair["left"], pair["right"]
        params = {
            "dense": left["params"],
            "sparse": right["params"],
            "dense_pool": left["pool"],
            "sparse_pool": right["pool"],
        }
        engine = TwoRoutesEngine(data, left["engine"], right["engine"])
        build = {"dense": left["build"], "sparse": right["build"]}
        jobs.append(Job(name, engine, build, params))
    return thin(jobs, 24)


def near_front_by_pool(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A route's settings that are near its front for their own pool size: others cannot help a pairing."""
    kept = []
    for pool in POOLS:
        kept += near_front([row for row in table if row["pool"] == pool], SLACK)
    return kept


def thin(jobs: list[Job], most: int) -> list[Job]:
    """At most so many jobs, evenly spread."""
    if len(jobs) <= most:
        return jobs
    return [jobs[at] for at in np.linspace(0, len(jobs) - 1, most).round().astype(int)]
