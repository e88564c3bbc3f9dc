"""`sparing nas search` and `train` from end to end on a few digits, and their one-line errors."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("sklearn", reason="needs scikit-learn for the digits")

from sparing.cli.main import main  # noqa: E402

SMALL = ("--data", "digits", "--images", "100", "--channels", "2", "--epochs", "1")


def run(capsys, *arguments):
    code = main(["nas", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_search_train_and_what_they_leave(capsys, tmp_path):
    pytest.importorskip("optuna", reason="needs sparing[nas]")
    folder, trained = tmp_path / "s", tmp_path / "t"
    search = ("search", "--fault", "bit-bias", "--p-m", "1e-3", *SMALL, "--evaluations", "4", "--out", folder)
    code, out, err = run(capsys, *search, "--optuna", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["settings"]["fault"]["p_m"] == 1e-3
    assert answer["settings"]["space"] == "feature"
    assert answer["num_evaluated"] == 4
    assert {row["number"] for row in answer["front"]} <= set(range(4))
    names = {"archive.jsonl", "genotype.json", "record.json", "result.json", "trials.journal"}
    assert names <= {p.name for p in folder.iterdir()}

    code, _, err = run(capsys, *search)
    assert code == 2
    assert "--resume" in err
    code, _, err = run(capsys, *search, "--seed", "1", "--resume")
    assert code == 2
    assert "settings.seed: saved 0, now 1" in err
    code, out, _ = run(capsys, *search, "--resume")
    assert code == 0
    assert "the best reward first" in out

    code, out, err = run(capsys, "train", folder, *SMALL, "--draws", "2", "--out", trained, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert len(answer["faulty_accuracies"]) == 2
    assert answer["loss_share"] == 0.7
    assert {p.split("/")[-1] for p in answer["files"]} == {
        "genotype.json",
        "network.py",
        "network.safetensors",
        "result.json",
    }
    program = "import network, torch; print(tuple(network.load()(torch.zeros(2, 3, 8, 8)).shape))"
    done = subprocess.run([sys.executable, "-c", program], cwd=trained, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 10)"


def test_halving_says_how_wide_the_network_is(capsys, tmp_path):
    search = ("search", "--mode", "halving", "--rounds", "2:.5,1:1", "--max-macs", "120000", "--p-m", "2e-4")
    search += ("--fault", "bit-bias", "--data", "digits", "--images", "200", "--out", tmp_path)
    search += ("--weight-limit", "0.25")
    code, out, err = run(capsys, *search, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["num_evaluated"] == 2
    assert answer["settings"]["halving"]["training"]["flip"] is False
    assert answer["chosen"]["num_macs"] <= 120_000
    code, out, _ = run(capsys, *search, "--resume")
    assert code == 0
    assert f"cells of {answer['chosen']['channels']} channels" in out
    # The training takes over what the search was about.
    few = ("--data", "digits", "--images", "100", "--epochs", "1", "--draws", "1")
    code, out, _ = run(capsys, "train", tmp_path, *few, "--out", tmp_path / "t", "--json")
    trained = json.loads(out)
    assert trained["num_macs"] == answer["chosen"]["num_macs"]
    assert trained["fault"] == answer["settings"]["fault"]
    assert trained["weight_limit"] == answer["settings"]["halving"]["weight_limit"] == 0.25
    other = ("--channels", "2", "--p-m", "0.5", "--weight-limit", "1")
    code, out, _ = run(capsys, "train", tmp_path, *few, *other, "--out", tmp_path / "u", "--json")
    assert json.loads(out)["weight_limit"] == 1
    assert json.loads(out)["num_macs"] < answer["chosen"]["num_macs"]
    assert json.loads(out)["fault"]["p_m"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("search", "--mode", "halving", *SMALL), "--epochs"),
        (("search", "--mode", "halving", "--max-macs", "9", *SMALL[:-2]), "--channels"),
        (("search", *SMALL, "--rounds", "2:1"), "--rounds"),
        (("search", *SMALL, "--weight-limit", "0.1"), "--weight-limit: --mode evolution"),
        (("search", "--fault", "stuck-at:form=bit", "--p-m", "1e-4", *SMALL), "--p-m"),
        (("search", "--fault", "rust", *SMALL), "rust"),
        (("search", *SMALL, "--max-macs", "10"), "max_macs"),
        (("search", *SMALL, "--workers", "0"), "--workers"),
        (("search", *SMALL, "--image-size", "12"), "multiple of 8 for digits, got 12"),
        (("search", *SMALL, "--loss-share", "2"), "supernet.loss_share"),
        (("train", "w-ftt-net", *SMALL, "--draws", "0"), "draws"),
        (("train", "w-ftt-net", *SMALL, "--weight-limit", "0"), "weight_limit"),
        (("train", "nothing.json", *SMALL), "genotype"),
    ],
)
def test_one_line_says_what_is_wrong(capsys, tmp_path, arguments, expected):
    code, out, err = run(capsys, *arguments, "--out", tmp_path / "x")
    assert (code, out) == (2, "")
    assert err.startswith("sparing: error: ")
    assert err.count("\n") == 1
    assert expected in err


@pytest.mark.parametrize("path", ["x.jpg", "missing/x.png"])
def test_a_picture_that_cannot_be_drawn_is_refused_first(capsys, tmp_path, path):
    code, out, err = run(capsys, "search", *SMALL, "--out", tmp_path / "x", "--plot", tmp_path / path)
    assert (code, out) == (2, "")
    assert "path: " in err
    assert not (tmp_path / "x").exists()
