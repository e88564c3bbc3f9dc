"""Designs no worse than a reference: an answer wherever there is one, which says whether it keeps its promise."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from torch import nn  # noqa: E402

from sparing.errors import ArgumentError  # noqa: E402
from sparing.pim.crossbar import CrossbarSize  # noqa: E402
from sparing.pim.design import uniform_design  # noqa: E402
from sparing.pim.hardware import load_hardware  # noqa: E402
from sparing.pim.layers import trace_layers  # noqa: E402
from sparing.pim.matching import match_design  # noqa: E402


@pytest.fixture(scope="module")
def match():
    convs = [nn.Conv2d(3, 64, 5, padding=1), nn.Conv2d(64, 32, 3, padding=1), nn.Conv2d(32, 96, 3, padding=1)]
    network = trace_layers(nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)), (3, 32, 32))
    hardware = load_hardware("mnsim").with_crossbar(CrossbarSize(64, 64))
    reference = uniform_design(
        network, hardware.crossbar, bits=3, max_rows=128, max_cols=64, min_weights=0, wrapped=True
    )

    def run(max_crossbars, evaluations):
        return match_design(
            network, hardware, max_crossbars=max_crossbars, reference=reference, evaluations=evaluations
        )

    return run


def test_a_part_of_the_budget_that_holds_no_design_ends_the_search(match):
    found = match(15, 5000)
    assert found.cost.num_crossbars <= 15
    assert found.evaluations == 3 * 5000  # of 15 and 14 crossbars, and for nothing of 13
    assert found.bound <= found.found_error * (1 + 1e-9)
    assert found.keeps == all(
        getattr(found.cost, name) <= getattr(found.reference, name) for name in ("latency_s", "serial_s", "energy_j")
    )


def test_where_evolution_finds_nothing_the_exact_design_is_the_answer(match):
    found = match(15, 1)
    assert found.found_error is found.gap is None
    assert found.cost.num_crossbars <= 15
    assert found.error == pytest.approx(found.bound)


def test_refusals_name_the_budget_that_was_given(match):
    with pytest.raises(ArgumentError, match=r"limits: crossbars: expected at least .*, got 3"):
        match(3, 100)
