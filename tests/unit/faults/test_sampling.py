"""Which numbers are hit: rates, independence and edges against exact probabilities; masks; generators."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[torch]")

from hypothesis import given
from hypothesis import strategies as st

from sparing.errors import ArgumentError
from sparing.faults.sampling import check_seed, choose_masks, fault_generator, hit_positions

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.2, 0.369, 0.5, 0.749, 0.75)


def generator(seed=0):
    return np.random.default_rng(seed)


def test_rates_are_exact_from_a_millionth_to_three_quarters(inside):
    counts = []
    for number, p in enumerate(RATES):
        num = 20_000_000 if p < 1e-3 else 1_000_000
        positions = hit_positions(num, p, generator(number))
        counts.append((p, len(positions), num, p))
        # Everywhere alike, and of neighbours both as often as they should be.
        counts += [((p, part), (positions % 4 == part).sum(), num // 4, p) for part in range(4)]
        counts += [((p, "first"), (positions < num // 2).sum(), num // 2, p)]
        pairs = (np.diff(positions) == 1) & (positions[:-1] % 2 == 0)
        counts += [((p, "pairs"), pairs.sum(), num // 2, p * p)]
    inside(counts)


@pytest.mark.parametrize("p", [0.03, 0.3, 0.9])
def test_few_numbers_are_hit_as_independent_coins(p, inside):
    rng, times = generator(5), 20_000
    seen = dict.fromkeys(itertools.product((0, 1), repeat=3), 0)
    for _ in range(times):
        hit = np.zeros(3, int)
        hit[hit_positions(3, p, rng)] = 1
        seen[tuple(hit)] += 1
    inside([(hit, count, times, p ** sum(hit) * (1 - p) ** (3 - sum(hit))) for hit, count in seen.items()])


@given(num=st.integers(0, 3000), p=st.floats(0, 1), seed=st.integers(0, 100))
def test_positions_ascend_in_range(num, p, seed):
    positions = hit_positions(num, p, generator(seed))
    assert positions.dtype == np.int64
    assert (np.diff(positions) > 0).all()
    assert not len(positions) or (positions[0] >= 0 and positions[-1] < num)


def test_edges():
    assert len(hit_positions(1000, 0.0, generator())) == 0
    assert len(hit_positions(0, 0.5, generator())) == 0
    assert len(hit_positions(1 << 40, 1e-300, generator())) == 0
    assert hit_positions(5, 1.0, generator()).tolist() == [0, 1, 2, 3, 4]
    assert len(hit_positions(10_000, 1 - 1e-12, generator())) == 10_000


@pytest.mark.parametrize("nonzero", [False, True])
@pytest.mark.parametrize("p", [1e-6, 0.01, 0.163, 0.5, 0.75, 1.0])
def test_masks_have_their_probabilities(p, nonzero, inside):
    num = 200_000
    masks = choose_masks(num, 3, p, generator(3), nonzero=nonzero)
    share = {mask: p ** mask.bit_count() * (1 - p) ** (3 - mask.bit_count()) for mask in range(8)}
    total = sum(share[mask] for mask in range(1, 8)) if nonzero else 1.0
    exact = {mask: min(1.0, share[mask] / total) * (mask > 0 or not nonzero) for mask in share}
    inside([(mask, (masks == mask).sum(), num, exact[mask]) for mask in range(8)])


def test_masks_of_fourteen_bits(inside):
    num, p = 100_000, 0.08
    masks = choose_masks(num, 14, p, generator(4), nonzero=True)
    assert masks.min() > 0
    assert masks.max() < 1 << 14
    any_set = 1 - (1 - p) ** 14
    inside([(bit, (masks >> bit & 1).sum(), num, p / any_set) for bit in range(14)])


def test_a_generator_of_its_own_for_each_drawing():
    base = {"seed": 1, "draw": 2, "site": "conv", "part": 0, "call": 0}
    others = [{"seed": 1 + 2**32}, {"draw": 3}, {"draw": 2 + 2**32}, {"site": "conv2"}, {"part": 1}, {"call": 1}]
    drawn = [fault_generator(**{**base, **other}).random(4).tolist() for other in ({}, *others)]
    assert fault_generator(**base).random(4).tolist() == drawn[0]
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn)


def test_drawings_do_not_change_with_releases():
    rng = fault_generator(7, 3, "layer1.0.conv1", part=1, call=2)
    assert hit_positions(1000, 0.01, rng).tolist() == [178, 209, 236, 262, 396, 450, 595, 720, 746, 747, 766]
    assert choose_masks(6, 14, 0.08, rng, nonzero=True).tolist() == [512, 390, 18, 2048, 1280, 136]


@pytest.mark.parametrize("value", [-1, 2**63])
def test_seeds_out_of_range(value):
    with pytest.raises(ArgumentError, match="seed: expected 0 to"):
        check_seed("seed", value)


def test_the_smallest_rates_do_not_overflow():
    with np.errstate(all="raise"):
        for p in (5e-324, 1e-310, 2e-308):
            assert not len(hit_positions(1 << 40, p, np.random.default_rng(0)))
