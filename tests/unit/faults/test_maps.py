"""Fault maps: the same device again and again, on files that are whole, in the network they were made for."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")

from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, ConfigError, FormatError, ShapeError, VersionError  # noqa: E402
from sparing.faults import (  # noqa: E402
    BitBias,
    BitFlip,
    GaussianNoise,
    StuckAt,
    fixed_point_,
    inject,
    load_fault_map,
)
from sparing.runs import read_artifact, write_artifact  # noqa: E402

STUCK = StuckAt(rate=0.2)
FAULTS = [
    BitBias(p=0.05),
    BitFlip(p=0.02, where="features"),
    StuckAt(rate=0.1, form="bit"),
    GaussianNoise(sigma=0.02),
    GaussianNoise(sigma=0.02, where="features"),
    BitBias(p_m=1e-3) + StuckAt() + BitFlip(p=0.01),
]


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_device_is_the_same_after_saving(network, images, fault, is_fixed, tmp_path):
    model = network()
    if is_fixed:
        fixed_point_(model, images)
    drawn = fault.sample(model, seed=3, draw=2, example=None if is_fixed else images)
    drawn.save(tmp_path / "device.faults")
    loaded = load_fault_map(tmp_path / "device.faults")
    assert (loaded.fault, loaded.seed, loaded.draw, loaded.hits) == (fault, 3, 2, drawn.hits)
    loaded.save(tmp_path / "again.faults")
    assert (tmp_path / "again.faults").read_bytes() == (tmp_path / "device.faults").read_bytes()
    with torch.no_grad():
        clean = model(images)
        found = []
        for device in (drawn, loaded, drawn):
            with inject(model, device):
                found.append(model(images))
                assert torch.equal(model(images), found[-1])
        with inject(model, fault, seed=3, draw=2, transient=False, example=images):
            found.append(model(images))
        assert torch.equal(model(images), clean)
    assert not torch.equal(found[0], clean)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_networks_that_share_weights_otherwise_are_refused():
    untied, tied = (nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9)) for _ in range(2))
    tied[1].weight = tied[0].weight
    for one, other in ((untied, tied), (tied, untied)):
        clean = [layer.weight.clone() for layer in other]
        with (
            pytest.raises(ConfigError, match="or share their weights otherwise"),
            inject(other, STUCK.sample(one, seed=1)),
        ):
            pass
        assert all(torch.equal(layer.weight, before) for layer, before in zip(other, clean, strict=True))
        with inject(one, STUCK.sample(one, seed=1)) as injection:
            assert len(injection.hits) == (1 if one is tied else 2)


@pytest.mark.parametrize(("include", "hit"), [(["1"], True), (["0"], True), (["2"], False)])
def test_a_map_hits_a_shared_weight_by_any_of_its_layers(include, hit):
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 9))
    model[1].weight = model[0].weight
    drawn, clean = STUCK.sample(model, seed=1), model[0].weight.detach().clone()
    with inject(model, drawn, include=include):
        assert torch.equal(model[0].weight, clean) != hit
    assert torch.equal(model[0].weight, clean)


def test_a_map_of_before_ties_were_told_fits(network):
    # Of a network without ties, as saved files have it.
    drawn = STUCK.sample(network(), seed=1)
    assert drawn.fingerprint == "f4ab05eb15212fd90e860fcf764ac12c73b22cb632ebebf11e6a53805c8edc02"


def test_features_are_those_of_every_image(network, images):
    model = network()
    fixed_point_(model, images)
    device = BitBias(p=0.1).sample(model, seed=1)
    with torch.no_grad(), inject(model, device) as injection:
        together = model(images)
        assert injection.hits == {name: 12 * hits for name, hits in device.hits.items()}
        one_by_one = torch.cat([model(image[None]) for image in images])
    assert torch.allclose(together, one_by_one, atol=1e-5)
    with torch.no_grad(), inject(model, device), pytest.raises(ShapeError, match="expected those of the map"):
        model(images[..., :5])
    with torch.no_grad():
        before = model(images)
        with inject(model, device, include=["conv1"]) as injection:
            model(images)
        assert list(injection.hits) == ["conv1"]
        assert torch.equal(model(images), before)


def test_weights_of_a_map_are_those_of_its_seed(network):
    model = network()
    device = StuckAt().sample(model, seed=5, draw=7, include=["conv*"])
    assert list(device.hits) == ["conv1", "conv2", "conv3"]
    with inject(model, device):
        weight = model.conv2.weight.detach().clone()
    with inject(model, StuckAt(), seed=5, draw=7):
        assert torch.equal(model.conv2.weight, weight)


def test_a_map_goes_on_when_weights_change_and_are_rounded(network, images):
    model = network()
    device = (StuckAt() + BitBias(p=0.1)).sample(model, seed=5, example=images)
    with torch.no_grad():
        model.conv1.weight.mul_(0.7)
    with inject(model, device):
        model(images)
    fixed_point_(model, images)
    with inject(model, device) as injection:
        model(images[:1])
    assert injection.hits == device.hits


def test_another_network_is_refused(network, images):
    model = network()
    device = StuckAt().sample(model, seed=1)
    other = network()
    other.fc = nn.Linear(6, 4)
    renamed = network()
    renamed.add_module("last", renamed.fc)
    del renamed.fc
    for bad in (other, renamed):
        with pytest.raises(ConfigError, match="other names or shapes"), inject(bad, device):
            pass
    with pytest.raises(ArgumentError, match="transient"), inject(model, device, transient=True):
        pass
    with pytest.raises(ArgumentError, match="include: no layer"), inject(model, device, include=["x"]):
        pass
    few = BitBias(p=0.1).sample(model, seed=1, example=images)
    with pytest.raises(ArgumentError, match="the map has no faults in 'fc'"), inject(model, few, include=["fc"]):
        pass


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"seed": -1}, ArgumentError, "seed: expected"),
        ({"seed": 1, "draw": -1}, ArgumentError, "draw: expected"),
        ({"seed": 1, "include": ["conv7"]}, ArgumentError, "include: no layer"),
        ({"seed": 1}, ArgumentError, "example: expected"),
    ],
)
def test_bad_arguments(network, how, error, match):
    with pytest.raises(error, match=match):
        (StuckAt() if "include" in how else BitBias(p=0.1)).sample(network(), **how)


def test_damaged_files(network, images, tmp_path):
    path = tmp_path / "device.faults"
    (BitBias(p=0.05) + StuckAt(rate=0.02)).sample(network(), seed=3, example=images).save(path)
    whole = path.read_bytes()
    for length in [0, 7, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            load_fault_map(path)
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(FormatError):
            load_fault_map(path)
    with pytest.raises(FileNotFoundError):
        load_fault_map(tmp_path / "none.faults")


def test_files_with_whole_checksums_and_wrong_content(network, tmp_path):
    path = tmp_path / "device.faults"
    StuckAt(rate=0.3).sample(network(), seed=3, include=["fc"]).save(path)
    artifact = read_artifact(path, schema="sparing.faults.map", versions={1})
    positions, effects = artifact.arrays["0.positions"], artifact.arrays["0.effects"]

    def rewritten(arrays=None, version=1, **meta):
        merged = {name: array for name, array in {**artifact.arrays, **(arrays or {})}.items() if array is not None}
        write_artifact(
            path, schema="sparing.faults.map", version=version, arrays=merged, meta={**artifact.meta, **meta}
        )
        return path

    assert load_fault_map(rewritten()).hits == {"fc": len(effects)}
    entry = artifact.meta["entries"][0]
    for arrays, meta in [
        ({"0.positions": positions + 20}, {}),
        ({"0.positions": positions - 5}, {}),
        ({"0.positions": positions[::-1].copy()}, {}),
        ({"0.positions": positions[:-1]}, {}),
        ({"0.positions": positions.astype("float64")}, {}),
        ({"0.positions": None}, {}),
        ({"0.effects": None}, {}),
        ({"0.effects": effects.astype("float32")}, {}),
        ({}, {"entries": [{**entry, "part": 1}]}),
        ({}, {"entries": [{**entry, "shape": [2, 2]}]}),
        ({}, {"entries": [{**entry, "more": 1}]}),
        ({}, {"fault": {"kind": "stuck-at", "rate": 3}}),
        ({}, {"fault": {"kind": "rust"}}),
        ({}, {"seed": "x"}),
    ]:
        with pytest.raises(FormatError, match="not a fault map"):
            load_fault_map(rewritten(arrays, **meta))
    with pytest.raises(VersionError):
        load_fault_map(rewritten(version=2))


def test_a_map_of_features_behind_a_module_that_is_not_there(images):
    def build(name):
        model = nn.Sequential()
        model.add_module("conv", nn.Conv2d(3, 4, 3))
        model.add_module(name, nn.BatchNorm2d(4))
        return model.eval()

    found = BitBias(p=0.1).sample(build("bn"), seed=1, example=images)
    with pytest.raises(ConfigError, match="'conv' behind 'bn'"), inject(build("norm"), found):
        pass
