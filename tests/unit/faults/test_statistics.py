"""Intervals of means over draws: against tables, against simulation, and where draws do not vary at all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError
from sparing.faults.statistics import (
    Interval,
    enough_draws,
    mean_interval,
    paired_difference,
    share_interval,
)

RULE = {"min_draws": 3, "max_draws": 8, "half_width": 0.05}


def test_by_hand():
    # Mean 3, SD sqrt(2.5), t of 4 degrees of freedom 2.776: a table's.
    found = mean_interval([1, 2, 3, 4, 5])
    assert found.low == pytest.approx(3 - 2.7764451 * np.sqrt(2.5 / 5), abs=1e-6)
    assert found.high == pytest.approx(6 - found.low)
    assert mean_interval([0, 1], confidence=0.9).half_width == pytest.approx(6.3137515 / 2, abs=1e-6)


def test_equal_values_have_no_width():
    assert mean_interval([0.25] * 5) == Interval(0.25, 0.25)


@pytest.mark.parametrize("count", [5, 20])
def test_the_interval_holds_as_often_as_it_says(count):
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(4000):
        found = mean_interval(rng.normal(0.6, 0.1, count), confidence=0.9)
        inside += found.low <= 0.6 <= found.high
    # Three standard errors of a share of 0.9.
    assert abs(inside / 4000 - 0.9) < 3 * np.sqrt(0.09 / 4000)


def test_stopping_costs_little_of_it():
    """Normal draws, ten at least, stopped by what was seen: 95 % becomes not less than 92 %."""
    rng = np.random.default_rng(1)
    inside, used = 0, []
    for _ in range(600):
        values = []
        while not enough_draws(values, min_draws=10, max_draws=200, half_width=0.02):
            values.append(rng.normal(0.6, 0.06))
        found = mean_interval(values)
        inside += found.low <= 0.6 <= found.high
        used.append(len(values))
    assert 0.92 <= inside / 600 <= 0.98
    # (1.96 · 0.06 / 0.02)² ≈ 35.
    assert 28 <= np.mean(used) <= 42


@pytest.mark.parametrize("rate", [3e-4, 3e-3, 0.03])
def test_intervals_hold_for_faults_of_a_real_network_rare_or_not(rate):
    """Student's t alone, stopped by its width, holds in 37, 74 and 95 % of the campaigns here."""
    torch = pytest.importorskip("torch")
    from sparing.faults import BitFlip, inject

    model = torch.nn.Linear(8, 4)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(100, 8, generator=generator)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 8, generator=generator))
        labels = (model(images) + torch.randn(100, 4, generator=generator)).argmax(1)
        draws = []
        for draw in range(1500):
            with inject(model, BitFlip(p=rate), draw=draw):
                draws.append(float((model(images).argmax(1) == labels).double().mean()))
    rng, many = np.random.default_rng(0), np.array(draws)
    rule = {"min_draws": 10, "max_draws": 100, "half_width": 0.01}
    fixed, stopped = 0, 0
    for _ in range(200):
        values = many[rng.integers(0, len(many), 100)].tolist()
        found = share_interval(values[:20])
        fixed += found.low <= many.mean() <= found.high
        until = next(n for n in (10, 15, 25, 50, 75, 100) if enough_draws(values[:n], **rule))
        found = share_interval(values[:until])
        stopped += found.low <= many.mean() <= found.high
    # 95 %, less what skewed draws and looking take, and what 200 campaigns leave open.
    assert min(fixed, stopped) >= 0.88 * 200


class TestShares:
    def test_cut_to_shares(self):
        assert share_interval([0.0, 0.05, 0.1]).low == 0
        assert share_interval([1.0, 0.95, 0.9]).high == 1

    def test_nothing_seen_is_not_nothing_possible(self):
        # Two-sided 95 % of 0 of n: 1 − 0.025^(1/n), the exact bound of Clopper and Pearson.
        assert share_interval([0.0] * 10) == Interval(0.0, pytest.approx(0.3084971, abs=1e-6))
        assert share_interval([1.0] * 10) == Interval(pytest.approx(1 - 0.3084971, abs=1e-6), 1.0)

    def test_equal_draws_reach_out_to_both_ends(self):
        found = share_interval([0.9] * 10)
        assert found.low == pytest.approx(0.9 * 0.025**0.1)
        assert found.high == pytest.approx(1 - 0.1 * 0.025**0.1)
        assert share_interval([0.0] * 10, lowest=-1.0).low == pytest.approx(-0.3084971, abs=1e-6)

    def test_two_values_have_the_interval_of_clopper_and_pearson(self):
        from scipy.stats import beta

        found = share_interval([0.0] * 36 + [1.0] * 4)
        assert found.low == pytest.approx(beta.ppf(0.025, 4, 37), rel=0.03)
        assert found.high == pytest.approx(beta.ppf(0.975, 5, 36), rel=0.03)

    def test_student_where_draws_vary(self):
        values = [0.9, 0.9, 0.8, 0.7, 0.85]
        assert share_interval(values) == mean_interval(values)

    def test_mirrored(self):
        values = np.array([0.9] * 20 + [0.5, 0.85])
        one, other = share_interval(values), share_interval(1 - values)
        assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-9)

    @given(st.lists(st.sampled_from([0, 0.2, 1]) | st.floats(0, 1), min_size=2, max_size=30), st.floats(0.5, 0.999))
    def test_around_the_mean_and_within_shares(self, values, confidence):
        found = share_interval(values, confidence=confidence)
        assert 0 <= found.low <= np.mean(values) + 1e-9
        assert np.mean(values) - 1e-9 <= found.high <= 1


class TestStopping:
    def test_not_before_the_least(self):
        assert not enough_draws([0.5, 0.5], **RULE)
        assert enough_draws([0.49, 0.5, 0.51], **RULE)

    def test_not_while_all_are_equal_and_another_may_come(self):
        rule = {"min_draws": 2, "max_draws": 1000, "half_width": 0.05}
        draws = next(n for n in range(2, 1000) if enough_draws([0.9] * n, **rule))
        # 1 − 0.025^(1/n) = 0.1
        assert draws == 36

    def test_not_after_the_most(self):
        wild = [0.0, 1.0] * 4
        assert not enough_draws(wild[:7], **RULE)
        assert enough_draws(wild, **RULE)

    def test_at_the_width(self):
        values = [0.40, 0.50, 0.60]
        width = mean_interval(values).half_width
        assert enough_draws(values, min_draws=2, max_draws=9, half_width=width)
        assert not enough_draws(values, min_draws=2, max_draws=9, half_width=width * 0.999)

    def test_never_by_width_if_none(self):
        rule = {**RULE, "half_width": None}
        assert [enough_draws([0.5] * n, **rule) for n in (3, 7, 8)] == [False, False, True]


class TestPaired:
    def test_what_both_suffer_falls_out(self):
        rng = np.random.default_rng(2)
        common = rng.normal(0.5, 0.1, 20)
        first, second = common + 0.02, common + rng.normal(0, 0.001, 20)
        found = paired_difference(first, second, rate=0.1)
        assert found.interval.low > 0.019
        assert found.interval.half_width < mean_interval(first).half_width / 20
        assert (found.num_draws, found.rate) == (20, 0.1)
        assert found.correlation > 0.99
        assert found.mean == pytest.approx(np.mean(first - second))

    def test_equal_differences_may_still_change(self):
        found = paired_difference([0.07] * 10, [0.93] * 10, rate=0)
        assert found.interval.low == pytest.approx(-1 + 0.14 * 0.025**0.1)
        assert found.interval.high == pytest.approx(1 - 1.86 * 0.025**0.1)

    def test_common_draws_only(self):
        found = paired_difference([0.5, 0.7, 0.9], [0.4, 0.6], rate=0)
        assert (found.num_draws, found.mean) == (2, pytest.approx(0.1))

    def test_one_that_never_varies(self):
        assert paired_difference([0.5, 0.5], [0.4, 0.6], rate=0).correlation is None

    def test_the_other_way_round(self):
        a, b = [0.5, 0.7, 0.6], [0.4, 0.8, 0.2]
        one, other = paired_difference(a, b, rate=0), paired_difference(b, a, rate=0)
        assert one.mean == -other.mean
        assert one.interval == Interval(-other.interval.high, -other.interval.low)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="values: expected two or more for an interval, got 1"):
        mean_interval([0.5])
    with pytest.raises(ArgumentError, match="expected two or more"):
        paired_difference([0.5, 0.6], [0.1], rate=0)
    for confidence in (0, 0.9996, 1, 1.5):
        with pytest.raises(ArgumentError, match=r"confidence: expected more than 0 and at most 0\.9995"):
            share_interval([0.1, 0.2], confidence=confidence)
