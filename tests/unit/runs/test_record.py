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


def git(*arguments, where):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, cwd=where)


def test_source_of_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "record.py"
    package.parent.mkdir()
    package.touch()
    monkeypatch.setattr("sparing.runs.record._HERE", package)
    assert record()["source"] == {"commit": None, "dirty": None}
    # Within somebody's repository, but not part of it.
    git("init", "-q", where=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "x", where=tmp_path)
    monkeypatch.chdir(tmp_path)
    assert record()["source"] == {"commit": None, "dirty": None}


def test_source_of_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "src" / "record.py"
    package.parent.mkdir()
    package.touch()
    monkeypatch.setattr("sparing.runs.record._HERE", package)
    git("init", "-q", where=tmp_path)
    git("add", ".", where=tmp_path)
    git("commit", "-q", "-m", "x", where=tmp_path)
    source = record()["source"]
    assert len(source["commit"]) == 40
    assert source["dirty"] is False
    # A benchmark's own results change nothing that runs.
    (tmp_path / "benchmarks" / "var" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "var" / "results" / "memory-cpu.json").touch()
    (tmp_path / "benchmarks" / "var" / "RESULTS.md").touch()
    assert record()["source"] == source
    (tmp_path / "benchmarks" / "var" / "run.py").touch()
    assert record()["source"]["dirty"] is True


def test_the_home_folder_may_have_spaces(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada lovelace")
    assert record(command="run /home/ada lovelace/x.npz")["command"] == "run x.npz"
    assert record(data="/home/ada lovelace")["data"] == "~"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/ada/data/x.npz", "x.npz"),
        ("~/data/x.npz", "x.npz"),
        ("python -m run --out=/tmp/a/b.json --k 3", "python -m run --out=b.json --k 3"),
        ("C:\\Users\\ada\\x.npz", "x.npz"),
        ("benchmarks/hybrid/run.py", "benchmarks/hybrid/run.py"),
        ("n/a and 1/2", "n/a and 1/2"),
        ("PATH=/a:/home/ada/bin", "PATH=a:bin"),
        ("cc -I/home/ada/inc x.c", "cc -Iinc x.c"),
        ("file:///home/ada/x.npz", "x.npz"),
        ("https://example.org/a/b.npz", "https://example.org/a/b.npz"),
        ("hf://owner/name", "hf://owner/name"),
        (Path("/home/ada lovelace/x y.npz"), "x y.npz"),
        (Path("/home/ada/x"), "x"),
        ("x=/a/b", "x=b"),
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
