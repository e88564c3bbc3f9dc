"""The training loop: its schedule, its optimizer and averages written out, checkpoints, interrupts, NaN."""

import math
import os
import signal
import threading

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from pydantic import ValidationError  # noqa: E402

from sparing.errors import ConfigError, FormatError, NonFiniteError  # noqa: E402
from sparing.var.training.loop import TrainingConfig, train_  # noqa: E402


class Model(torch.nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inside = torch.nn.Linear(3, 4)
        self.class_emb = torch.nn.Embedding(2, 4)
        self.register_buffer("count", torch.zeros(()))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def forward(self, x):
        return (self.inside(x) + self.class_emb.weight[0] - self.class_emb.weight[1]).square()


def settings(**changes):
    fields = {"steps": 12, "batch_size": 2, "learning_rate": 0.05, "warmup_steps": 3, "ema_decay": 0.8}
    return TrainingConfig(**{**fields, "precision": "float32", **changes})


def loss_of(model):
    def loss_at(step):
        model.count += 1
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        loss = model(x).mean()
        return loss, {"double": 2 * loss.detach()}

    return loss_at


def run(model, folder=None, *, loss_at=None, progress=None, config=None, **options):
    options = {"kind": "test", "described": {"data": "random"}, "checkpoint_every_s": 0.0, **options}
    loss_at = loss_at or loss_of(model)
    return train_(model, loss_at, config=config or settings(), checkpoint_folder=folder, progress=progress, **options)


def state_of(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(t, second[name]) for name, t in first.items())


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_schedule():
    config = settings(steps=10, learning_rate=2.0, warmup_steps=4, decay_share=0.5, final_rate=0.1)
    rates = [config.rate(step) for step in range(10)]
    assert rates[:6] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    assert rates[6:] == pytest.approx([2 * (0.1 + 0.9 * left) for left in (0.8, 0.6, 0.4, 0.2)])
    assert settings(warmup_steps=0, decay_share=0.0).rate(0) == 0.05


@pytest.mark.parametrize("clip_norm", [0.5, 1e9])
def test_weights_and_averages_step_by_step(clip_norm):
    config, model, twin = settings(clip_norm=clip_norm, weight_decay=0.3), Model(), Model()
    result = run(model, config=config)
    named = dict(twin.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in named.items()}
    second = {name: torch.zeros_like(p) for name, p in named.items()}
    average = {name: p.detach().clone() for name, p in named.items()}
    loss_at = loss_of(twin)
    for step in range(12):
        twin.zero_grad()
        loss_at(step)[0].backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in twin.parameters()))
        for name, p in named.items():
            gradient = p.grad * min(1.0, clip_norm / (norm + 1e-6))
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            with torch.no_grad():
                # Only matrices decay, and no embedding.
                p.mul_(1 - config.rate(step) * (0.3 if name == "inside.weight" else 0.0))
                unbiased = first[name] / (1 - 0.9 ** (step + 1))
                p.sub_(config.rate(step) * unbiased / ((second[name] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
                decay = min(0.8, (1 + step) / (10 + step))
                average[name] = decay * average[name] + (1 - decay) * p
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), named[name].detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result.averaged[name], average[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(result.averaged[name], p)


def test_without_averages_the_weights_themselves():
    model = Model()
    result = run(model, config=settings(ema_decay=0.0))
    assert_same(result.averaged, {name: p.detach() for name, p in model.named_parameters()})
    assert not model.training


def test_history_and_progress():
    told = []
    model, losses = Model(), []
    plain = loss_of(model)

    def loss_at(step):
        loss, figures = plain(step)
        losses.append(loss.item())
        return loss, figures

    result = run(model, loss_at=loss_at, config=settings(steps=120), progress=lambda *event: told.append(event))
    assert told == [("training", step, 120) for step in range(1, 121)]
    assert [entry["step"] for entry in result.history] == [50, 100]
    for entry, begin in zip(result.history, (0, 50), strict=True):
        assert entry["loss"] == pytest.approx(sum(losses[begin : begin + 50]) / 50)
        assert entry["double"] == pytest.approx(2 * entry["loss"])
        assert entry["learning_rate"] == settings(steps=120).rate(begin + 49)
    assert result.steps == 120
    assert result.history[1]["loss"] < result.history[0]["loss"]


def test_frozen_parameters_stay():
    model = Model()
    model.inside.requires_grad_(False)
    before = state_of(model)
    result = run(model)
    assert list(result.averaged) == ["class_emb.weight"]
    assert torch.equal(model.inside.weight, before["inside.weight"])
    assert not torch.equal(model.class_emb.weight, before["class_emb.weight"])


class StopError(Exception):
    pass


def stop_at(step, error):
    def progress(stage, done, total):
        if done == step:
            raise error

    return progress


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopError])
@pytest.mark.parametrize("step", [1, 37, 50, 60])
def test_stopped_and_resumed_is_uninterrupted(tmp_path, error, step):
    config, whole = settings(steps=60), Model()
    expected = run(whole, config=config)
    first = Model()
    with pytest.raises(error):
        run(first, tmp_path / "run", config=config, progress=stop_at(step, error), checkpoint_every_s=0.02)
    assert not first.training
    told = []
    resumed = Model(seed=5 if (tmp_path / "run").exists() else 0)
    found = run(resumed, tmp_path / "run", config=config, progress=lambda *event: told.append(event[1]))
    if error is KeyboardInterrupt:
        assert told == list(range(step + 1, 61)), "Ctrl-C saves at once"
    assert_same(state_of(resumed), state_of(whole))
    assert_same(found.averaged, expected.averaged)
    assert found.history == expected.history
    assert len(found.history) == 1
    assert resumed.count == 60


def test_a_finished_run_is_not_run_again(tmp_path):
    model = Model()
    expected = run(model, tmp_path)
    again = Model(seed=3)
    found = run(again, tmp_path, loss_at=lambda step: pytest.fail("a step too many"))
    assert found.steps == 12
    assert_same(state_of(again), state_of(model))
    assert_same(found.averaged, expected.averaged)


def test_ctrl_c_waits_for_the_end_of_the_step(tmp_path):
    whole = Model()
    run(whole)
    model = Model()
    plain = loss_of(model)

    def loss_at(step):
        loss, figures = plain(step)
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return loss, figures

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, loss_at=loss_at, checkpoint_every_s=1e9)
    assert signal.getsignal(signal.SIGINT) is handler
    told, resumed = [], Model(seed=5)
    run(resumed, tmp_path, progress=lambda *event: told.append(event[1]))
    assert told[0] == 6, "steps 0 to 4 were saved"
    assert_same(state_of(resumed), state_of(whole))


def test_half_a_step_is_not_saved(tmp_path):
    model = Model()
    plain = loss_of(model)

    def loss_at(step):
        found = plain(step)
        if step == 4:
            raise KeyboardInterrupt
        return found

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "run", loss_at=loss_at, checkpoint_every_s=1e9)
    assert model.count == 5
    assert not (tmp_path / "run").exists()


def test_training_in_another_thread(tmp_path):
    whole, other, errors = Model(), Model(), []
    run(whole)

    def work():
        try:
            run(other, tmp_path)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    assert_same(state_of(other), state_of(whole))


def nan_loss(loss):
    return loss * math.nan


def infinite_loss(loss):
    return loss * math.inf


def nan_gradients(loss):
    # The root of 0 is 0, and its slope is not a number.
    return loss + 0 * (loss - loss).sqrt()


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [(nan_loss, "loss: became nan"), (infinite_loss, "loss: became inf"), (nan_gradients, "gradients: became nan")],
)
def test_what_is_no_number_is_refused_and_the_checkpoint_untouched(tmp_path, spoilt, words):
    model, saved = Model(), {}
    plain = loss_of(model)

    def loss_at(step):
        loss, figures = plain(step)
        if step != 5:
            return loss, figures
        saved.update(files_of(tmp_path), weights=state_of(model))
        return spoilt(loss), figures

    with pytest.raises(NonFiniteError, match=f"{words} at step 5; lower learning_rate"):
        run(model, tmp_path, loss_at=loss_at)
    weights = saved.pop("weights")
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert files_of(tmp_path) == saved
    assert not model.training


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"config": settings(learning_rate=0.04)}, ConfigError, "learning_rate: saved 0.05, now 0.04"),
        ({"config": settings(steps=13)}, ConfigError, "steps: saved 12, now 13"),
        ({"config": settings(seed=1)}, ConfigError, "seed"),
        ({"described": {"data": "other"}}, ConfigError, "data: saved 'random', now 'other'"),
        ({"described": {}}, ConfigError, "data: saved 'random', now absent"),
        ({"kind": "other"}, FormatError, "kind"),
    ],
)
def test_another_run_is_refused(tmp_path, options, error, words):
    run(Model(), tmp_path)
    before, model = files_of(tmp_path), Model(seed=2)
    weights = state_of(model)
    with pytest.raises(error, match=words):
        run(model, tmp_path, **options)
    assert files_of(tmp_path) == before
    assert_same(state_of(model), weights)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(Model(), tmp_path)
    (file,) = tmp_path.rglob("tensors.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError):
        run(Model(), tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"ema_decay": 1.0},
        {"betas": (0.9, 1.0)},
        {"seed": -1},
        {"precision": "float16"},
        {"decay_share": 1.5},
        {"colour": "red"},
    ],
)
def test_bad_settings(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        settings(**fields)
