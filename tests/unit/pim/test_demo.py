"""The demo's part on crossbars, with a short search."""

import importlib
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("matplotlib", reason="needs sparing[plot]")

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_section(monkeypatch, capsys):
    if not EXAMPLES.is_dir():
        pytest.skip("the examples are not beside the tests")
    monkeypatch.syspath_prepend(EXAMPLES)
    run = importlib.import_module("pim_demo.run")
    monkeypatch.setattr(run, "EVALUATIONS", 5000)
    section = run.run()
    printed = capsys.readouterr().out
    assert "30.65 times fewer = 16.00 by bits × 1.92 by epitomes" in " ".join(printed.split())
    assert "<td>336</td>" in section.html
    assert "<td>39.05</td>" in section.html
    assert section.html.count("data:image/png;base64,") == 2
    assert "modelled" in section.html
