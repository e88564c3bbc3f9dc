"""What ran where: the facts needed to judge or repeat a measurement, and none that name a person or a machine."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparing.errors import ArgumentError
from sparing.runs.atomic import replace_file

__all__ = ["run_record", "write_record"]

_SIMD = re.compile(r"(sse4_2|ssse3|avx\w*|fma|f16c|amx\w*|asimd\w*|neon|sve\w*|i8mm|bf16)")
_HERE = Path(__file__)
_NOT_NUMBERS = re.compile(r"[^\d.].*")
# An absolute or home path, up to and with its last separator, behind no other part of a path, or behind an option of
# one letter or "file://". Other URLs are left: their slashes follow a colon and a slash.
_FOLDERS = re.compile(
    r"(?:(?<![\w./~-])(?<!:/)(?!(?<=:)//)|(?<=\s-[A-Za-z])|(?<=^-[A-Za-z])|file://)"
    r"(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^\s/\\=,;:'\"]+[/\\])*"
)


def run_record(
    *, command: str | Sequence[str], seed: int | None, threads: int, data: Any, **extra: Any
) -> dict[str, Any]:
    """Describes the process, its machine and its source.

    Absolute paths in the arguments are cut to their last part, the home folder to ``~``; neither user nor host is
    recorded.

    Args:
        command: how to repeat the run, as one line or as its words.
        seed: the seed, or None for a run without chance.
        threads: the number of threads that did the work.
        data: what the run read, for example ``{"name": "cranfield", "sha256": "..."}``.
        **extra: further facts, JSON values; they must not take a name that is in the record already.

    Returns:
        A dict for JSON: `command`, `seed`, `threads`, `data`, `time_utc`, `source` (commit of the
        checkout that sparing runs from, and whether files differ from it; both None where it is installed), `machine`
        (CPU model, cores, SIMD flags, memory_bytes, load, operating system), `versions` (Python and the packages
        imported so far), and `extra`'s own keys.

    Raises:
        ArgumentError: `extra` takes a name that is in the record already.
    """
    record = {
        "command": _without_folders(command if isinstance(command, str) else " ".join(map(_word, command))),
        "seed": seed,
        "threads": threads,
        "data": _without_folders(data),
        "time_utc": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "source": _source(),
        "machine": _machine(),
        "versions": _versions(),
    }
    taken = sorted(set(record) & set(extra))
    if taken:
        raise ArgumentError(f"extra: {taken} are in every record already; use other names")
    return record | {name: _without_folders(value) for name, value in extra.items()}


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any], results: Any) -> None:
    """Writes a record and its results as JSON, replacing the file as a whole.

    Args:
        path: the file; its folder must exist.
        record: what :func:`run_record` gave.
        results: JSON values; NumPy numbers and arrays become numbers and lists.

    Raises:
        ArgumentError: a value that JSON cannot hold, NaN and infinity among them.
        OSError: the file cannot be written; an older one is unchanged.
    """
    try:
        text = json.dumps({"record": record, "results": results}, indent=1, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"record, results: expected values that JSON can hold: {error}") from error
    with replace_file(path) as file:
        file.write(text.encode() + b"\n")


def _plain(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _word(word: Any) -> str:
    """A word of a command, which may be a path with spaces, or have one behind its last =."""
    text = os.fspath(word) if isinstance(word, os.PathLike) else str(word)
    option, sign, value = text.rpartition("=")
    kept: str = _without_folders(Path(value) if " " in value and value.startswith(("/", "~")) else value)
    return f"{_without_folders(option)}{sign}{kept}"


def _without_folders(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return re.split(r"[/\\]", os.fspath(value).rstrip("/\\"))[-1]
    if isinstance(value, str):
        # The home folder first: its name may have spaces.
        home = str(Path("~").expanduser())
        known = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value) if len(home) > 1 else value
        return _FOLDERS.sub("", known)
    if isinstance(value, Mapping):
        return {_without_folders(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return value


_RESULTS = ("benchmarks/*/results/**", "benchmarks/*/RESULTS.md")


def _source() -> dict[str, Any]:
    # Of the repository that this file is part of; an installed package is in none, wherever it is run.
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", _HERE.name) else None
    # One stage's result file does not change what the next one runs.
    changed = _git("status", "--porcelain", "--", ":/", *(f":(exclude,top,glob){path}" for path in _RESULTS))
    return {"commit": commit, "dirty": None if commit is None else changed != ""}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=_HERE.parent, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _machine() -> dict[str, Any]:
    model, flags = _cpu()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": affinity,
        "simd": flags,
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        # A machine that was busy when the run was recorded is not fit to measure.
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "memory_bytes": _memory_bytes(),
        # The numbers only: a build's suffix can name the provider.
        "os": f"{platform.system()} {_NOT_NUMBERS.sub('', platform.release())}",
        "libc": " ".join(platform.libc_ver()).strip() or None,
    }


def _cpu() -> tuple[str | None, list[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None, []
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    words = (fields.get("flags") or fields.get("features") or "").split()
    flags = sorted({word for word in words if _SIMD.fullmatch(word)})
    return fields.get("model name") or platform.processor() or None, flags


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _versions() -> dict[str, str]:
    from sparing import __version__

    loaded = {name.partition(".")[0] for name in list(sys.modules)}
    packages = {
        distribution
        for module, distributions in importlib.metadata.packages_distributions().items()
        if module in loaded
        for distribution in distributions
    }
    found = {name: importlib.metadata.version(name) for name in sorted(packages, key=str.lower)}
    return {"python": platform.python_version()} | found | {"sparing": __version__}
