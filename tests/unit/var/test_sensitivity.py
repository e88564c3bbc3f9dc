"""What single things cost, measured; kept in a file, and used again only where it fits."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, FormatError, VersionError  # noqa: E402
from sparing.var.divergence import CalibrationConfig, divergence  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, with_options  # noqa: E402
from sparing.var.sensitivity import load_sensitivity, measure_sensitivity  # noqa: E402
from sparing.var.window_search import WindowSearch, balance_windows, search_windows  # noqa: E402

QUICK = CalibrationConfig(taus=(0.9, 0.5), num_images=3, batch_size=2)


@pytest.fixture(scope="module")
def pipe(tiny):
    return tiny.pipeline()


@pytest.fixture(scope="module")
def data(tiny):
    return tiny.known_tokens()


@pytest.fixture(scope="module")
def found(pipe, data):
    return measure_sensitivity(pipe, config=QUICK, data=data)


def plan_for(pipe, **parts):
    return CompressionPlan(model=pipe.transformer.config, weights=weights_fingerprint(pipe.transformer), **parts)


def test_one_number_for_each_thing(pipe, found, data):
    assert np.shape(found.window_divergence) == (2, 2)
    assert np.shape(found.share_divergence) == (2, 6)
    assert [len(layer) for layer in found.windows] == [2, 2]
    assert all(len(scales) == 6 and scales[:3] == (None,) * 3 for layer in found.windows for scales in layer)
    assert (np.array(found.window_divergence)[:, 1] > np.array(found.window_divergence)[:, 0]).all()
    assert (np.array(found.share_divergence) > 0).all()
    plain_plan = plan_for(pipe)
    plans = [
        with_options(plain_plan, windows=found.windows, tau_of={1: 0}),
        with_options(plain_plan, windows=found.windows, tau_of={0: 1}),
        with_options(plain_plan, variant="output", first_of={1: 3}),
    ]
    expected = [found.window_divergence[1][0], found.window_divergence[0][1], found.share_divergence[1][3]]
    assert divergence(pipe, plans, *data, config=QUICK) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("search", ["segment", "balanced"])
@pytest.mark.parametrize("maps", ["average", "union"])
def test_windows_hold_the_share_of_plain_maps(plain, tiny, pipe, data, maps, search):
    changes = {"search": search, "maps": maps, "sharing": None, "floors": (0.1,), "threshold": 0.01}
    config = QUICK.model_copy(update=changes)
    found = measure_sensitivity(pipe, config=config, data=data)
    model, tokens, labels = pipe.transformer.config, *data
    split = np.split(tokens.numpy(), model.scale_starts[1:-1], 1)
    inputs = plain.next_inputs(plain.arrays(pipe.tokenizer.quantize), model.patch_nums, split)
    state, rows = plain.arrays(pipe.transformer), labels.tolist() + [model.num_classes] * len(labels)
    x = plain.embed(state, rows, np.concatenate([inputs, inputs]))
    _, _, scale1, _, shift1, _ = np.moveaxis(plain.modulations(state, 0, rows), 2, 0)
    mask = plain.visible(model.patch_nums, model.num_heads)
    q, k, _ = plain.qkv(state, 0, plain.layer_norm(x) * (1 + scale1) + shift1, model.num_heads)
    weights = plain.attention_map(q, k, mask)
    seen = weights.mean(0) if maps == "average" else weights.max(0)
    starts = model.scale_starts
    seen = {s: torch.from_numpy(seen[:, starts[s] : starts[s + 1], : starts[s + 1]]) for s in (3, 4, 5)}
    for i, tau in enumerate(config.taus):
        rule = WindowSearch(tau, config.threshold, config.floors)
        expected = {s: search_windows(own, model.patch_nums, s, rule) for s, own in seen.items()}
        if search == "balanced":
            expected = balance_windows(seen, model.patch_nums, tau)
        for scale, widths in expected.items():
            assert found.windows[0][i][scale] == tuple(map(tuple, widths.tolist()))
    assert found.share_divergence == ((), ())


def test_maps_do_not_depend_on_batches(pipe, data, found):
    again = measure_sensitivity(pipe, config=QUICK.model_copy(update={"batch_size": 3}), data=data)
    assert again.windows == found.windows
    np.testing.assert_allclose(again.share_divergence, found.share_divergence, rtol=1e-4)


def test_the_same_again(pipe, data, found):
    assert measure_sensitivity(pipe, config=QUICK, data=data) == found
    drawn = [measure_sensitivity(pipe, config=QUICK) for _ in range(2)]
    assert drawn[0] == drawn[1] != found
    assert measure_sensitivity(pipe, config=QUICK.model_copy(update={"seed": 1})) != drawn[0]


@pytest.mark.parametrize("changes", [{"taus": ()}, {"sharing": None}, {"taus": (), "sharing": None}], ids=str)
def test_parts_switched_off(pipe, data, changes):
    found = measure_sensitivity(pipe, config=QUICK.model_copy(update=changes), data=data)
    assert [len(row) for row in found.window_divergence] == [0 if "taus" in changes else 2] * 2
    assert [len(row) for row in found.share_divergence] == [0 if "sharing" in changes else 6] * 2


# --- the file


def test_saved_and_loaded_equal(found, tmp_path):
    found.save(tmp_path / "cache.json")
    assert load_sensitivity(tmp_path / "cache.json") == found
    with pytest.raises(FileNotFoundError):
        load_sensitivity(tmp_path / "none.json")


def measured_again(pipe, cache, *, config=QUICK, data=None):
    """Whether a call measured something."""
    calls = []
    measure_sensitivity(pipe, config=config, data=data, cache=cache, progress=lambda *call: calls.append(call))
    if calls:
        assert calls[-1][1] == calls[-1][2] == len(calls)
    return bool(calls)


def test_a_cache_is_used_only_where_it_fits(tiny, pipe, data, found, tmp_path):
    cache = tmp_path / "cache.json"
    assert measured_again(pipe, cache, data=data)
    assert load_sensitivity(cache) == found
    before = cache.read_bytes()
    assert not measured_again(pipe, cache, data=data)
    assert not measured_again(tiny.pipeline(), cache, data=data), "an equal model"
    assert cache.read_bytes() == before
    other = tiny.pipeline()
    with torch.no_grad():
        other.transformer.blocks[0].ffn.fc1.bias[0] += 1
    others = {
        "weights": {"pipe": other, "data": data},
        "settings of the model": {"pipe": tiny.pipeline(num_heads=4), "data": data},
        "taus": {"pipe": pipe, "data": data, "config": QUICK.model_copy(update={"taus": (0.9,)})},
        "guidance": {"pipe": pipe, "data": data, "config": QUICK.model_copy(update={"guidance_scale": 2.0})},
        "drawn instead": {"pipe": pipe},
        "other tokens": {"pipe": pipe, "data": (data[0].flip(0), data[1])},
        "other labels": {"pipe": pipe, "data": (data[0], data[1].flip(0))},
    }
    for name, given in others.items():
        cache.write_bytes(before)
        assert measured_again(cache=cache, **given), name
        assert not measured_again(cache=cache, **given), name
        assert cache.read_bytes() != before


def test_a_cache_of_another_tokenizer(tiny, pipe, data, tmp_path):
    cache, other = tmp_path / "cache.json", tiny.pipeline()
    assert measured_again(pipe, cache, data=data)
    with torch.no_grad():
        other.tokenizer.quantize.embedding.weight.mul_(2)
    assert weights_fingerprint(other.transformer) == weights_fingerprint(pipe.transformer)
    assert measured_again(other, cache, data=data)


def test_a_file_that_does_not_say_its_images_is_measured_again(pipe, data, found, tmp_path):
    cache = tmp_path / "cache.json"
    fields = json.loads(found.model_dump_json())
    del fields["images"]
    cache.write_text(json.dumps(fields))
    assert measured_again(pipe, cache, data=data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"\xff\xfe",
        lambda text: b"[]",
        lambda text: text.replace(b"sparing.var.sensitivity", b"sparing.var.plan"),
        lambda text: text.replace(b'"depth":2', b'"depth":3'),
        lambda text: text.replace(b'"taus":[0.9,0.5]', b'"taus":[0.9]'),
        lambda text: text.replace(b'"sharing":"output"', b'"sharing":null'),
        lambda text: text.replace(b'"num_heads":2', b'"num_heads":4'),
        lambda text: text.replace(b'"share_divergence":[[', b'"share_divergence":[[1.0,'),
        lambda text: text.replace(b'"share_divergence":[[', b'"share_divergence":[[-'),
        lambda text: text.replace(b'"windows":[[[null,', b'"windows":[[['),
        lambda text: text.replace(b'"windows":[[[null,null,', b'"windows":[[[null,[[1,1]],'),
        lambda text: text.replace(b'"weights":', b'"weight":'),
    ],
)
def test_damaged_files(pipe, data, found, tmp_path, damage):
    cache = tmp_path / "cache.json"
    text = found.model_dump_json().encode()
    cache.write_bytes(damage(text))
    assert cache.read_bytes() != text
    with pytest.raises(FormatError, match=r"cache.json: not a saved sensitivity: \S+"):
        load_sensitivity(cache)
    before = cache.read_bytes()
    with pytest.raises(FormatError, match=r"cache\.json"):
        measure_sensitivity(pipe, config=QUICK, data=data, cache=cache)
    assert cache.read_bytes() == before


def test_another_version(found, tmp_path):
    (tmp_path / "cache.json").write_bytes(found.model_dump_json().encode().replace(b'"version":2', b'"version":3'))
    with pytest.raises(VersionError, match=r"cache\.json: a saved sensitivity in version 3, expected 2"):
        load_sensitivity(tmp_path / "cache.json")


def test_no_folder_for_the_cache_is_found_out_first(pipe, data, tmp_path):
    calls = []
    with pytest.raises(ArgumentError, match=r"cache: no folder .*missing"):
        measure_sensitivity(
            pipe, config=QUICK, data=data, cache=tmp_path / "missing" / "c.json", progress=lambda *c: calls.append(c)
        )
    assert not calls
