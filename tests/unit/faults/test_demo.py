"""The demo's part on faults, with short trainings."""

import importlib
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("matplotlib", reason="needs sparing[plot]")
pytest.importorskip("sklearn", reason="needs scikit-learn")

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def demo(monkeypatch):
    """Imports modules of the demo as it does itself."""
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not beside the tests")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def test_the_section(demo, monkeypatch, capsys):
    training, search, run = (demo(f"faults_demo.{name}") for name in ("training", "search", "run"))
    for module, name, value in (
        (training, "EPOCHS", 1),
        (training, "DRAWS", 2),
        (search, "EPOCHS", 1),
        (search, "CANDIDATES", 4),
        (search, "POPULATION", 4),
        (search, "DRAWS", 2),
        (search, "NEW_DRAWS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    train, test = training.digits(lambda *_: None)
    monkeypatch.setattr(run, "digits", lambda _: (train.subset(range(320)), test.subset(range(90))))
    section = run.run()
    printed = " ".join(capsys.readouterr().out.split())
    assert "faults of weights" in printed
    assert "faults of features" in printed
    assert re.search(r"normalizations measured anew on the chip bring the plain network to \d+\.\d%", printed)
    assert section.html.count("data:image/png;base64,") == 3
    assert "simulated" in section.html
    assert "8×8" in section.html
    assert "90 test images" in section.html
    assert section.html.count("<td>chosen</td>") == 1


@pytest.mark.parametrize(
    ("ends", "word"), [((0.1, 0.3), "helps"), ((-0.1, 0.3), "makes no clear"), ((-0.3, -0.1), "harms")]
)
def test_verdict_claims_a_gain_only_where_the_interval_does(demo, ends, word):
    from sparing.faults import Interval, PairedDifference

    training, page = demo("faults_demo.training"), demo("faults_demo.page")
    one = PairedDifference(
        rate=0.08, num_draws=5, mean=sum(ends) / 2, sd=0.1, interval=Interval(*ends), correlation=None
    )
    found = training.Hardened(training.KINDS[0], None, None, (), (one,), (1.0, 2.0))
    assert page.verdict(found).startswith(word)


def test_an_architecture_of_the_front_is_beaten_by_none(demo, monkeypatch):
    search, training = demo("faults_demo.search"), demo("faults_demo.training")
    for name, value in {"EPOCHS": 1, "CANDIDATES": 4, "POPULATION": 4, "DRAWS": 2, "NEW_DRAWS": 2}.items():
        monkeypatch.setattr(search, name, value)
    train, test = training.digits(lambda *_: None)
    found = search.search(train.subset(range(160)), test.subset(range(50)), lambda *_: None)
    assert found.chosen in found.front
    for one in found.front:
        for other in found.candidates:
            no_worse = all(a <= b for a, b in zip(other.costs, one.costs, strict=True))
            assert not no_worse or other.costs == one.costs
