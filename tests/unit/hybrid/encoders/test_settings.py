"""Settings: what is refused, and what comes back equal."""

import subprocess
import sys

import pytest

from sparing.errors import ConfigError, MissingExtraError
from sparing.hybrid.encoders import (
    BM25Encoder,
    BM25Settings,
    DenseEncoder,
    DenseSettings,
    SpladeSettings,
    parse_settings,
)


@pytest.mark.parametrize(
    "settings",
    [
        BM25Settings(k1=0.9, language=None),
        DenseSettings(model="m", max_tokens=128),
        SpladeSettings(model="m", max_terms=64),
    ],
)
def test_round_trip(settings):
    assert parse_settings(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"kind": "bm25", "k1": -1}, "k1"),
        ({"kind": "bm25", "b": 1.5}, "b"),
        ({"kind": "bm25", "k2": 1}, "k2"),
        ({"kind": "dense"}, "model"),
        ({"kind": "dense", "model": "m", "precision": "float16"}, "precision"),
        ({"kind": "dense", "model": "m", "sha256": "no"}, "sha256"),
        ({"kind": "splade", "model": "m", "max_terms": 0}, "max_terms"),
        ({"kind": "colbert"}, "settings"),
        ({}, "settings"),
        ([], "settings"),
    ],
)
def test_errors_name_the_field(data, field):
    with pytest.raises(ConfigError, match=rf"encoder settings are not valid: .*{field}"):
        parse_settings(data)


def test_importing_the_encoders_loads_no_model_library():
    code = (
        "import sys, sparing.hybrid.encoders; "
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'bm25s', 'Stemmer'} & set(sys.modules); "
        "raise SystemExit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["bm25s", "Stemmer", "sentence_transformers", "torch"])
def test_missing_package_names_the_extra(monkeypatch, package, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"pip install 'sparing\[text\]'"):
        BM25Encoder() if package in {"bm25s", "Stemmer"} else DenseEncoder(str(tmp_path))
