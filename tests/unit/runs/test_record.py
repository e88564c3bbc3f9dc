import getpass
import json
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

import sparing
from sparing.errors import ArgumentError
from sparing.runs import run_record, write_record


def record(**changes):
    return run_record(**{"command": "make bench", "seed": 3, "threads": 2, "data": "cranfield"} | changes)


def test_facts():
    facts = record(note="x")
    assert facts["seed"] == 3
    assert facts["threads"] == 2
    assert facts["note"] == "x"
    assert facts["time_utc"].endswith("+00:00")
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["memory_bytes"] > 1 << 28
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["versions"]["sparing"] == sparing.__version__
    json.dumps(facts)


def test_source_outside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert record()["source"] == {"commit": None, "dirty": None}


def test_source_inside_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        subprocess.run(["git", *arguments], check=True)
    source = record()["source"]
    assert len(source["commit"]) == 40
    assert source["dirty"] is False
    # A benchmark's own results change nothing that runs.
    (tmp_path / "benchmarks" / "var" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "var" / "results" / "memory-cpu.json").touch()
    (tmp_path / "benchmarks" / "var" / "RESULTS.md").touch()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert record()["source"]["dirty"] is False
    (tmp_path / "benchmarks" / "var" / "run.py").touch()
    assert record()["source"]["dirty"] is True


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/ada/data/x.npz", "x.npz"),
        ("~/data/x.npz", "x.npz"),
        ("python -m run --out=/tmp/a/b.json --k 3", "python -m run --out=b.json --k 3"),
        ("C:\\Users\\ada\\x.npz", "x.npz"),
        ("benchmarks/hybrid/run.py", "benchmarks/hybrid/run.py"),
        ("n/a and 1/2", "n/a and 1/2"),
        (Path("/home/ada/x"), "x"),
    ],
)
def test_folders_are_cut(given, kept):
    assert record(data=given)["data"] == kept
    assert record(data={"files": [given]})["data"] == {"files": [kept]}
    assert record(command=["run", str(given)])["command"] == f"run {kept}"


def test_no_host_and_no_home():
    text = json.dumps(record(command=[str(Path.home() / "run.py")], data={"path": Path.cwd()}))
    assert str(Path.home()) + "/" not in text
    if len(platform.node()) > 4:
        assert platform.node() not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


def test_extra_cannot_overwrite():
    with pytest.raises(ArgumentError, match="machine"):
        record(machine="mine")


def test_write(tmp_path):
    path = tmp_path / "result.json"
    write_record(path, record(), {"recall": np.float32(0.5), "curve": np.arange(2)})
    saved = json.loads(path.read_text())
    assert saved["results"] == {"recall": 0.5, "curve": [0, 1]}
    assert saved["record"]["seed"] == 3


@pytest.mark.parametrize("value", [float("nan"), np.inf, {1, 2}, object()])
def test_write_refuses_what_json_cannot_hold(tmp_path, value):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(ArgumentError, match="JSON"):
        write_record(path, {}, {"value": value})
    assert path.read_text() == "old"
