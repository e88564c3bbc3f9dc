"""A tokenizer as a folder, and images that are encoded once."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[var]")
pytest.importorskip("safetensors", reason="needs sparing[var]")
pytest.importorskip("huggingface_hub", reason="needs sparing[var]")

import torch

from sparing.errors import FormatError, VersionError
from sparing.var.layout import (
    cached_tokens,
    data_fingerprint,
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
)
from sparing.vision import ImageDataset


@pytest.fixture
def tokenizer(tiny):
    return tiny.tokenizer(patch_nums=(1, 2, 3))


@pytest.fixture
def data():
    random = np.random.default_rng(0)
    return ImageDataset(random.integers(0, 256, (7, 3, 6, 6), np.uint8), np.arange(7) % 2, ("a", "b"), "noise")


def test_tokenizer_round_trip(tmp_path, tokenizer):
    save_tokenizer(tmp_path / "new" / "tok", tokenizer)
    back = load_tokenizer(tmp_path / "new" / "tok")
    assert back.config == tokenizer.config
    assert not back.training
    ours = tokenizer.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in back.state_dict().items())
    assert tokenizer_fingerprint(back) == tokenizer_fingerprint(tokenizer)
    before = {p.name: p.read_bytes() for p in (tmp_path / "new" / "tok").iterdir()}
    save_tokenizer(tmp_path / "new" / "tok", back.to(memory_format=torch.channels_last))
    assert {p.name: p.read_bytes() for p in (tmp_path / "new" / "tok").iterdir()} == before


def test_damaged_tokenizers(tmp_path, tokenizer):
    with pytest.raises(FormatError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    save_tokenizer(tmp_path, tokenizer)
    settings = (tmp_path / "tokenizer.json").read_text()
    fields = json.loads(settings)
    for changed, error, message in (
        ("{", FormatError, "Invalid JSON"),
        ("[" * 100_000, FormatError, "Invalid JSON"),
        (json.dumps({**fields, "schema_name": "x"}), FormatError, "schema_name"),
        (json.dumps({**fields, "version": 2}), VersionError, "version 2"),
        (json.dumps({**fields, "more": 2}), FormatError, "more"),
    ):
        (tmp_path / "tokenizer.json").write_text(changed)
        with pytest.raises(error, match=message):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(settings)
    raw = bytearray((tmp_path / "tokenizer.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "tokenizer.safetensors").write_bytes(bytes(raw))
    with pytest.raises(FormatError, match=r"tokenizer\.safetensors"):
        load_tokenizer(tmp_path)


def test_images_are_encoded_once(tmp_path, tokenizer, data):
    calls = []
    first = cached_tokens(tmp_path / "c", tokenizer, data, progress=lambda *call: calls.append(call))
    again = cached_tokens(tmp_path / "c", tokenizer, data, progress=lambda *call: calls.append(call))
    assert calls == [("encoding", 7, 7)]
    assert np.array_equal(first.tokens, again.tokens)
    assert first.name == again.name
    assert np.array_equal(again.labels, data.labels)
    images = torch.from_numpy(data.images).float() / 127.5 - 1
    with torch.no_grad():
        right = torch.cat(tokenizer.encode(images), 1).numpy()
    assert np.array_equal(first.tokens[0], right)


def test_other_images_or_weights_have_other_names(tmp_path, tiny, tokenizer, data):
    other = ImageDataset(data.images ^ 1, data.labels, data.class_names, data.name)
    relabelled = ImageDataset(data.images, 1 - data.labels, data.class_names, data.name)
    renamed = ImageDataset(data.images, data.labels, ("a", "c"), data.name)
    assert len({data_fingerprint(d) for d in (data, other, relabelled, renamed)}) == 4
    names = {
        cached_tokens(tmp_path, model, images).name
        for model in (tokenizer, tiny.tokenizer(seed=9, patch_nums=(1, 2, 3)))
        for images in (data, other)
    }
    assert len(names) == len(list(tmp_path.glob("tokens-*.sparing"))) == 4


def test_a_damaged_cache_is_seen(tmp_path, tokenizer, data):
    cached_tokens(tmp_path, tokenizer, data)
    (file,) = tmp_path.glob("tokens-*.sparing")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(FormatError, match="altered"):
        cached_tokens(tmp_path, tokenizer, data)
