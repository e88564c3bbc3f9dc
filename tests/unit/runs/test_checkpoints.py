"""Checkpoints: what is saved comes back bit for bit, a run goes on as if it had not stopped, damage is found."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sparing.errors import ArgumentError, ConfigError, DtypeError, FormatError, VersionError
from sparing.runs import (
    CheckpointFolder,
    current_generation,
    load_optimizer_,
    optimizer_tensors,
    replace_folder,
    verify_folder,
)

torch = pytest.importorskip("torch", reason="needs sparing[torch]")
pytest.importorskip("safetensors", reason="needs sparing[torch]")

CONFIG = {"seed": 0, "model": {"width": 16, "depth": [1, 2]}, "rate": 0.1}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost far more than they bring to tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def folder(path, **changes):
    return CheckpointFolder(path / "run", **{"kind": "test.training", "config": CONFIG, **changes})


def test_nothing_saved_yet(tmp_path):
    assert folder(tmp_path).latest() is None
    (tmp_path / "run").mkdir()
    assert folder(tmp_path).latest() is None


def test_everything_comes_back_bit_for_bit(tmp_path):
    base = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    tensors = {
        "float32": base,
        "view": base[1:3],
        "transposed": base.t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "bfloat16": base.bfloat16(),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
        "generator": torch.Generator().manual_seed(7).get_state(),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "needs_grad": base.clone().requires_grad_(),
    }
    tensors["tied"] = tensors["float32"]
    state = {"best": 0.1 + 0.2, "big": 2**70, "names": ["ä", "b"], "none": None, "nested": {"x": [1, 2.5]}}
    folder(tmp_path).save(12, tensors, state)
    found = folder(tmp_path).latest()
    assert found.step == 12
    assert found.state == state
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = found.tensors[name]
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        raw = [t.detach().contiguous().flatten().view(torch.uint8) for t in (back, tensor)]
        assert torch.equal(*raw), name
    found.tensors["float32"].zero_()
    assert torch.equal(folder(tmp_path).latest().tensors["float32"], base)


def test_the_newest_is_kept_alone(tmp_path):
    checkpoints = folder(tmp_path)
    for step in range(3):
        checkpoints.save(step, {"x": torch.full((3,), step)}, {})
    assert checkpoints.latest().step == 2
    assert len([name for name in os.listdir(checkpoints.path) if name.startswith("gen-")]) == 1


def test_no_tensors_and_no_state(tmp_path):
    folder(tmp_path).save(0, {}, {})
    found = folder(tmp_path).latest()
    assert (found.step, found.tensors, found.state) == (0, {}, {})


def test_a_changed_config_names_each_difference(tmp_path):
    folder(tmp_path).save(1, {"x": torch.zeros(1)}, {})
    changed = {"seed": 1, "model": {"width": 16, "depth": [1, 3]}, "epochs": 5}
    other = folder(tmp_path, config=changed)
    for call in (other.latest, lambda: other.save(2, {}, {})):
        with pytest.raises(ConfigError) as caught:
            call()
        for part in (
            "seed: saved 0, now 1",
            "model.depth: saved [1, 2], now [1, 3]",
            "epochs: saved absent, now 5",
            "rate: saved 0.1, now absent",
            "another folder",
        ):
            assert part in str(caught.value)
        assert "width" not in str(caught.value)
    assert folder(tmp_path).latest().step == 1


def test_another_run_is_refused_whenever_it_came(tmp_path, monkeypatch):
    one, other = folder(tmp_path), folder(tmp_path, config={"seed": 1})
    one.save(1, {}, {})
    shutil.rmtree(tmp_path / "run")
    other.save(5, {}, {})
    with pytest.raises(ConfigError, match="seed: saved 1, now 0"):
        one.save(2, {}, {})
    assert other.latest().step == 5
    # In between the look and the writing.
    shutil.rmtree(tmp_path / "run")
    write = replace_folder

    def late(path):
        monkeypatch.setattr("sparing.runs.checkpoints.replace_folder", write)
        other.save(6, {}, {})
        return write(path)

    monkeypatch.setattr("sparing.runs.checkpoints.replace_folder", late)
    with pytest.raises(ConfigError, match="seed: saved 1, now 0"):
        one.save(3, {}, {})
    assert other.latest().step == 6


def test_a_tensor_that_is_conjugated_only_in_name(tmp_path):
    tensor = torch.tensor([1 + 2j, 3 - 1j])
    folder(tmp_path).save(1, {"conjugate": tensor.conj(), "negative": tensor.conj().imag}, {})
    found = folder(tmp_path).latest().tensors
    assert found["conjugate"].tolist() == [1 - 2j, 3 + 1j]
    assert found["negative"].tolist() == [-2.0, 1.0]


def test_another_kind_is_neither_read_nor_overwritten(tmp_path):
    folder(tmp_path).save(1, {}, {})
    other = folder(tmp_path, kind="other.training")
    with pytest.raises(FormatError, match=r"'test\.training', expected 'other\.training'"):
        other.latest()
    with pytest.raises(FormatError, match="another folder"):
        other.save(2, {}, {})
    with replace_folder(tmp_path / "index") as inside:
        (inside / "a.txt").write_text("something else")
    with pytest.raises(FormatError, match="not a folder of checkpoints"):
        CheckpointFolder(tmp_path / "index", kind="k", config={}).save(0, {}, {})
    (tmp_path / "file").touch()
    with pytest.raises(FormatError, match="got a file"):
        CheckpointFolder(tmp_path / "file", kind="k", config={}).latest()


def test_every_damaged_byte_is_found(tmp_path):
    checkpoints = folder(tmp_path)
    checkpoints.save(1, {"x": torch.arange(4)}, {"a": 1})
    generation = current_generation(checkpoints.path)
    for file in [checkpoints.path / "CURRENT", *generation.iterdir()]:
        raw = file.read_bytes()
        for position in range(0, len(raw), 7):
            file.write_bytes(raw[:position] + bytes([raw[position] ^ 0x20]) + raw[position + 1 :])
            with pytest.raises((FormatError, ConfigError)):
                checkpoints.latest()
        file.write_bytes(raw[:-1])
        with pytest.raises(FormatError):
            checkpoints.latest()
        file.write_bytes(raw)
    assert checkpoints.latest().step == 1
    (generation / "tensors.safetensors").unlink()
    with pytest.raises(FormatError, match=r"tensors\.safetensors: .* no such file"):
        folder(tmp_path).latest()
    with pytest.raises(FormatError):
        folder(tmp_path).save(2, {}, {})


def reseal(path, change):
    """Rewrites a checkpoint's header with valid checksums, as another release or a stranger would."""
    generation = current_generation(path)
    header = json.loads((generation / "checkpoint.json").read_text())
    tensors = (generation / "tensors.safetensors").read_bytes()
    with replace_folder(path) as inside:
        (inside / "checkpoint.json").write_text(json.dumps(change(header)))
        (inside / "tensors.safetensors").write_bytes(tensors)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda h: {**h, "version": 2}, VersionError, "version 2, expected 1"),
        (lambda h: {**h, "schema_name": "other"}, FormatError, "schema_name"),
        (lambda h: {**h, "step": -1}, FormatError, "step"),
        (lambda h: {**h, "more": 1}, FormatError, "more"),
        (lambda h: [h], FormatError, "does not describe"),
        (lambda h: {}, FormatError, "does not describe"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path, change, error, message):
    folder(tmp_path).save(1, {"x": torch.arange(4)}, {})
    reseal(tmp_path / "run", change)
    with pytest.raises(error, match=message):
        folder(tmp_path).latest()


@pytest.mark.parametrize(
    ("step", "tensors", "state", "error", "message"),
    [
        (-1, {}, {}, ArgumentError, "step: expected an integer of 0 or more, got -1"),
        (1.0, {}, {}, ArgumentError, "step"),
        (1, {"": torch.zeros(1)}, {}, ArgumentError, "names that are not empty"),
        (1, {"x": [1.0]}, {}, DtypeError, r"tensors\['x'\].*got list"),
        (1, {"x": torch.zeros(2, 2).to_sparse()}, {}, DtypeError, "dense"),
        (1, {}, {"x": float("nan")}, ArgumentError, "state: expected values that JSON can hold"),
        (1, {}, {"x": (1, 2)}, ArgumentError, "lists rather than tuples"),
        (1, {}, {"x": torch.zeros(1)}, ArgumentError, "state"),
    ],
)
def test_bad_arguments_leave_the_old_checkpoint(tmp_path, step, tensors, state, error, message):
    checkpoints = folder(tmp_path)
    checkpoints.save(7, {}, {})
    with pytest.raises(error, match=message):
        checkpoints.save(step, tensors, state)
    assert checkpoints.latest().step == 7


def test_bad_kind_and_config(tmp_path):
    with pytest.raises(ArgumentError, match="kind"):
        folder(tmp_path, kind="")
    with pytest.raises(ArgumentError, match="config"):
        folder(tmp_path, config={1: 2})


# --- optimizers


def make_optimizer(name, parameters):
    rates = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.02}]
    return {
        "adamw": lambda: torch.optim.AdamW(rates, lr=0.01, weight_decay=0.1),
        "adamw-fused": lambda: torch.optim.AdamW(rates, lr=0.01, fused=True),
        "adamw-foreach": lambda: torch.optim.AdamW(rates, lr=0.01, foreach=True, amsgrad=True),
        "adamw-tensor-rate": lambda: torch.optim.AdamW(parameters, lr=torch.tensor(0.01), foreach=False),
        "sgd": lambda: torch.optim.SGD(rates, lr=0.1),
        "sgd-momentum": lambda: torch.optim.SGD(rates, lr=0.1, momentum=0.9, nesterov=True),
        "sgd-fused": lambda: torch.optim.SGD(rates, lr=0.1, momentum=0.9, fused=True),
    }[name]()


class Run:
    """A small training with a convolution in channels_last, a schedule, and noise from a generator."""

    def __init__(self, name):
        self.generator = torch.Generator().manual_seed(3)
        draw = torch.Generator().manual_seed(1)
        shapes = [(4, 3, 3, 3), (4,), (5, 4), (5,)]
        self.parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
        kernel = self.parameters[0]
        kernel.data = kernel.data.to(memory_format=torch.channels_last)
        self.idle = torch.nn.Parameter(torch.zeros(2))
        self.optimizer = make_optimizer(name, [*self.parameters, self.idle])
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 20)
        self.step = 0

    def train(self, until):
        kernel, bias, weight, offset = self.parameters
        while self.step < until:
            x = torch.randn(2, 3, 6, 6, generator=self.generator).to(memory_format=torch.channels_last)
            hidden = torch.nn.functional.conv2d(x, kernel, bias).relu().mean((2, 3))
            loss = (hidden @ weight.t() + offset).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.step += 1

    def save(self, checkpoints):
        held, state = optimizer_tensors(self.optimizer)
        tensors = {f"parameter.{i}": p for i, p in enumerate(self.parameters)}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in held.items()}
        tensors["generator"] = self.generator.get_state()
        schedule = {k: v for k, v in self.schedule.state_dict().items() if not k.startswith("_")}
        schedule = {k: v for k, v in schedule.items() if not any(isinstance(x, torch.Tensor) for x in (v, *_list(v)))}
        checkpoints.save(self.step, tensors, {"optimizer": state, "schedule": schedule})

    def load(self, checkpoints):
        found = checkpoints.latest()
        for index, parameter in enumerate(self.parameters):
            parameter.data.copy_(found.tensors[f"parameter.{index}"])
        held = {n.removeprefix("optimizer."): t for n, t in found.tensors.items() if n.startswith("optimizer.")}
        load_optimizer_(self.optimizer, held, found.state["optimizer"])
        self.schedule.load_state_dict(found.state["schedule"])
        self.generator.set_state(found.tensors["generator"])
        self.step = found.step


def _list(value):
    return value if isinstance(value, list) else []


NAMES = ["adamw", "adamw-fused", "adamw-foreach", "adamw-tensor-rate", "sgd", "sgd-momentum", "sgd-fused"]


@pytest.mark.parametrize("name", NAMES)
def test_a_continued_run_is_bit_for_bit_the_uninterrupted_one(tmp_path, name):
    whole = Run(name)
    whole.train(9)
    first = Run(name)
    first.train(4)
    first.save(folder(tmp_path))
    second = Run(name)
    second.train(2)  # what it did before is forgotten
    second.load(folder(tmp_path))
    second.train(9)
    for expected, got in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(expected, got)
    for expected, got in zip(whole.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert expected.keys() == got.keys()
        for slot, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, got[slot])
                assert value.stride() == got[slot].stride()
    for expected, got in zip(whole.optimizer.param_groups, second.optimizer.param_groups, strict=True):
        assert {k: v for k, v in expected.items() if k != "params"} == {k: v for k, v in got.items() if k != "params"}


def trained(name="adamw"):
    run = Run(name)
    run.train(1)
    tensors, state = optimizer_tensors(run.optimizer)
    return run.optimizer, {n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(state))


def test_loaded_state_is_a_copy():
    optimizer, tensors, state = trained()
    load_optimizer_(optimizer, tensors, state)
    for tensor in tensors.values():
        tensor.fill_(9)
    assert not any((held == 9).any() for held in optimizer_tensors(optimizer)[0].values())


def test_what_does_not_fit_an_optimizer_is_refused_and_changes_nothing():
    optimizer, tensors, state = trained()
    name = "state.0.exp_avg"
    missing = {n: t for n, t in tensors.items() if n != name}
    cases = [
        (missing, state, "'state.0.exp_avg' is missing"),
        ({**tensors, "state.9.exp_avg": tensors[name]}, state, "not expected by the optimizer"),
        ({**tensors, name: torch.zeros(3)}, state, r"has shape \(3,\), its parameter \(4, 3, 3, 3\)"),
        (tensors, {**state, "class": "SGD"}, "saved by a SGD, expected a AdamW"),
        (tensors, {**state, "groups": state["groups"][:1]}, r"groups of \[2\] parameters, expected \[2, 3\]"),
        (tensors, {**state, "state": {"17": state["state"]["0"]}}, "parameter 17 is not among"),
        (tensors, {}, "not what optimizer_tensors gives"),
        (tensors, {**state, "state": {"x": {}}}, "not what optimizer_tensors gives"),
    ]
    for bad_tensors, bad_state, message in cases:
        with pytest.raises(FormatError, match=message):
            load_optimizer_(optimizer, bad_tensors, bad_state)
    after, _ = optimizer_tensors(optimizer)
    assert all(torch.equal(tensor, after[n]) for n, tensor in tensors.items())


def test_an_optimizer_with_other_shapes_is_refused():
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.Adafactor([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    with pytest.raises(ArgumentError, match=r"row_var has shape \(4, 1\), its parameter \(4, 3\)"):
        optimizer_tensors(optimizer)


def test_an_optimizer_with_lists_is_refused():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([parameter])

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ArgumentError, match="only optimizers such as SGD"):
        optimizer_tensors(optimizer)


# --- kill -9

SAVE = """
import os, signal, sys
from pathlib import Path
import safetensors.torch, torch
from sparing.runs import CheckpointFolder
torch.set_num_threads(1)

def save(step):
    run = CheckpointFolder(sys.argv[1], kind="test", config={})
    run.save(step, {"x": torch.full((50_000,), step), "y": torch.full((3,), step)}, {"step": step})
"""

# As in test_crashes.py: each child dies at its n-th call that the disk sees, one of them half-way through the tensors.
KILL_AT_EVERY_STEP = """
real_save_file = safetensors.torch.save_file

def die_at(step):
    left = [step]
    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    def save_file(tensors, file):
        left[0] -= 1
        real_save_file(tensors, file)
        if left[0] == 0:
            os.truncate(file, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
    safetensors.torch.save_file = save_file
    calls = {os: ["fsync", "open", "mkdir", "unlink", "rmdir"], Path: ["open", "replace", "chmod", "mkdir"]}
    for owner, names in calls.items():
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))

for step in range(2, 500):
    print("step", step, flush=True)
    child = os.fork()
    if child == 0:
        die_at(step - 1)
        save(step)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("killed" if os.WIFSIGNALED(status) else f"ended {os.waitstatus_to_exitcode(status)}", flush=True)
    if sys.stdin.readline() == "" or not os.WIFSIGNALED(status):
        break
"""


def start(code, path, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SAVE + code, str(path)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, **options)


def step_in(path):
    found = CheckpointFolder(path, kind="test", config={}).latest()
    verify_folder(path)
    values = {found.step, found.state["step"], *found.tensors["x"].unique().tolist(), int(found.tensors["y"][0])}
    assert len(values) == 1, f"a mix of {values}"
    return found.step


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_at_every_step_of_a_save(tmp_path):
    path = tmp_path / "run"
    CheckpointFolder(path, kind="test", config={}).save(1, {"x": torch.ones(5), "y": torch.ones(3)}, {"step": 1})
    allowed, steps = {1}, 1
    with start(KILL_AT_EVERY_STEP, path, stdin=subprocess.PIPE) as process:
        for line in process.stdout:
            word, _, number = line.strip().partition(" ")
            if word == "step":
                steps = int(number)
                allowed |= {steps}
                continue
            allowed &= {step_in(path)}
            assert allowed, "neither the old checkpoint nor the new one"
            if word == "ended":
                assert number == "0"
                assert allowed == {steps}
            process.stdin.write("go\n")
            process.stdin.flush()
    assert process.returncode == 0
    assert word == "ended"
    assert steps > 10
    assert sorted(os.listdir(path)) == ["CURRENT", "LOCK", current_generation(path).name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_from_outside_and_read_meanwhile(tmp_path):
    path = tmp_path / "run"
    pause = random.Random(0)
    with start("save(1)\nprint('ready', flush=True)\nfor step in range(2, 100_000): save(step)\n", path) as process:
        assert process.stdout.readline() == "ready\n"
        end = time.monotonic() + pause.uniform(0.2, 0.5)
        last = 1
        while time.monotonic() < end:
            # Each read finds a whole checkpoint, and never an older one than before.
            found = CheckpointFolder(path, kind="test", config={}).latest()
            assert found.step == found.state["step"] == int(found.tensors["x"][0]) >= last
            last = found.step
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert step_in(path) >= last


def test_without_torch_the_room_imports_and_checkpoints_name_the_extra():
    code = """
import sys
sys.modules["torch"] = None
from sparing.errors import MissingExtraError
from sparing.runs import CheckpointFolder
try:
    CheckpointFolder("nowhere", kind="k", config={}).latest()
except MissingExtraError as error:
    print(error.extra)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "torch\n", done.stderr
