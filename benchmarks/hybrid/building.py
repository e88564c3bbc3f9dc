"""Builds contestants' indexes, each in a process of its own, once; keeps them with seconds, peak memory and bytes.

`python -m benchmarks.hybrid.building NAME PARAMS …` is what such a process runs; use `benchmarks.hybrid.run build`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hybrid.contestants import by_name
from benchmarks.hybrid.data import Collection, load_debian
from benchmarks.hybrid.rivals.protocol import Contestant, Engine, Params, folder_bytes, label

THREAD_VARIABLES = ["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


@dataclass(frozen=True)
class Setup:
    """What a whole benchmark run shares."""

    data_folder: Path
    work: Path
    passages: int  # 0: all
    scale: float
    build_threads: int = 1
    max_builds: int = 0  # of each contestant's grid; 0: all
    built_only: bool = False  # take what is there, build nothing

    def grid(self, contestant: Contestant) -> list[Params]:
        """The build settings that this run considers."""
        return contestant.builds()[: self.max_builds or None]

    def load(self) -> Collection:
        """The collection, cut to size."""
        data = load_debian(self.data_folder)
        return data if self.passages == 0 else data.subset(self.passages, len(data.query_dense))

    def folder(self, contestant: Contestant, build: Params) -> Path:
        """Where an index is kept; another scale, size or number of threads is another index."""
        place = f"{self.passages or 'all'}-{self.scale:.5g}-{self.build_threads}"
        name = contestant.name.replace(" ", "_") + (f"@{contestant.version}" if contestant.version else "")
        return self.work / "indexes" / place / name / label(build)


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def build_here(setup: Setup, name: str, build: Params) -> None:
    """Builds in this process and leaves `build.json` beside the index."""
    contestant = by_name(name)
    data = setup.load()
    final = setup.folder(contestant, build)
    folder = final.with_name(f"{final.name}.{os.getpid()}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak of resident memory
    before = _status_kib("VmRSS")
    cpu = time.process_time()
    seconds = contestant.build(data, setup.scale, build, folder, setup.build_threads)
    facts = {
        "seconds": seconds,
        "cpu_seconds_with_saving": time.process_time() - cpu,
        "peak_extra_bytes": (_status_kib("VmHWM") - before) * 1024,
        "disk_bytes": folder_bytes(folder),
        "threads": setup.build_threads,
        "load_1min_before": os.getloadavg()[0],
    }
    (folder / "build.json").write_text(json.dumps(facts))
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)


def facts_of(setup: Setup, contestant: Contestant, build: Params) -> dict[str, Any]:
    """What was measured while building."""
    facts: dict[str, Any] = json.loads((setup.folder(contestant, build) / "build.json").read_text())
    return facts


def ensure_built(setup: Setup, contestant: Contestant, *, again: bool = False) -> None:
    """Builds what is missing of a contestant's grid, one process an index."""
    for build in setup.grid(contestant):
        if setup.built_only or ((setup.folder(contestant, build) / "build.json").is_file() and not again):
            continue
        print(f"building {contestant.name} {label(build)}", flush=True)
        arguments = [str(setup.data_folder), str(setup.work), str(setup.passages), repr(setup.scale)]
        arguments += [str(setup.build_threads), contestant.name, json.dumps(build)]
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(setup.build_threads))
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.hybrid.building", *arguments], env=environment, check=False
        )
        if done.returncode != 0:
            print(f"  failed with code {done.returncode}")
            continue
        facts = facts_of(setup, contestant, build)
        print(f"  {facts['seconds']:.1f} s, {facts['disk_bytes'] / 1e6:.0f} MB on disk", flush=True)


def open_all(setup: Setup, contestant: Contestant, data: Collection) -> list[tuple[Params, Engine]]:
    """Every index of the grid that was built."""
    engines = []
    for build in setup.grid(contestant):
        folder = setup.folder(contestant, build)
        if (folder / "build.json").is_file():
            engines.append((build, contestant.open(data, setup.scale, build, folder)))
        else:
            print(f"not built, left out: {contestant.name} {label(build)}")
    return engines


def main() -> int:
    """One build, from the command line."""
    folder, work, passages, scale, threads, name, build = sys.argv[1:]
    setup = Setup(Path(folder), Path(work), int(passages), float(scale), int(threads))
    build_here(setup, name, json.loads(build))
    return 0


if __name__ == "__main__":
    sys.exit(main())
