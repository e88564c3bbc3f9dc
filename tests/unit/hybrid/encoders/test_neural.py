"""Dense and SPLADE encoders on tiny random models, against the model called by hand."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="needs sparing[text]")

import torch

from sparing.errors import ArgumentError, DtypeError, FormatError
from sparing.hybrid.encoders import DenseEncoder, DenseSettings, SpladeEncoder, SpladeSettings, make_dense, make_sparse

TEXTS = ["red fox", "a hen in the barn by the river", "graph index search", "", "x" * 300, "red fox"]
ENCODERS = {"dense": (DenseEncoder, DenseSettings), "splade": (SpladeEncoder, SpladeSettings)}


@pytest.fixture(params=["dense", "splade"])
def kind(request, tiny_dense_model, tiny_splade_model):
    encoder, settings = ENCODERS[request.param]
    return encoder, settings, tiny_dense_model if request.param == "dense" else tiny_splade_model


def as_array(rows):
    return rows if isinstance(rows, np.ndarray) else rows.toarray()


def test_plain_directory_gets_mean_pooling(tiny_dense_model):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_dense_model), AutoModel.from_pretrained(tiny_dense_model)
    with torch.inference_mode():
        states = model(**tokenizer("red fox in the barn", return_tensors="pt")).last_hidden_state
    encoder = DenseEncoder(DenseSettings(model=str(tiny_dense_model), precision="float32"))
    got = encoder.encode_documents(["red fox in the barn"])
    np.testing.assert_allclose(got, states.mean(1).numpy(), rtol=1e-4, atol=1e-5)


def test_plain_masked_lm_gets_splade_pooling(tiny_splade_model):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_splade_model)
    model = AutoModelForMaskedLM.from_pretrained(tiny_splade_model)
    with torch.inference_mode():
        logits = model(**tokenizer("red fox in the barn", return_tensors="pt")).logits
    encoder = SpladeEncoder(SpladeSettings(model=str(tiny_splade_model), precision="float32"))
    got = encoder.encode_documents(["red fox in the barn"])
    np.testing.assert_allclose(got.toarray(), logits.relu().log1p().amax(1).numpy(), rtol=1e-4, atol=1e-5)
    assert (got.data > 0).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_order_dtype_and_batches(kind, precision):
    make, settings, model = kind
    encoder = make(settings(model=str(model), precision=precision))
    rows = as_array(encoder.encode_documents(TEXTS, batch_size=2))
    assert rows.dtype == np.float32
    assert rows.shape[0] == len(TEXTS)
    assert np.isfinite(rows).all()
    tolerance = 1e-4 if precision == "float32" else 0.2
    for position, text in enumerate(TEXTS):
        alone = as_array(encoder.encode_queries([text]))[0]
        np.testing.assert_allclose(rows[position], alone, rtol=tolerance, atol=tolerance)


def test_same_texts_same_bytes(kind):
    make, _, model = kind
    first, second = (as_array(make(str(model)).encode_documents(TEXTS)) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_splade_rows_are_sorted_and_cut_to_max_terms(tiny_splade_model):
    full = SpladeEncoder(SpladeSettings(model=str(tiny_splade_model), precision="float32")).encode_documents(TEXTS)
    cut = SpladeEncoder(
        SpladeSettings(model=str(tiny_splade_model), precision="float32", max_terms=5)
    ).encode_documents(TEXTS)
    assert full.has_sorted_indices
    assert np.diff(cut.indptr).max() == 5
    row = full[[1]]
    assert set(cut[[1]].data.tolist()) == set(np.sort(row.data)[-5:].tolist())


def test_max_tokens_cuts(kind):
    make, settings, model = kind
    encoder = make(settings(model=str(model), precision="float32", max_tokens=4))
    rows = as_array(encoder.encode_documents(["red fox", "red fox hen barn"]))
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5)


def test_max_tokens_beyond_the_model(kind):
    make, settings, model = kind
    with pytest.raises(ArgumentError, match=r"max_tokens: expected at most 64.*got 65"):
        make(settings(model=str(model), max_tokens=65))


def test_settings_are_filled_in_and_make_it_again(kind):
    make, settings, model = kind
    encoder = make(str(model))
    assert encoder.settings.sha256 is not None
    assert encoder.settings.precision in {"bfloat16", "float32"}
    again = make(settings.model_validate_json(encoder.settings.model_dump_json()))
    assert (
        as_array(again.encode_queries(["red fox"])).tobytes() == as_array(encoder.encode_queries(["red fox"])).tobytes()
    )


def test_changed_model_is_refused(kind, tmp_path: Path):
    make, _, model = kind
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    settings = make(str(copy)).settings
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(FormatError, match="not the one that the index was built with"):
        make(settings)


def test_documentation_and_name_do_not_count(kind, tmp_path: Path):
    make, _, model = kind
    copy = tmp_path / "renamed"
    shutil.copytree(model, copy)
    (copy / "README.md").write_text("about this model")
    assert make(str(copy)).settings.sha256 == make(str(model)).settings.sha256


def test_half_precision_weights_run_in_single(tiny_dense_model, tmp_path: Path):
    from transformers import AutoModel

    copy = tmp_path / "half"
    shutil.copytree(tiny_dense_model, copy)
    AutoModel.from_pretrained(tiny_dense_model).half().save_pretrained(copy)
    assert json.loads((copy / "config.json").read_text())["dtype"] == "float16"
    encoder = DenseEncoder(DenseSettings(model=str(copy), precision="float32"))
    assert next(encoder._model.parameters()).dtype == torch.float32


def test_nan_weights(tiny_dense_model, tmp_path: Path):
    from transformers import AutoModel

    copy = tmp_path / "nan"
    shutil.copytree(tiny_dense_model, copy)
    model = AutoModel.from_pretrained(tiny_dense_model)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.fill_(float("nan"))
    model.save_pretrained(copy)
    with pytest.raises(FormatError, match="NaN"):
        DenseEncoder(str(copy)).encode_documents(["red fox"])


def test_damaged_directory(kind, tmp_path: Path):
    make, _, model = kind
    copy = tmp_path / "damaged"
    shutil.copytree(model, copy)
    os.truncate(copy / "model.safetensors", 100)
    with pytest.raises(ArgumentError, match="does not load"):
        make(str(copy))


def test_not_a_model_directory(kind, tmp_path: Path):
    make, _, model = kind
    with pytest.raises(ArgumentError, match=r"nothing there.*hf://OWNER/NAME"):
        make(str(tmp_path / "nowhere"))
    with pytest.raises(ArgumentError, match="a file"):
        make(str(model / "config.json"))
    with pytest.raises(ArgumentError, match="neither config"):
        make(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArgumentError, match="no weights"):
        make(str(tmp_path))


def test_hub_name_without_a_network(kind):
    make, _, _ = kind
    with pytest.raises(ArgumentError, match="could not be had from the hub"):
        make("hf://nobody/nothing@main")


def test_bad_texts(kind):
    make, _, model = kind
    encoder = make(str(model))
    for call in (encoder.encode_documents, encoder.encode_queries):
        with pytest.raises(DtypeError, match=r"write \[text\]"):
            call("red fox")
        with pytest.raises(DtypeError, match=r"texts\[1\]: expected a string, got float"):
            call(["red", 0.5])
        with pytest.raises(ArgumentError, match="empty list"):
            call([])
        with pytest.raises(ArgumentError, match="batch_size"):
            call(["red"], batch_size=0)


def test_progress(kind):
    make, _, model = kind
    calls = []
    make(str(model)).encode_documents(TEXTS, batch_size=4, progress=lambda *call: calls.append(call))
    assert [call[1:] for call in calls] == [(0, 6), (4, 6), (6, 6)]


def test_nothing_is_printed(kind, capfd):
    make, _, model = kind
    make(str(model)).encode_documents(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_make(tiny_dense_model, tiny_splade_model):
    dense, splade = make_dense(tiny_dense_model), make_sparse(tiny_splade_model)
    assert make_dense(dense) is dense
    assert make_sparse(splade) is splade
    assert make_dense(dense.settings).settings == dense.settings
    assert make_sparse(splade.settings).settings == splade.settings
    with pytest.raises(ArgumentError, match="dense: expected"):
        make_dense(7)
    with pytest.raises(ArgumentError, match="sparse: expected"):
        make_sparse(7)
