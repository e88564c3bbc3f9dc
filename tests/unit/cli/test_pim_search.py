"""`sparing pim search`, called in this process."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing import pim, vision  # noqa: E402
from sparing.cli.main import main  # noqa: E402


@pytest.fixture
def search(capsys):
    """Runs the command and gives what it printed."""

    def run(*arguments, code=0):
        assert main(["pim", "search", *arguments]) == code
        found = capsys.readouterr()
        if code:
            assert found.out == ""
            return found.err
        return json.loads(found.out) if "--json" in arguments else found.out

    return run


def test_the_published_ratio(search, tmp_path):
    file = tmp_path / "design.json"
    found = search("resnet50", "--num-classes", "10", "--evaluations", "20000", "--out", str(file), "--json")
    assert found["num_crossbars_float"] == 13120
    assert found["max_crossbars"] == 428
    designs = found["designs"]
    uniform, mine = designs["uniform"], designs["found"]
    assert uniform["num_crossbars"] == 336
    assert uniform["ratio"] == pytest.approx(39.05, abs=0.005)
    assert mine["ratio"] >= 30.65
    assert mine["ratio"] == pytest.approx(mine["ratio_bits"] * mine["ratio_epitome"])
    assert mine["ratio_bits"] == 16
    assert found["keeps"]
    assert all(mine[name] <= uniform[name] for name in ("latency_s", "serial_s", "energy_j"))
    assert 0 <= found["exact"]["gap"] < 0.05
    # The saved design is the one that was counted.
    with torch.device("meta"):
        network = pim.trace_layers(vision.resnet50(num_classes=10))
    saved = pim.load_design(file)
    assert pim.num_crossbars(network, saved, pim.CrossbarSize()) == mine["num_crossbars"] <= 428
    assert saved.model_dump(mode="json", exclude_none=True) == found["design"]


def test_no_worse_than_uniform_at_equal_crossbars(search):
    found = search("resnet50", "--num-classes", "10", "--max-crossbars", "336", "--evaluations", "20000", "--json")
    uniform, mine = found["designs"]["uniform"], found["designs"]["found"]
    assert found["keeps"]
    assert mine["num_crossbars"] <= uniform["num_crossbars"]
    assert all(mine[name] <= uniform[name] for name in ("latency_s", "serial_s", "energy_j", "error"))


def test_a_table_for_people(search, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "front.png"
    text = search("resnet18", "--max-crossbars", "300", "--evaluations", "2000", "--plot", str(picture))
    for words in ("dense", "uniform, wrapped", "found", "budget: 300 crossbars of", "above the exact optimum"):
        assert words in text
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet18", "--max-crossbars", "3"], "crossbars"),
        (["resnet18", "--bits", "1"], "bits"),
        (["resnet18", "--evaluations", "0"], "--evaluations: expected at least 1"),
        (["resnet19"], "network: expected one of"),
        (["resnet18", "--out", "missing/d.json"], "--out, --plot: the folder 'missing' does not exist"),
        (["resnet18", "--plot", "missing/d.png"], "--out, --plot: the folder 'missing' does not exist"),
        (["resnet18", "--plot", "d.pdf"], "--plot: expected the ending .png, got 'd.pdf'"),
        (["resnet18", "--out", "."], "--out, --plot: expected a file, got the folder '.'"),
        (["resnet18", "--preset", "abacus"], "abacus"),
        (["resnet18", "--activation-bits", "17"], "activation_bits"),
    ],
)
def test_refusals(arguments, words, search):
    assert words in search(*arguments, code=2)


def test_one_seed_one_design(search):
    runs = [
        search("resnet18", "--max-crossbars", "200", "--evaluations", "3000", "--seed", seed, "--json")["design"]
        for seed in ("5", "5")
    ]
    assert runs[0] == runs[1]


def test_where_evolution_finds_nothing(search):
    found = search("resnet18", "--max-crossbars", "150", "--evaluations", "1", "--json")
    assert found["evolution"]["error"] is found["exact"]["gap"] is None
    assert found["designs"]["found"]["num_crossbars"] <= 150
    text = search("resnet18", "--max-crossbars", "150", "--evaluations", "1")
    assert "1 designs tried; none keeps the limits; error proxy of the exact optimum" in text
