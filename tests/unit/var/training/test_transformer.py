"""Training of the transformer: it learns, knows its classes, and goes on after SIGKILL bit for bit."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from pydantic import ValidationError  # noqa: E402

from sparing.errors import ArgumentError, ConfigError, ShapeError  # noqa: E402
from sparing.var.training.transformer import (  # noqa: E402
    TransformerTrainingConfig,
    encode_dataset,
    train_transformer_,
)
from sparing.var.transformer import VARTransformer  # noqa: E402

SCHEDULE = (1, 2, 3, 4)


def settings(**changes):
    fields = {"steps": 60, "batch_size": 5, "learning_rate": 5e-3, "warmup_steps": 5}
    return TransformerTrainingConfig(**{**fields, **changes})


@pytest.fixture
def tokenizer(tiny):
    return tiny.tokenizer(patch_nums=SCHEDULE)


@pytest.fixture
def fresh(tiny):
    return lambda seed=0, **changes: VARTransformer(tiny.transformer_config(patch_nums=SCHEDULE, **changes), seed=seed)


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(t, second[name]) for name, t in first.items())


def test_it_learns(fresh, tokenizer, tokens):
    before = {name: t.clone() for name, t in tokenizer.state_dict().items()}
    model = fresh()
    result = train_transformer_(model, tokenizer, tokens, config=settings(steps=150))
    losses = [entry["loss"] for entry in result.history]
    assert losses[0] < math.log(24)
    assert losses[-1] < 0.5 * losses[0]
    assert result.history[-1]["right"] > result.history[0]["right"] + 0.2
    assert_same(tokenizer.state_dict(), before)
    # What was learned follows the class.
    found = torch.from_numpy(tokens.tokens.astype(np.int64))[0, :5]
    with torch.inference_mode():
        inputs = tokenizer.quantize.next_inputs(found.split(model.config.scale_sizes, 1))
        cross = [torch.nn.functional.cross_entropy(model(torch.arange(5).roll(n), inputs).mT, found) for n in range(5)]
    assert min(cross[1:]) > cross[0]


def test_the_loss_is_the_mean_cross_entropy_over_all_tokens(fresh, tokenizer, tokens):
    seen = {}
    model = fresh(class_dropout=0.0, depth=1)
    forward = model.forward

    def watched(labels, inputs):
        seen["logits"] = forward(labels, inputs).double()
        seen["labels"], seen["inputs"] = labels, inputs
        return seen["logits"].float()

    model.forward = watched
    same = dataclasses.replace(tokens, tokens=np.stack([tokens.tokens[0]] * 2))
    config = settings(steps=50, batch_size=20, precision="float32", learning_rate=1e-12)
    result = train_transformer_(model, tokenizer, same, config=config)
    order = [int(np.flatnonzero((np.arange(20) % 5) == label)[0]) for label in seen["labels"]]
    target = torch.from_numpy(same.tokens[0].astype(np.int64))[order]
    expected = -seen["logits"].log_softmax(-1).gather(-1, target[..., None]).mean()
    assert result.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    with torch.inference_mode():
        inputs = tokenizer.quantize.next_inputs(target.split(model.config.scale_sizes, 1))
    torch.testing.assert_close(seen["inputs"], inputs)
    smoothed = settings(steps=50, batch_size=20, precision="float32", learning_rate=1e-12, label_smoothing=0.5)
    result = train_transformer_(model, tokenizer, same, config=smoothed)
    uniform = -seen["logits"].log_softmax(-1).mean()
    assert result.history[0]["loss"] == pytest.approx((expected + uniform).item() / 2, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_class_is_left_out_as_often_as_the_model_says(fresh, tokenizer, tokens, share):
    model, seen = fresh(depth=1, class_dropout=share), []
    forward = model.forward
    model.forward = lambda labels, inputs: seen.append(labels) or forward(labels, inputs)
    train_transformer_(model, tokenizer, tokens, config=settings(steps=60, batch_size=20))
    found = (torch.cat(seen) == 5).float().mean().item()
    assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 1200))
    if share < 1:
        assert set(torch.cat(seen).tolist()) >= set(range(5))


def test_images_and_their_mirror_images_are_both_seen(fresh, tokenizer, tokens):
    model, seen = fresh(depth=1, class_dropout=0.0), []
    forward = model.forward
    model.forward = lambda labels, inputs: seen.extend(inputs[:, :4].clone()) or forward(labels, inputs)
    train_transformer_(model, tokenizer, tokens, config=settings(steps=20, batch_size=20))
    # Five classes, as they are and mirrored.
    assert len(torch.stack(seen).unique(dim=0)) == 10


@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True}])
def test_stopped_and_resumed_is_uninterrupted(fresh, tokenizer, tokens, tmp_path, changes):
    config, whole = settings(steps=24), fresh(**changes)
    expected = train_transformer_(whole, tokenizer, tokens, config=config)

    def stop(stage, done, total):
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_transformer_(
            fresh(**changes), tokenizer, tokens, config=config, checkpoint_folder=tmp_path, progress=stop
        )
    resumed = fresh(seed=4, **changes)
    found = train_transformer_(resumed, tokenizer, tokens, config=config, checkpoint_folder=tmp_path)
    assert_same(resumed.state_dict(), whole.state_dict())
    assert_same(found.averaged, expected.averaged)
    assert found.history == expected.history


KILLED = """
import importlib.util, os, signal, sys
import numpy as np
import torch
torch.set_num_threads(1)
from sparing.var.training.transformer import TokenDataset, TransformerTrainingConfig, train_transformer_
from sparing.var.transformer import VARTransformer

spec = importlib.util.spec_from_file_location("tiny", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
config = TransformerTrainingConfig.model_validate_json(sys.argv[4])
with np.load(sys.argv[2]) as file:
    data = TokenDataset(file["tokens"], file["labels"], "sums")

def kill(stage, done, total):
    if done == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)

model = VARTransformer(tiny.transformer_config(patch_nums=(1, 2, 3, 4)), seed=0)
tokenizer = tiny.tokenizer(patch_nums=(1, 2, 3, 4))
where = {"checkpoint_folder": sys.argv[3], "checkpoint_every_s": 0.0}
train_transformer_(model, tokenizer, data, config=config, progress=kill, **where)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_goes_on_bit_for_bit(fresh, tokenizer, tokens, tmp_path):
    config, folder = settings(steps=20), tmp_path / "run"
    whole = fresh()
    expected = train_transformer_(whole, tokenizer, tokens, config=config)
    np.savez(tmp_path / "tokens.npz", tokens=tokens.tokens, labels=tokens.labels)
    helper = Path(__file__).parents[1] / "tiny.py"
    arguments = [helper, tmp_path / "tokens.npz", folder, config.model_dump_json(), "12"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    told, resumed = [], fresh(seed=4)
    found = train_transformer_(
        resumed,
        tokenizer,
        tokens,
        config=config,
        checkpoint_folder=folder,
        progress=lambda *event: told.append(event[1]),
    )
    assert told[0] == 12, "step 12 was done but not saved"
    assert_same(resumed.state_dict(), whole.state_dict())
    assert_same(found.averaged, expected.averaged)


def test_changed_settings_are_refused(fresh, tokenizer, tokens, tmp_path):
    train_transformer_(fresh(), tokenizer, tokens, config=settings(steps=1), checkpoint_folder=tmp_path)
    for model, data, config, words in (
        (fresh(), tokens, settings(steps=1, label_smoothing=0.1), "label_smoothing"),
        (fresh(class_dropout=0.2), tokens, settings(steps=1), r"transformer\.class_dropout: saved 0\.1, now 0\.2"),
        (
            fresh(),
            dataclasses.replace(tokens, name="other"),
            settings(steps=1),
            r"data\.name: saved 'sums', now 'other'",
        ),
    ):
        with pytest.raises(ConfigError, match=words):
            train_transformer_(model, tokenizer, data, config=config, checkpoint_folder=tmp_path)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"tokens": np.zeros((2, 20, 31), np.uint16)}, ShapeError, r"expected tokens \(2, 20, 30\)"),
        ({"tokens": np.zeros((2, 19, 30), np.uint16)}, ShapeError, "for .20,. labels"),
        ({"tokens": np.zeros((1, 20, 30), np.uint16)}, ShapeError, "data"),
        ({"tokens": np.zeros((20, 30), np.uint16)}, ShapeError, "data"),
        ({"labels": np.full(20, 5)}, ArgumentError, "expected labels from 0 to 4, got .5."),
        ({"labels": np.full(20, -1)}, ArgumentError, "labels from 0 to 4"),
        ({"tokens": np.full((2, 20, 30), 24, np.uint16)}, ArgumentError, "expected tokens below 24, got up to 24"),
        ({"tokens": np.zeros((2, 0, 30), np.uint16), "labels": np.zeros(0, np.int64)}, ArgumentError, "labels"),
    ],
)
def test_data_that_does_not_fit(fresh, tokenizer, tokens, fields, error, words):
    with pytest.raises(error, match=words):
        train_transformer_(fresh(), tokenizer, dataclasses.replace(tokens, **fields), config=settings())


def test_a_tokenizer_that_does_not_fit(fresh, tiny, tokens):
    with pytest.raises(ConfigError, match="tokenizer: expected patch_nums"):
        train_transformer_(fresh(), tiny.tokenizer(patch_nums=(1, 2, 3, 5)), tokens, config=settings())


@pytest.mark.parametrize("fields", [{"label_smoothing": 1.5}, {"label_smoothing": -0.1}])
def test_bad_settings(fields):
    with pytest.raises(ValidationError, match="label_smoothing"):
        settings(**fields)


@pytest.mark.parametrize("batch_size", [7, 24])
def test_encoding_a_dataset(tiny, stripes, batch_size):
    tokenizer = tiny.tokenizer(patch_nums=(1, 2, 4, 8))
    told = []
    found = encode_dataset(tokenizer, stripes, batch_size=batch_size, progress=lambda *event: told.append(event))
    assert found.tokens.dtype == np.uint16
    assert found.tokens.shape == (2, 24, 85)
    assert found.name == "stripes"
    assert np.array_equal(found.labels, stripes.labels)
    assert told[-1] == ("encoding", 24, 24)
    for mirror, images in enumerate((stripes.images, stripes.images[..., ::-1].copy())):
        with torch.inference_mode():
            expected = torch.cat(tokenizer.encode(torch.from_numpy(images).float() / 127.5 - 1), 1).numpy()
        assert (found.tokens[mirror] == expected).mean() > 0.999
    assert not np.array_equal(found.tokens[0], found.tokens[1])
