"""The commands of `sparing faults`, called in this process on networks with random weights."""

import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
images_of = pytest.importorskip("PIL.Image", reason="needs sparing[vision]")

from sparing.cli import render  # noqa: E402
from sparing.cli.faults_options import open_fault  # noqa: E402
from sparing.cli.main import main  # noqa: E402
from sparing.faults.campaign_result import load_campaign_result  # noqa: E402
from sparing.vision import ResNetConfig, save_classifier  # noqa: E402
from sparing.vision.resnet import ResNet  # noqa: E402

FACTORY = """
import torch
from torch import nn

def network(classes=2, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes))

def other():
    return network(seed=1)

def of_digits():
    return network(10)

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.reads, self.head = nn.LSTM(24, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.reads(x.flatten(2).mT.reshape(len(x), 8, 24))[0].mean(1))

def for_other_sizes():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 2))
"""
FEW = ["--min-draws", "2", "--max-draws", "3", "--half-width", "0", "--size", "8", "--batch-size", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cold", "warm")):
        (folder / name).mkdir()
        for i in range(12):
            pixels = rng.integers(0, 128, (8, 8, 3)).astype(np.uint8)
            pixels[..., 2 * number] += 100
            images_of.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "model.py").write_text(FACTORY)
    return f"{tmp_path / 'model.py'}:network"


@pytest.fixture
def faults(capsys):
    """Runs `sparing faults` and gives what it printed."""

    def run(*arguments, code=0):
        assert main(["faults", *map(str, arguments)]) == code
        found = capsys.readouterr()
        if code:
            assert found.out == ""
            assert found.err.count("\n") == 1
            return found.err
        return json.loads(found.out) if "--json" in arguments else found.out

    return run


SWEEP = ["--fault", "stuck-at:form=bit", "--rates", "0,.05,.3"]


class TestSweep:
    def test_json(self, faults, factory, data):
        found = faults("sweep", factory, "--data", data, *SWEEP, *FEW, "--json")
        assert [point["label"] for point in found["points"]] == ["0", "0.05", "0.3"]
        assert [point["num_draws"] for point in found["points"]] == [0, 3, 3]
        assert (found["model"], found["kind"], found["num_images"]) == ("model", "rates", 12)
        assert found["float_accuracy"] is not None
        assert found["fault"]["form"] == "bit"
        assert found["config"]["half_width"] is None

    def test_table(self, faults, factory, data):
        text = faults("sweep", factory, "--data", data, *SWEEP, *FEW, "--images", "5")
        assert re.search(r"0\.3 +\d+\.\d\d +\d+\.\d\d – \d+\.\d\d", text)
        assert "5 images" in text
        assert "in 8-bit fixed point" in text

    def test_float(self, faults, factory, data):
        found = faults("sweep", factory, "--data", data, *SWEEP, *FEW, "--float", "--json")
        assert found["float_accuracy"] is None
        fixed = faults("sweep", factory, "--data", data, *SWEEP, *FEW, "--json")
        assert fixed["identity"]["model"]["layout_sha256"] != found["identity"]["model"]["layout_sha256"]
        assert fixed["identity"]["data"] == found["identity"]["data"]

    def test_a_saved_classifier(self, faults, data, tmp_path):
        config = ResNetConfig(layers=(1,), width=4, stem="cifar", num_classes=2)
        torch.manual_seed(0)
        save_classifier(tmp_path / "net.safetensors", ResNet(config), class_names=("cold", "warm"))
        saved = tmp_path / "net.safetensors"
        found = faults("sweep", saved, "--data", data, "--fault", "bit-bias", "--rates", "1e-3", *FEW, "--json")
        assert found["model"] == "net.safetensors"
        assert found["points"][0]["mean_hits"] > 0
        assert "recalibration" not in found["identity"]
        command = ["sweep", saved, "--data", data, *SWEEP, *FEW, "--recalibrate", "--json"]
        again = faults(*command, "--batch-size", "4", "--calibration-images", "5")
        assert again["identity"]["recalibration"]["batches"] == [5]
        assert again["points"][2]["accuracies"] != faults(*command[:-2], "--json")["points"][2]["accuracies"]
        save_classifier(saved, ResNet(config), class_names=("a", "b"))
        error = faults("sweep", saved, "--data", data, *SWEEP, *FEW, code=2)
        assert "--data: expected the model's classes a, b, ..., got cold, warm" in error

    def test_a_folder_is_resumed_only_if_asked(self, faults, factory, data, tmp_path):
        out = tmp_path / "out"
        command = ["sweep", factory, "--data", data, *SWEEP, *FEW, "--out", out]
        found = faults(*command, "--json")
        before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "record.json"}
        assert set(before) == {"campaign.json", "clean.sparing", "draws.jsonl", "result.json"}
        assert [p["mean"] for p in found["points"]] == [p.mean for p in load_campaign_result(out).points]
        assert "holds a campaign already: add --resume" in faults(*command, code=2)
        (out / "draws.jsonl").write_bytes(before["draws.jsonl"][:100])
        assert faults(*command, "--resume", "--json") == found
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "record.json"} == before
        error = faults(*command, "--resume", "--seed", "1", code=2)
        assert "holds another campaign: config.seed: saved 0, now 1" in error
        record = json.loads((out / "record.json").read_text())
        assert record["record"]["data"]["num_images"] == 12

    def test_interrupted(self, factory, data, tmp_path, capsys, monkeypatch):
        def stop(stage, done, total):
            if (stage, done) == ("draws", 2):
                raise KeyboardInterrupt

        class Bars:
            def __enter__(self):
                return stop

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(render, "progress_bars", Bars)
        command = ["faults", "sweep", factory, "--data", data, *SWEEP, *FEW]
        assert main([*command, "--out", str(tmp_path / "out")]) == 130
        assert "draws so far are kept: the same command with --resume" in capsys.readouterr().err
        assert (tmp_path / "out" / "draws.jsonl").read_bytes().count(b"\n") == 2
        assert main(command) == 130

    def test_a_picture(self, faults, factory, data, tmp_path):
        pytest.importorskip("matplotlib", reason="needs sparing[plot]")
        faults("sweep", factory, "--data", data, *SWEEP, *FEW, "--plot", tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        error = faults("sweep", factory, "--data", data, *SWEEP, *FEW, "--plot", tmp_path / "a.pdf", code=2)
        assert "expected the ending .png" in error

    def test_digits(self, faults, factory):
        pytest.importorskip("sklearn", reason="scikit-learn brings the digits")
        found = faults(
            "sweep",
            factory.replace(":network", ":of_digits"),
            "--data",
            "digits",
            "--images",
            "40",
            *SWEEP,
            *FEW,
            "--json",
        )
        assert found["num_images"] == 40
        assert found["identity"]["data"]["image_shape"] == [3, 8, 8]
        assert "scikit-learn" in found["data"]


class TestVulnerability:
    def test_layers(self, faults, factory, data, tmp_path):
        out = tmp_path / "out"
        found = faults(
            "layers", factory, "--data", data, "--fault", "stuck-at:rate=.3,form=bit", *FEW, "--out", out, "--json"
        )
        assert [point["label"] for point in found["points"]] == ["0", "4"]
        assert load_campaign_result(out).kind == "sites"

    def test_bits(self, faults, factory, data, tmp_path):
        pytest.importorskip("matplotlib", reason="needs sparing[plot]")
        plot = ["--plot", tmp_path / "a.png"]
        text = faults("bits", factory, "--data", data, "--fault", "bit-flip:p=.05", *FEW, *plot)
        assert "bit 7 (sign)" in text
        assert (tmp_path / "a.png").exists()
        error = faults("bits", factory, "--data", data, "--fault", "gaussian:sigma=.1", *FEW, code=2)
        assert "expected bit-flip, bit-bias, or stuck-at of form=bit, got gaussian" in error
        error = faults("bits", factory, "--data", data, "--fault", "bit-flip", *FEW, code=2)
        assert "p: Field required" in error


def test_compare(faults, factory, data, tmp_path):
    for name in ("network", "other"):
        model = factory.replace("network", name)
        faults("sweep", model, "--data", data, *SWEEP, *FEW, "--out", tmp_path / name)
    found = faults("compare", tmp_path / "network", tmp_path / "other", "--json")
    assert [row["rate"] for row in found["differences"]] == [0, 0.05, 0.3]
    assert "network minus other" in faults("compare", tmp_path / "network", tmp_path / "other")
    assert "no such file" in faults("compare", tmp_path / "x", tmp_path / "other", code=2).lower()
    part = faults("sweep", factory, "--data", data, *SWEEP, *FEW, "--include", "0", "--out", tmp_path / "part")
    assert "images; only 0; " in part
    assert "include: first ('0',), second None" in faults("compare", tmp_path / "part", tmp_path / "other", code=2)


@pytest.mark.parametrize(
    ("text", "kind", "rate"),
    [
        ("bit-bias", "p_m", 0),
        ("bit-bias:rate=rounded", "p_m", 0),
        ("bit-bias:p=.1", "p", 0.1),
        ("gaussian:where=features", "sigma", 0),
        ("gaussian + bit-flip:p=.1", "sigma", 0),
        ("stuck-at:form=bit", "rate", 0.08),
    ],
)
def test_a_rate_may_be_left_out(text, kind, rate):
    first = open_fault(text, any_rate=True).parts[0]
    assert (first.rate_name, getattr(first, kind)) == (kind, rate)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rates", "0,1.5"], "rate: .*less than or equal to 1, got 1.5"),
        (["--rates", "-.1"], "rate: .*greater than or equal to 0"),
        (["--rates", "none"], "--rates: expected one or more"),
        (["--fault", "stuck"], "fault 'stuck'"),
        (["--fault", "stuck-at:form"], "fault: expected kind:field=value"),
        (["--fault", "stuck-at:size=3"], "size: Extra inputs"),
        (["--include", "9"], "include: no layer is called '9'; there are '0', '4'"),
        (["--images", "0"], "--images: expected at least 1, got 0"),
        (["--workers", "0"], "--workers: expected at least 1"),
        (["--min-draws", "1"], "config: min_draws"),
        (["--min-draws", "9"], "max_draws: expected at least min_draws"),
        (["--resume"], "--resume: expected with --out"),
        (["--data", "nowhere"], "nowhere"),
        (["--device", "nothing"], "--device"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, faults, factory, data):
    command = ["sweep", factory, "--data", data, *SWEEP, *FEW]
    assert re.search(message, faults(*command, *arguments, code=2))


def test_bad_networks_are_one_line(faults, factory, data, tmp_path):
    rest = ["--data", data, *SWEEP, *FEW]
    assert "does not take images of (3, 8, 8)" in faults(
        "sweep", factory.replace(":network", ":for_other_sizes"), *rest, code=2
    )
    assert "expected 2 logits" in faults("sweep", factory.replace(":network", ":of_digits"), *rest, code=2)
    assert "model: expected a function 'nothing' in model.py" in faults(
        "sweep", factory.replace(":network", ":nothing"), *rest, code=2
    )
    assert "no such file" in faults("sweep", tmp_path / "no.safetensors", *rest, code=2)


@pytest.mark.filterwarnings("always::UserWarning")
def test_weights_that_no_fault_reaches_are_told_in_one_line(data, factory, capsys):
    model = factory.replace("network", "Recurrent")
    assert main(["faults", "sweep", model, "--data", data, "--fault", "stuck-at", "--rates", "0,.1", *FEW]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "LSTM" in line]
    assert line.startswith("sparing: warning: model: faults reach 1.54 % of its weights")
