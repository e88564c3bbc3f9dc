"""Writers killed at every step, or out of disk: the old state stays readable or the new one is complete."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from sparing.runs import (
    current_generation,
    read_artifact,
    replace_folder,
    verify_artifact,
    verify_folder,
    write_artifact,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

WRITE = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from sparing.runs import replace_folder, write_artifact

target, kind = Path(sys.argv[1]), sys.argv[2]

def write(value, count=50_000):
    arrays = {"x": np.full(count, value, np.int64), "y": np.full(7, value, np.int8)}
    if kind == "file":
        write_artifact(target / "a", schema="test", version=1, arrays=arrays, meta={})
    else:
        with replace_folder(target) as folder:
            for name in arrays:
                write_artifact(folder / name, schema="test", version=1, arrays={name: arrays[name]}, meta={})
"""

# Each child dies by SIGKILL at its n-th call that the disk sees; n grows until a child ends by itself.
KILL_AT_EVERY_STEP = """
def die_at(step):
    left = [step]
    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    calls = {os: ["fsync", "open", "mkdir", "unlink", "rmdir"], Path: ["open", "replace", "chmod", "mkdir"]}
    for owner, names in calls.items():
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))

for step in range(1, 500):
    print("step", step, flush=True)
    child = os.fork()
    if child == 0:
        die_at(step)
        write(step + 1, 600)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
    if sys.stdin.readline() == "":
        break
    if not os.WIFSIGNALED(status):
        break
"""


def start(code, *arguments, **options):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITE + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, **options)


def value_in(target, kind):
    """Reads the saved state, checks every byte of it, and returns the number that fills its arrays."""
    if kind == "file":
        verify_artifact(target / "a")
        arrays = read_artifact(target / "a", schema="test", versions={1}).arrays
    else:
        verify_folder(target)
        folder = current_generation(target)
        arrays = {name: read_artifact(folder / name, schema="test", versions={1}).arrays[name] for name in "xy"}
    values = set(arrays["x"].tolist()) | {int(arrays["y"][0])}
    assert len({value % 128 for value in values}) == 1, f"a mix of {values}"
    return int(arrays["x"][0])


def first_state(target, kind):
    arrays = {"x": np.full(3, 1, np.int64), "y": np.full(7, 1, np.int8)}
    if kind == "file":
        write_artifact(target / "a", schema="test", version=1, arrays=arrays, meta={})
    else:
        with replace_folder(target) as folder:
            for name, array in arrays.items():
                write_artifact(folder / name, schema="test", version=1, arrays={name: array}, meta={})


def entries(target, kind):
    return sorted(os.listdir(target)) == (
        ["a"] if kind == "file" else ["CURRENT", "LOCK", current_generation(target).name]
    )


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_at_every_step(tmp_path, kind):
    first_state(tmp_path, kind)
    allowed, steps = {1}, 0
    with start(KILL_AT_EVERY_STEP, tmp_path, kind, stdin=subprocess.PIPE) as process:
        for line in process.stdout:
            word, _, number = line.strip().partition(" ")
            if word == "step":
                steps = int(number)
                allowed = allowed | {steps + 1}
                continue
            allowed = {value_in(tmp_path, kind)} & allowed
            assert allowed, "neither the old state nor the new one"
            if word == "ended":
                assert number == "0"
                assert allowed == {steps + 1}
            process.stdin.write("go\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert word == "ended"
    assert steps > 5
    assert entries(tmp_path, kind)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_from_outside(tmp_path, kind):
    first_state(tmp_path, kind)
    pause = random.Random(0)
    for _ in range(6):
        before = value_in(tmp_path, kind)
        endless = "print('ready', flush=True)\nfor value in range(2, 100): write(value)\n" * 50
        with start(endless, tmp_path, kind) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(pause.uniform(0.002, 0.15))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert 1 <= value_in(tmp_path, kind) < 100, before
    first_state(tmp_path, kind)
    assert entries(tmp_path, kind)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_full_disk(tmp_path, kind):
    first_state(tmp_path, kind)
    full = """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (0, 100, 4096, 5000, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            write(9)
        except OSError as error:
            print(limit, type(error).__name__, flush=True)
    """
    with start(full, tmp_path, kind) as process:
        output = process.stdout.read()
    assert process.returncode == 0
    assert output.split() == [
        "0",
        "OSError",
        "100",
        "OSError",
        "4096",
        "OSError",
        "5000",
        "OSError",
        "100000",
        "OSError",
    ]
    assert value_in(tmp_path, kind) == 1
    assert entries(tmp_path, kind)
