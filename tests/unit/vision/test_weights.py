import json
import re

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
safetensors = pytest.importorskip("safetensors.torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, DtypeError, FormatError, NonFiniteError, VersionError  # noqa: E402
from sparing.vision import load_classifier, mobilenet_v2, resnet8, resnet50, save_classifier, vgg16, vgg16_bn  # noqa: E402


def model(**changes):
    return resnet8(**{"num_classes": 2, "width": 4, **changes})


@pytest.fixture
def saved(tmp_path):
    save_classifier(tmp_path / "m.safetensors", model(), class_names=("cat", "dog"), meta={"accuracy": 0.5})
    return tmp_path / "m.safetensors"


def test_round_trip(saved):
    found = load_classifier(saved)
    assert found.class_names == ("cat", "dog")
    assert found.meta == {"accuracy": 0.5}
    assert found.model.config == model().config
    assert not found.model.training
    expected = model().state_dict()
    got = found.model.state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert all(parameter.requires_grad for parameter in found.model.parameters())
    assert found.model.train()(torch.zeros(2, 3, 8, 8)).shape == (2, 2)


def test_the_file_says_which_architecture(tmp_path):
    first = resnet50(num_classes=3, width=4, stem="cifar")
    save_classifier(tmp_path / "m", first.to(memory_format=torch.channels_last))
    found = load_classifier(tmp_path / "m")
    assert found.model.config == first.config
    assert found.class_names == ()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(found.model(x), first.eval()(x), atol=1e-5)


@pytest.mark.parametrize(
    "first",
    [
        vgg16(num_classes=3, width=1, head="cifar"),
        vgg16_bn(num_classes=3, width=1),
        mobilenet_v2(num_classes=3, width_multiplier=0.1, stem="cifar"),
    ],
    ids=["vgg16", "vgg16_bn", "mobilenet_v2"],
)
def test_every_family_comes_back(first, tmp_path):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first(x)  # changes the means of the norms
    for name in ("m", "again"):
        save_classifier(tmp_path / name, first, class_names=("a", "b", "c"), meta={"accuracy": 0.5})
    assert (tmp_path / "m").read_bytes() == (tmp_path / "again").read_bytes()
    found = load_classifier(tmp_path / "m")
    assert type(found.model) is type(first)
    assert found.model.config == first.config
    assert found.class_names == ("a", "b", "c")
    expected, got = first.state_dict(), found.model.state_dict()
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert torch.equal(found.model(x), first.eval()(x))
    exchanged = load_classifier(tmp_path / "m").model
    exchanged.features[0] = torch.nn.Identity()
    with pytest.raises(ArgumentError, match="exchanged layers"):
        save_classifier(tmp_path / "m", exchanged)


def test_the_same_model_gives_the_same_bytes(saved, tmp_path):
    save_classifier(tmp_path / "again", model(), class_names=["cat", "dog"], meta={"accuracy": 0.5})
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()
    assert set(safetensors.load_file(saved)) == set(model().state_dict())


def test_every_damage_is_found(saved):
    raw = saved.read_bytes()
    for position in [*range(0, 4000, 13), *range(4000, len(raw), len(raw) // 40), len(raw) - 1]:
        saved.write_bytes(raw[:position] + bytes([raw[position] ^ 0x10]) + raw[position + 1 :])
        with pytest.raises((FormatError, NonFiniteError)):
            load_classifier(saved)
    for length in (0, 5, 100, len(raw) - 1):
        saved.write_bytes(raw[:length])
        with pytest.raises(FormatError):
            load_classifier(saved)
    saved.unlink()
    with pytest.raises(FileNotFoundError):
        load_classifier(saved)


def rewrite(path, change_document=lambda d: d, change_tensors=lambda t: t, entry="sparing"):
    with safetensors.safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["sparing"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    changed = change_document(document)
    text = changed if isinstance(changed, str) else json.dumps(changed)
    safetensors.save_file(change_tensors(tensors), path, metadata={entry: text})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: {**d, "version": 2}, VersionError, "version 2, expected 1"),
        (lambda d: {**d, "schema_name": "x"}, FormatError, "not a saved classifier: expected schema_name"),
        (lambda d: "not json", FormatError, "not a saved classifier: Invalid JSON"),
        (lambda d: "[" * 100_000, FormatError, "not a saved classifier: Invalid JSON"),
        (lambda d: [d], FormatError, "not a saved classifier: Input should be an object"),
        (
            lambda d: {**d, "family": "alexnet"},
            FormatError,
            "'family' does not match .* 'resnet', 'vgg', 'mobilenet_v2'",
        ),
        (lambda d: {k: v for k, v in d.items() if k != "family"}, FormatError, "family"),
        (lambda d: {**d, "family": "vgg"}, FormatError, "block"),
        (lambda d: {**d, "family": "vgg", "architecture": {"width": 4}}, FormatError, "not those of"),
        (lambda d: {**d, "family": "mobilenet_v2", "architecture": {"width_multiplier": -1}}, FormatError, "width_mul"),
        (lambda d: {**d, "more": 1}, FormatError, "more"),
        (lambda d: {**d, "meta": {"accuracy": 0.9}}, FormatError, "was altered"),
        (lambda d: {**d, "meta": {"accuracy": float("nan")}}, FormatError, "was altered"),
        (lambda d: {**d, "architecture": {**d["architecture"], "width": 10**9}}, FormatError, "width"),
        (lambda d: {**d, "architecture": {**d["architecture"], "width": 8}}, FormatError, r"expected .* of shape \(8,"),
        (lambda d: {**d, "architecture": {**d["architecture"], "layers": [1, 1]}}, FormatError, "not those of"),
    ],
)
def test_descriptions_that_do_not_fit(saved, change, error, message):
    rewrite(saved, change)
    with pytest.raises(error, match=message):
        load_classifier(saved)


def test_tensors_that_do_not_fit(saved):
    raw = saved.read_bytes()
    for change, message in [
        (lambda t: {k: v for k, v in t.items() if k != "fc.bias"}, "fc.bias"),
        (lambda t: {**t, "odd": torch.zeros(1)}, "odd"),
        (lambda t: {**t, "fc.bias": t["fc.bias"].double()}, "expected F32 of shape (2,), got F64"),
        (lambda t: {**t, "fc.bias": torch.zeros(3)}, "got F32 of shape (3,)"),
        (lambda t: {**t, "fc.bias": torch.zeros(2)}, "altered"),
    ]:
        saved.write_bytes(raw)
        rewrite(saved, change_tensors=change)
        with pytest.raises(FormatError, match=re.escape(message)):
            load_classifier(saved)
    saved.write_bytes(raw)
    rewrite(saved, entry="other")
    with pytest.raises(FormatError, match="not a saved classifier"):
        load_classifier(saved)


def test_exchanged_layers_without_weights_are_refused(saved):
    before = saved.read_bytes()
    smooth, strided, added = model(), model(), model()
    name = next(name for name, module in smooth.named_modules() if isinstance(module, torch.nn.ReLU))
    smooth.set_submodule(name, torch.nn.GELU())
    next(m for m in strided.modules() if isinstance(m, torch.nn.Conv2d)).stride = (2, 2)
    added.get_submodule(name).add_module("more", torch.nn.ReLU())
    for other, message in ((smooth, "GELU"), (strided, "stride"), (added, "expected nothing")):
        with pytest.raises(ArgumentError, match=message):
            save_classifier(saved, other, class_names=("cat", "dog"))
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    "how",
    [
        {"meta": {"accuracy": {9: 0.1, 10: 0.2}}},
        {"meta": {"shape": (1, 2)}},
        {"meta": {"name": "\ud800"}},
        {"class_names": [0, 1]},
        {"class_names": ["cat", "\ud800"]},
    ],
)
def test_what_could_not_be_read_again_is_not_saved(saved, how):
    before = saved.read_bytes()
    with pytest.raises(ArgumentError, match=r"class_names|meta"):
        save_classifier(saved, model(), **how)
    deep = []
    for _ in range(250):
        deep = [deep]
    with pytest.raises(ArgumentError, match="meta"):
        save_classifier(saved, model(), meta={"deep": deep})
    assert saved.read_bytes() == before


def test_what_cannot_be_saved_leaves_the_old_file(saved):
    raw = saved.read_bytes()
    broken = model()
    with torch.no_grad():
        broken.fc.bias[0] = float("nan")
    exchanged = model()
    exchanged.fc = torch.nn.Linear(16, 5)
    for bad, options, error, message in [
        (torch.nn.Linear(1, 1), {}, ArgumentError, "got Linear"),
        (exchanged, {}, ArgumentError, "exchanged layers"),
        (model(), {"class_names": ["a"]}, ArgumentError, "expected 2 names or none, got 1"),
        (model(), {"meta": {"x": float("nan")}}, ArgumentError, "JSON"),
        (model(), {"meta": {"x": torch.zeros(1)}}, ArgumentError, "JSON"),
        (model().half(), {}, DtypeError, "expected torch.float32, got torch.float16"),
        (broken, {}, NonFiniteError, "fc.bias"),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            save_classifier(saved, bad, **options)
    assert saved.read_bytes() == raw
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]
