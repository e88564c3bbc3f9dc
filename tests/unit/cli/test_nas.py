"""The commands of `sparing nas`, called in this process."""

import json

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[nas]")

from sparing.cli.main import main  # noqa: E402
from sparing.nas import load_genotype, save_genotype  # noqa: E402


@pytest.fixture
def cost(capsys):
    """Runs `sparing nas cost` and gives what it printed."""

    def run(*arguments, code=0):
        assert main(["nas", "cost", *arguments]) == code
        found = capsys.readouterr()
        if code:
            assert found.out == ""
            assert found.err.count("\n") == 1
            return found.err
        return json.loads(found.out) if "--json" in arguments else found.out

    return run


def test_the_published_network_by_name_and_by_file(cost, tmp_path):
    found = cost("w-ftt-net", "--channels", "20", "--json")
    assert (found["num_parameters"], found["num_macs"]) == (2_712_590, 459_687_040)
    save_genotype(tmp_path / "g.json", load_genotype("w-ftt-net"))
    small = cost(str(tmp_path / "g.json"), "--channels", "8", "--cells", "5", "--image-size", "16", "--json")
    assert small["num_macs"] < found["num_macs"] / 20


def test_the_widest_network_within_limits(cost):
    assert cost("w-ftt-net", "--max-params", "2712590", "--json")["channels"] == 20
    found = cost("w-ftt-net", "--max-params", "2712589", "--max-macs", "459687040", "--json")
    assert (found["channels"], found["num_parameters"] < 2_712_590) == (19, True)
    assert "--channels" in cost("w-ftt-net", "--max-macs", "9", "--channels", "3", code=2)
    assert "2 channels" in cost("w-ftt-net", "--max-macs", "9", code=2)
    assert "--max-macs" in cost("resnet20", "--max-macs", "9", code=2)


@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 272_474), ("mobilenetv2", 2_236_682)])
def test_networks_to_compare_with(cost, name, parameters):
    assert cost(name, "--json")["num_parameters"] == parameters


def test_people_get_a_table(cost):
    assert "2,712,590" in cost("w-ftt-net")


def test_errors_are_one_line(cost):
    assert "expected one of w-ftt-net, or a JSON file, got 'resnet'" in cost("resnet", code=2)
    assert "--channels" in cost("resnet20", "--channels", "3", code=2)
    assert "num_cells" in cost("w-ftt-net", "--cells", "2", code=2)
    assert "channels" in cost("w-ftt-net", "--channels", "0", code=2)
