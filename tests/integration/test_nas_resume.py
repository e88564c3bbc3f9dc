"""A search that is killed with kill -9, again and again, ends bit for bit where one in one go does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
safetensors = pytest.importorskip("safetensors.torch", reason="needs sparing[vision]")

from sparing.runs import current_generation  # noqa: E402

_PROGRAM = """
import sys
import numpy as np
import torch
torch.set_num_threads(1)
from sparing.nas.search import run_search
from sparing.nas.search_config import preset_config
from sparing.vision import ImageDataset

rng = np.random.default_rng(0)
data = ImageDataset(
    rng.integers(0, 256, (100, 3, 8, 8)).astype(np.uint8), rng.integers(0, 3, 100), ("a", "b", "c"), "x"
)
config = preset_config(
    "demo",
    channels=2,
    evaluations=10,
    mode=sys.argv[2],
    final_draws=1,
    supernet={"epochs": 3, "batch_size": 20},
    evaluation={"images": 20, "draws": 1, "calibration_images": 16},
    controller={"steps": 3, "samples": 4, "batch_size": 10, "hidden": 8},
    evolution={"population": 4},
    halving={"candidates": (4, 2), "epochs": (1, 3), "training": {"batch_size": 20, "checkpoint_steps": 1}},
)
run_search(data, config=config, folder=sys.argv[1], checkpoint_steps=2, progress=lambda *a: print(*a, flush=True))
"""


def _start(folder: Path, mode: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(folder), mode], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )


def _run(folder: Path, mode: str) -> None:
    process = _start(folder, mode)
    process.communicate(timeout=200)
    assert process.returncode == 0


def _kill_at(folder: Path, mode: str, stage: str, done: int) -> None:
    process = _start(folder, mode)
    try:
        for line in process.stdout:
            if line.rsplit(maxsplit=2)[:2] == [stage, str(done)]:
                break
        else:
            pytest.fail(f"the search ended before {stage} {done}")
        time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def _outcome(folder: Path) -> tuple[bytes, dict, dict]:
    supernet = current_generation(folder / "supernet") if (folder / "supernet").exists() else None
    tensors = safetensors.load_file(supernet / "tensors.safetensors") if supernet else {}
    result = json.loads((folder / "result.json").read_bytes())
    return (folder / "archive.jsonl").read_bytes(), tensors, result


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("evolution", [("supernet", 3), ("supernet", 7), ("evaluations", 3), ("evaluations", 8)]),
        ("halving", [("round 1 of 2", 1), ("round 1 of 2", 4), ("round 2 of 2", 1)]),
        ("policy-gradient", [("supernet", 3), ("policy", 2), ("policy", 5), ("evaluations", 2)]),
    ],
)
def test_killed_searches_end_where_one_in_one_go_does(tmp_path, mode, kills):
    _run(tmp_path / "whole", mode)
    for stage, done in kills:
        _kill_at(tmp_path / "killed", mode, stage, done)
        assert not (tmp_path / "killed" / "result.json").exists()
    _run(tmp_path / "killed", mode)
    archive, tensors, result = _outcome(tmp_path / "whole")
    killed_archive, killed_tensors, killed_result = _outcome(tmp_path / "killed")
    assert killed_archive == archive
    assert killed_result == result
    assert tensors.keys() == killed_tensors.keys()
    assert all(torch.equal(tensors[name], killed_tensors[name]) for name in tensors)
