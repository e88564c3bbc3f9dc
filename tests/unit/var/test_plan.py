"""Plans: saved and loaded equal, refused where they are damaged or contradict themselves."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ConfigError, FormatError, VersionError  # noqa: E402
from sparing.runs.documents import validated  # noqa: E402
from sparing.var.config import VARConfig  # noqa: E402
from sparing.var.plan import CompressionPlan, LinearFormat, PrecisionPlan, SharingPlan, load_plan, with_options  # noqa: E402


@pytest.fixture
def plan(tiny):
    config = tiny.transformer_config()
    return CompressionPlan(
        model=config,
        weights="0123456789abcdef",
        windows=tiny.windows(config),
        sharing=SharingPlan(variant="map", first_scale=(None, 3)),
        precision=PrecisionPlan(
            linears={
                "head": LinearFormat(weight_bits=8, activation_bits=8, real=True),
                "blocks.0.fc2": LinearFormat(weight_bits=4, activation_bits=6, input_format="dual_range"),
            },
            kv_bits=8,
            attention_bits=6,
        ),
        notes={"made": "by hand", "budget": {"kl": 0.01, "none": None}, "losses": [0.1, None, 2e-300]},
    )


def test_saved_and_loaded_equal(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    (tmp_path / "again.json").write_text(plan.to_json(), encoding="utf-8")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_a_plan_that_leaves_out_nothing(plan, tmp_path):
    empty = CompressionPlan(model=plan.model, weights=plan.weights)
    empty.save(tmp_path / "plan.json")
    found = load_plan(tmp_path / "plan.json")
    assert found == empty != plan
    assert found.widths(0, 5) is None
    assert not found.shares(0, 5)


def test_questions_to_a_plan(plan):
    assert [plan.shares(layer, scale) for layer in (0, 1) for scale in (2, 3, 5)] == [False] * 4 + [True] * 2
    assert plan.widths(0, 2) is None
    assert plan.widths(1, 3).tolist() == [list(row) for row in plan.windows[1][3]]
    assert plan.widths(1, 5).shape == (3, 2)


def test_options_only_where_named(tiny):
    model = tiny.transformer_config()
    plan, windows = CompressionPlan(model=model, weights="", precision=PrecisionPlan(kv_bits=8)), tiny.windows(model)
    assert with_options(plan) == plan
    changed = with_options(plan, windows=((), ((None,) * 6, windows[1])), tau_of={1: 1}, variant="map", first_of={0: 2})
    assert changed.windows == ((None,) * 6, windows[1])
    assert changed.sharing == SharingPlan(variant="map", first_scale=(2, None))
    assert changed.precision == plan.precision


def change(path, *where, value):
    fields = json.loads(path.read_text())
    place = fields
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("where", "value", "error", "words"),
    [
        (["version"], 2, VersionError, "a compression plan in version 2, expected 1"),
        (["version"], "1", VersionError, "version '1'"),
        (["schema_name"], "sparing.other", FormatError, "schema_name"),
        (["colour"], "red", FormatError, "colour"),
        (["sharing", "colour"], "red", FormatError, "sharing.colour"),
        (["sharing", "variant"], "both", FormatError, "sharing.variant"),
        (["sharing", "first_scale"], [1], FormatError, "expected 2 layers, got 1"),
        (["sharing", "first_scale"], [1, 6], FormatError, "expected 0 to 5, or null for none, got 6"),
        (["sharing", "first_scale"], [1, -1], FormatError, "sharing.first_scale"),
        (["windows"], [[None] * 6], FormatError, "expected 2 layers of 6 scales"),
        (["windows", 1], [None] * 5, FormatError, "expected 2 layers of 6 scales"),
        (["windows", 0, 3], [[1, 1]], FormatError, r"expected \(2, 2\) widths at scale 3"),
        (["windows", 0, 3], [[1, 1], [1]], FormatError, r"expected \(2, 2\) widths at scale 3"),
        (["windows", 0, 3, 0, 0], -2, FormatError, "windows.0.3.0.0"),
        (["windows", 0, 3, 0, 0], 1.5, FormatError, "windows.0.3.0.0"),
        (["precision", "kv_bits"], 4, FormatError, "precision.kv_bits"),
        (["precision", "decoder_bits"], 4, FormatError, "precision.decoder_bits"),
        (["precision", "linears", "head", "weight_bits"], 4, FormatError, "real: integer products need 8-bit"),
        (["precision", "linears", "head", "weight_bits"], 1, FormatError, "weight_bits"),
        (["precision", "linears", "blocks.2.fc1"], {}, FormatError, "named 'blocks.2.fc1'; .*'head'"),
        (["model", "depth"], 3, FormatError, "expected 3 layers"),
        (["model", "depth"], 0, FormatError, "model.depth"),
        (["weights"], None, FormatError, "weights"),
    ],
)
def test_altered_plans(plan, tmp_path, where, value, error, words):
    file = tmp_path / "plan.json"
    plan.save(file)
    change(file, *where, value=value)
    with pytest.raises(error, match=words) as caught:
        load_plan(file)
    assert str(caught.value).startswith("plan.json: ")


def test_truncated_plans(plan, tmp_path):
    file = tmp_path / "plan.json"
    plan.save(file)
    text = file.read_bytes()
    for length in [0, 1, 2, *range(3, len(text) - 2, 97), len(text) - 3]:
        file.write_bytes(text[:length])
        with pytest.raises(FormatError, match=r"plan.json: not a compression plan"):
            load_plan(file)


@pytest.mark.parametrize("data", [b"[1]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b"{}"])
def test_other_files(tmp_path, data):
    (tmp_path / "plan.json").write_bytes(data)
    with pytest.raises(FormatError, match=r"plan.json: not a compression plan"):
        load_plan(tmp_path / "plan.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("name", ["blocks.0.fc3", "blocks.2.fc1", "blocks.1.attn.proj", "Head", "blocks.0.ada_lin"])
def test_layers_that_the_model_does_not_have(tiny, name):
    form, model = LinearFormat(weight_bits=4), tiny.transformer_config(shared_adaln=True)
    with pytest.raises(ValueError, match=f"precision.linears: no linear .* is named '{name}'; expected .* 'head'"):
        CompressionPlan(model=model, weights="", precision=PrecisionPlan(linears={name: form, "blocks.0.fc1": form}))
    if "ada_lin" in name:
        own = tiny.transformer_config()
        CompressionPlan(model=own, weights="", precision=PrecisionPlan(linears={name: form}))


def test_config_errors_name_field_and_value():
    with pytest.raises(ConfigError, match=r"VARConfig: depth: .*got 'x'; num_heads"):
        validated(VARConfig, {"depth": "x", "embed_dim": 4})
