"""Runs the hybrid benchmark: `python -m benchmarks.hybrid.run STAGE --data DIR --work DIR`.

Stages can be run one by one, in this order, and again: build, curves, ladder, dense, weights, times, report; or all.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.hybrid.building import THREAD_VARIABLES

for _variable in THREAD_VARIABLES:  # before any library starts its threads
    os.environ[_variable] = "1"

from benchmarks.hybrid import sessions  # noqa: E402
from benchmarks.hybrid.alignment_statistics import passage_pairs, scale_of  # noqa: E402
from benchmarks.hybrid.building import Setup, ensure_built  # noqa: E402
from benchmarks.hybrid.contestants import everyone  # noqa: E402
from benchmarks.hybrid.data import K, data_folder, load_debian  # noqa: E402
from benchmarks.hybrid.record import load, save  # noqa: E402

STAGES = ["build", "curves", "ladder", "dense", "weights", "times", "report"]
NUM_PAIRS, PAIR_SEED = 10_000, 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", nargs="?", default="all", choices=[*STAGES, "all"])
    parser.add_argument("--data", help="the data folder; default SPARING_DATA")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/hybrid/results"))
    parser.add_argument("--work", type=Path, default=Path("out/hybrid-bench"), help="keeps built indexes")
    parser.add_argument("--passages", type=int, default=0, help="the first so many only, for trials; 0: all")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of contestants")
    parser.add_argument(
        "--builds", type=int, default=0, help="the first so many build settings of each contestant; 0: all"
    )
    parser.add_argument("--built-only", action="store_true", help="leave out what is not built yet")
    parser.add_argument("--build-threads", type=int, default=1)
    parser.add_argument("--core", type=int, help="pin the searches to this processor core")
    return parser.parse_args(arguments)


def run_stage(stage: str, bench: sessions.Bench, options: argparse.Namespace) -> None:
    """One stage, writing its result file."""
    if stage == "build":
        for contestant in everyone():
            if not options.only or contestant.name in options.only:
                ensure_built(bench.setup, contestant)
        return
    if stage == "report":
        from benchmarks.hybrid.report import write_report

        write_report(options.out)
        return
    if options.core is not None and stage != "times":
        os.sched_setaffinity(0, {options.core})
    sessions_of = {
        "curves": lambda: sessions.curves(bench, options.only),
        "ladder": lambda: sessions.ladder(bench, options.only),
        "dense": lambda: sessions.dense_only(bench, options.only),
        "weights": lambda: sessions.weights(bench, load(options.out / "curves.json")["results"]),
        "times": lambda: sessions.build_times(bench, min(options.rounds, 3)),
    }
    results: Any = sessions_of[stage]()
    save(
        options.out / f"{stage}.json",
        f"benchmarks.hybrid.run {stage}",
        results,
        seed=sessions.QUERY_SEED,
        threads=1,
        data={"name": bench.data.name, "sha256": bench.data.fingerprint, "passages": len(bench.data.dense)},
        num_queries=len(bench.rows),
        k=K,
        scale=bench.setup.scale,
        pinned_to_one_core=options.core is not None and stage != "times",
        rounds=bench.rounds,
        builds_considered=options.builds or "all",
        built_only=options.built_only,
        timing="milliseconds a query: best, median and worst of the rounds; a round is the batch of all queries, "
        "repeated for 0.1 s if it takes less",
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    stages = STAGES if options.stage == "all" else [options.stage]
    if stages == ["report"]:
        from benchmarks.hybrid.report import write_report

        write_report(options.out)
        return 0
    folder = data_folder(options.data)
    if folder is None:
        return 0
    scale = scale_of(passage_pairs(load_debian(folder), NUM_PAIRS, PAIR_SEED), "std")
    setup = Setup(
        folder,
        options.work,
        options.passages,
        round(scale, 6),
        build_threads=options.build_threads,
        max_builds=options.builds,
        built_only=options.built_only,
    )
    bench = sessions.Bench.create(setup, options.queries, options.rounds)
    for stage in stages:
        print(f"== {stage}", flush=True)
        run_stage(stage, bench, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
