"""The walkthrough of sparing.pim runs from nothing to the simulated chip, and what it says holds together."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("PIL", reason="needs sparing[vision]")
pytest.importorskip("matplotlib", reason="needs sparing[plot]")

SCRIPT = Path(__file__).parents[2] / "examples" / "pim" / "walkthrough.py"


@pytest.fixture(scope="module")
def said():
    if not SCRIPT.is_file():
        pytest.skip("the examples are not beside the tests")
    ran = subprocess.run([sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return ran.stdout


def numbers(said, line):
    """Each number of each line that starts so."""
    found = [text for text in said.splitlines() if text.strip().startswith(line)]
    assert found, f"no line starts with {line!r}"
    values = [text.partition(f"{line}")[2].replace(",", "") for text in found]
    return [[float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e[+-]\d+)?", value)] for value in values]


def test_crossbars_fall_by_bits_and_by_epitomes_within_the_budget(said):
    (floats, dense), (floats_again, designed) = numbers(said, "crossbars of 64x64:")
    assert floats == floats_again == 16 * dense
    budget = numbers(said, "budget:")[0][0]
    assert designed <= budget < dense / 2
    (*_, before), (bits, epitomes, after) = numbers(said, "times fewer, bits × epitomes:")
    assert before == 16
    assert bits == 16
    assert epitomes == pytest.approx(dense / designed, abs=0.01)
    assert after == pytest.approx(floats / designed, abs=0.01)
    assert numbers(said, "crossbars:") == [[designed, designed]]


def test_evolution_does_not_beat_the_exact_optimum(said):
    evolved, best = numbers(said, "evolution,")[0], numbers(said, "exact optimum:")[0]
    assert best[-1] <= evolved[-1]


def test_ideal_adc_equals_the_quantized_model(said):
    _, error = numbers(said, "ideal ADC equals the quantized model:")[0]
    assert error < 0.02
    assert "whole integer products:       equal in every bit" in said
