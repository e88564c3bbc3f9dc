"""The commands of `sparing pim`, called in this process."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.cli.main import main  # noqa: E402
from sparing.pim import hardware as hardware_module  # noqa: E402
from sparing.pim.design import LayerDesign, NetworkDesign  # noqa: E402
from sparing.pim.epitome import EpitomeShape  # noqa: E402

FACTORY = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 300, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(300, 7))

def broken():
    raise RuntimeError("no network today")

def number():
    return 3
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(FACTORY)
    return str(path)


@pytest.fixture
def report(capsys):
    """Runs `sparing pim report` and gives what it printed."""

    def run(*arguments, code=0):
        assert main(["pim", "report", *arguments]) == code
        found = capsys.readouterr()
        if code:
            assert found.out == ""
            assert found.err.count("\n") == 1
            return found.err
        return json.loads(found.out) if "--json" in arguments else found.out

    return run


@pytest.mark.parametrize(("name", "count"), [("resnet18", 6592), ("resnet50", 13120), ("resnet101", 22912)])
def test_unquantized_crossbars(name, count, report):
    found = report(name, "--num-classes", "10", "--bits", "32", "--json")
    assert found["num_crossbars"] == count
    assert found["network"] == name
    assert found["input_shape"] == [3, 224, 224]


def test_a_dense_network_in_three_bits_is_the_default(report):
    found = report("resnet18", "--json")
    assert (found["num_crossbars"], found["activation_bits"], found["hardware"]) == (412, 9, "mnsim")
    assert found["ratio"] == {"bits": 16.0, "epitome": 1.0, "total": 16.0}


def test_the_table_splits_the_ratio(report):
    text = report("resnet50", "--epitome", "1024x256", "--wrapped")
    assert "13,120 dense at 32 bits → 336: 39.05x = 16.00 × 2.44 (bits × epitome)" in text
    assert "layer4.2.conv2" in text
    assert "256×112×3×3 w" in text
    assert "16.00 × 9.50" in text


def test_small_networks_get_small_images_and_crossbars(report):
    found = report("resnet20", "--crossbar", "64", "--epitome", "128x64", "--min-weights", "9000", "--json")
    assert (found["input_shape"], found["crossbar"]) == ([3, 32, 32], "64x64")
    assert found["dense"]["num_crossbars"] == 2 * 105
    assert found["num_crossbars"] < 2 * 105
    other = report("resnet20", "--input", "3,16,16", "--crossbar", "64x32", "--preset", "isaac", "--json")
    assert (other["input_shape"], other["crossbar"], other["hardware"]) == ([3, 16, 16], "64x32", "isaac")


def test_a_network_of_ones_own(factory, report):
    found = report(f"{factory}:network", "--input", "3,9,9", "--bits", "5", "--activation-bits", "4", "--json")
    assert [step["name"] for step in found["steps"]] == ["0", "pool:1", "3"]
    assert (found["num_crossbars"], found["activation_bits"]) == (4 * (2 + 2), 4)


def test_what_is_not_mapped_is_named(tmp_path, report):
    path = tmp_path / "model.py"
    path.write_text(
        "from torch import nn\n"
        "def network():\n"
        "    up = nn.ConvTranspose2d(8, 4, 2)\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), up, nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))\n"
    )
    told = "not mapped, not counted: 1, a ConvTranspose2d: only Conv2d and Linear layers are mapped"
    assert told in report(f"{path}:network", "--input", "3,9,9")
    found = report(f"{path}:network", "--input", "3,9,9", "--json")
    assert [layer["name"] for layer in found["skipped"]] == ["1"]


def test_a_saved_design_and_a_chip_of_ones_own(factory, report, tmp_path):
    epitome = LayerDesign(bits=3, epitome=EpitomeShape(out_channels=100, in_channels=3, wrapped=True))
    design = NetworkDesign(layers={"0": epitome}, activation_bits=5)
    design.save(tmp_path / "design.json")
    preset = hardware_module.Path(hardware_module.__file__).parent / "presets" / "mnsim.toml"
    (tmp_path / "chip.toml").write_text(preset.read_text().replace('name = "mnsim"', 'name = "mine"'))
    chip = ["--preset", str(tmp_path / "chip.toml")]
    found = report(f"{factory}:network", "--design", str(tmp_path / "design.json"), *chip, "--json")
    assert (found["num_crossbars"], found["activation_bits"], found["hardware"]) == (2, 5, "mine")
    assert found["off_chip"] == ["3"]
    assert found["steps"][0]["wrapped"] is True
    text = report(f"{factory}:network", "--design", str(tmp_path / "design.json"))
    assert "off the crossbars, not counted: 3" in text
    assert "100×3×3×3 w" in text


def test_a_picture(report, tmp_path):
    pytest.importorskip("matplotlib", reason="needs sparing[plot]")
    path = tmp_path / "report.png"
    report("resnet20", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "expected the ending .png" in report("resnet20", "--plot", str(tmp_path / "report.txt"), code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet51"], "network: expected one of .*resnet50, .*got 'resnet51'"),
        (["resnet18", "--bits", "1"], "bits: expected 2 to 16, or 32"),
        (["resnet18", "--bits", "17"], "bits: expected 2 to 16, or 32"),
        (["resnet18", "--activation-bits", "0"], "activation_bits"),
        (["resnet18", "--crossbar", "0"], "crossbar rows: expected 1 to"),
        (["resnet18", "--crossbar", "big"], "crossbar: expected a size"),
        (["resnet18", "--preset", "mnsim3"], "hardware: expected isaac, mnsim or a TOML file"),
        (["resnet18", "--input", "1,8,8"], "input_shape"),
        (["resnet18", "--wrapped"], "only with --epitome"),
        (["resnet18", "--min-weights", "5"], "only with --epitome"),
        (
            ["resnet20", "--epitome", "256"],
            r"--epitome: no convolution has more than 262,144 weights \(see --min-weights\)",
        ),
        (["resnet18", "--plot", "x.pdf"], "--plot: expected the ending .png, got 'x.pdf'"),
        (["resnet18", "--num-classes", "0"], "num_classes"),
        (["resnet18", "--design", "x.json", "--bits", "3"], "--bits: not with --design"),
        (["resnet18", "--design", "x.json", "--activation-bits", "3"], "--activation-bits: not with --design"),
        (["no.py:network"], "expected a file, got 'no.py'"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, report):
    import re

    assert re.search(message, report(*arguments, code=2))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("network2", "expected a function 'network2' in model.py"),
        ("broken", "model.py failed: RuntimeError: no network today"),
        ("number", "expected number to return a torch.nn.Module, got int"),
        ("", "expected a function '' in model.py"),
    ],
)
def test_bad_factories_are_one_line(function, message, factory, report):
    assert message in report(f"{factory}:{function}", code=2)


def test_a_file_with_dataclasses(tmp_path, report):
    path = tmp_path / "json.py"  # the name of a package, which stays what it is
    path.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "from torch import nn\n"
        "@dataclasses.dataclass\n"
        "class Config:\n"
        "    width: int = 4\n"
        "def network():\n"
        "    return nn.Conv2d(3, Config().width, 3)\n"
    )
    assert report(f"{path}:network", "--input", "3,9,9", "--bits", "32", "--json")["num_crossbars"] == 32


def test_a_file_that_fails_is_one_line(tmp_path, report):
    path = tmp_path / "model.py"
    path.write_text("import nothing_of_that_name\n")
    assert "model.py failed: ModuleNotFoundError" in report(f"{path}:network", code=2)
    assert "--num-classes: expected for a named network only" in report(f"{path}:f", "--num-classes", "3", code=2)


def test_the_help_says_that_a_file_is_run(capsys):
    with pytest.raises(SystemExit):
        main(["pim", "report", "--help"])
    assert "runs it" in " ".join(capsys.readouterr().out.split())
