"""Fault models: rates, bits and signs against exact probabilities; effects against integer arithmetic; documents."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")

from pydantic import TypeAdapter  # noqa: E402

from sparing.errors import ConfigError  # noqa: E402
from sparing.faults import (  # noqa: E402
    AnyFault,
    BitBias,
    BitFlip,
    FaultSum,
    GaussianNoise,
    ReciprocalNormalNoise,
    StuckAt,
    parse_fault,
)
from sparing.faults.hits import draw_hits  # noqa: E402

RATES = (1e-6, 1e-4, 1e-2, 0.08, 0.369, 0.75)
NUM = 300_000
ALL = [
    BitBias(p_m=1e-4),
    BitBias(p=0.01, rate="rounded"),
    BitFlip(p=0.1),
    BitFlip(p=0.1, where="features"),
    StuckAt(),
    StuckAt(rate=0.1, form="bit", share_high=0.5),
    StuckAt(form="one_bit"),
    GaussianNoise(sigma=0.1, relative_to="value", where="features"),
    ReciprocalNormalNoise(sigma=0.2),
    BitBias(p_m=1e-4) + StuckAt(),
]


def drawn(fault, seed, num=NUM, num_macs=1):
    hits = draw_hits(fault, num, num_macs, np.random.default_rng(seed))
    return len(hits), hits.effects.numpy()


def test_biases_have_their_rate_size_and_sign(inside):
    counts = []
    for number, p in enumerate(RATES):
        num, effects = drawn(BitBias(p=p), number, 3_000_000)
        counts.append((p, num, 3_000_000, p))
        sizes = [sign * 2**alpha for alpha in range(8) for sign in (1, -1)]
        counts += [((p, size), (effects == size).sum(), 3_000_000, p / 16) for size in sizes]
    inside(counts)


def test_flips_have_their_rate_in_every_bit(inside):
    counts = []
    for number, p in enumerate(RATES):
        num = 3_000_000 if p < 1e-3 else NUM
        hit, effects = drawn(BitFlip(p=p), number, num)
        assert (effects != 0).all()
        counts.append((p, hit, num, 1 - (1 - p) ** 8))
        counts += [((p, bit), (effects >> bit & 1).sum(), num, p) for bit in range(8)]
        # Independent: both of two bits.
        counts += [
            ((p, bit, "both"), (effects >> bit & effects >> (bit + 1) & 1).sum(), num, p * p) for bit in range(7)
        ]
    inside(counts)


@pytest.mark.parametrize("form", ["cell", "bit"])
def test_cells_are_stuck_at_their_rate_low_and_high(form, inside):
    counts = []
    for number, rate in enumerate(RATES):
        num = 2_000_000 if rate < 1e-3 else NUM
        fault = StuckAt(rate=rate, form=form)
        _, effects = drawn(fault, number, num)
        stuck, high = effects & 0x3FFF, effects >> 16
        assert (stuck != 0).all()
        assert (high & ~stuck == 0).all()
        if form == "cell":
            assert np.isin(stuck, [127, 127 << 7, 0x3FFF]).all()
            assert np.isin(high, [0, 127, 127 << 7, 0x3FFF]).all()
        for cell in range(0, 14, 7 if form == "cell" else 1):
            counts.append(((rate, cell), (stuck >> cell & 1).sum(), num, rate))
            counts.append(((rate, cell, "high"), (high >> cell & 1).sum(), num, rate * 0.163))
        counts.append(((rate, "both"), (stuck & stuck >> 7 & 1).sum(), num, rate**2))
        counts.append(((rate, "both high"), (high & high >> 7 & 1).sum(), num, (rate * 0.163) ** 2))
    inside(counts)


def test_one_bit_is_exactly_one_cell(inside):
    counts = []
    for number, rate in enumerate(RATES):
        hit, effects = drawn(StuckAt(rate=rate, form="one_bit"), number, 2_000_000)
        stuck, high = effects & 0x3FFF, effects >> 16
        assert (stuck & (stuck - 1) == 0).all()
        assert (stuck > 0).all()
        assert np.isin(high, [0, *(1 << np.arange(14))]).all()
        counts += [(rate, hit, 2_000_000, rate), ((rate, "high"), (high > 0).sum(), 2_000_000, rate * 0.163)]
        counts += [((rate, cell), (stuck >> cell & 1).sum(), 2_000_000, rate / 14) for cell in range(14)]
    inside(counts)


def test_noise_is_normal():
    from scipy.stats import kstest

    assert draw_hits(GaussianNoise(sigma=0.5), 10, 1, np.random.default_rng(0)).positions is None
    _, effects = drawn(GaussianNoise(sigma=0.5), 1, 50_000)
    assert kstest(effects / 0.5, "norm").pvalue > 0.005
    _, effects = drawn(ReciprocalNormalNoise(sigma=0.05), 2, 50_000)
    assert kstest((effects - 1) / 0.05, "norm").pvalue > 0.005
    _, effects = drawn(ReciprocalNormalNoise(sigma=2.0), 3, 50_000)
    assert effects.min() == np.float32(0.1)


def test_flips_of_every_code_and_mask():
    codes, masks = np.meshgrid(np.arange(-128, 128), np.arange(1, 256))
    left = BitFlip(p=0.1).apply(
        torch.tensor(codes.ravel(), dtype=torch.float32), torch.tensor(masks.ravel(), dtype=torch.uint8)
    )
    for code, mask, got in zip(codes.ravel().tolist(), masks.ravel().tolist(), left.tolist(), strict=True):
        unsigned = code % 256 ^ mask
        assert got == (unsigned if unsigned < 128 else unsigned - 256)


def test_stuck_cells_are_read_again():
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, 3000)
    stuck = rng.integers(1, 1 << 14, 3000)
    high = stuck & rng.integers(0, 1 << 14, 3000)
    effects = torch.tensor(stuck | high << 16, dtype=torch.int32)
    left = StuckAt(form="bit").apply(torch.tensor(codes, dtype=torch.float32), effects)
    for code, mask, ones, got in zip(codes, stuck, high, left.tolist(), strict=True):
        bits = [max(code, 0) >> bit & 1 for bit in range(7)] + [max(-code, 0) >> bit & 1 for bit in range(7)]
        bits = [(ones >> cell & 1) if mask >> cell & 1 else bit for cell, bit in enumerate(bits)]
        assert got == sum(bit << at for at, bit in enumerate(bits[:7])) - sum(
            bit << at for at, bit in enumerate(bits[7:])
        )


@pytest.mark.parametrize(
    ("code", "stuck", "high", "expected"),
    [
        (50, "p", "", 0),
        (50, "p", "p", 127),
        (50, "n", "", 50),
        (50, "n", "n", -77),
        (-50, "n", "", 0),
        (-50, "pn", "pn", 0),
    ],
)
def test_cells_of_one_polarity(code, stuck, high, expected):
    place = {"p": 127, "n": 127 << 7}
    effect = sum(place[x] for x in stuck) | sum(place[x] for x in high) << 16
    left = StuckAt().apply(torch.tensor([float(code)]), torch.tensor([effect], dtype=torch.int32))
    assert left.tolist() == [expected]


@pytest.mark.parametrize(("num_macs", "p_m"), [(9, 1e-4), (2304, 3e-4), (144, 1e-6), (1, 0.3), (4608, 1e-4)])
def test_products_behind_an_output_add_up(num_macs, p_m):
    from fractions import Fraction

    exact = 1 - (1 - Fraction(p_m)) ** num_macs
    assert BitBias(p_m=p_m).p_hit(num_macs) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(("p", "rounded"), [(0.369, 0.5), (0.749, 1.0), (0.25, 0.25), (0.01, 0.01), (0.0, 0.0)])
def test_the_published_code_rounds_rates(p, rounded):
    assert BitBias(p=p, rate="rounded").p_hit(9) == rounded
    assert BitBias(p=p).p_hit(9) == p


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_documents_and_rates(fault):
    assert TypeAdapter(AnyFault).validate_json(fault.model_dump_json()) == fault
    other = fault.with_rate(0.5)
    assert type(other) is type(fault)
    assert getattr(other.parts[0], fault.rate_name) == 0.5
    assert other.parts[1:] == fault.parts[1:]
    assert other.with_rate(getattr(fault.parts[0], fault.rate_name)) == fault
    with pytest.raises(ConfigError, match=f"{fault.rate_name}: .* got -1"):
        fault.with_rate(-1)


def test_sums_are_flat_and_ordered():
    a, b, c = BitBias(p=0.1), StuckAt(), BitFlip(p=0.1)
    assert (a + b + c).parts == (a, b, c)
    assert a + (b + c) == (a + b) + c
    assert [part.place for part in (a + b).parts] == ["features", "weights"]
    with pytest.raises(ConfigError, match="faults"):
        FaultSum(faults=())


@pytest.mark.parametrize(
    "build",
    [
        BitBias,
        lambda: BitBias(p=0.1, p_m=0.1),
        lambda: BitBias(p=1.1),
        lambda: BitBias(p_m=float("nan")),
        lambda: BitFlip(p=-0.1),
        lambda: BitFlip(p=0.1, where="biases"),
        lambda: StuckAt(rate=2),
        lambda: StuckAt(share_high=float("inf")),
        lambda: StuckAt(form="byte"),
        lambda: GaussianNoise(sigma=-1),
        lambda: GaussianNoise(sigma=float("nan")),
        lambda: ReciprocalNormalNoise(sigma=0.1, extra=1),
    ],
)
def test_fields_out_of_range(build):
    with pytest.raises(ConfigError):
        build()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("stuck-at:rate=0.08,form=bit", StuckAt(rate=0.08, form="bit")),
        ("stuck-at", StuckAt()),
        (" bit-bias:p_m=1e-4 + gaussian:sigma=.02 ", BitBias(p_m=1e-4) + GaussianNoise(sigma=0.02)),
        ("bit-flip: p = 1e-3, where = features", BitFlip(p=1e-3, where="features")),
        ("reciprocal-normal:sigma=1e+0", ReciprocalNormalNoise(sigma=1.0)),
    ],
)
def test_faults_as_they_are_typed(text, fault):
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stuck",
        "stuck-at:rate",
        "stuck-at:rate=x",
        "stuck-at:rate=.1,rate=.2",
        "bit-flip:p=2",
        "bit-flip:kind=sum",
        "a + ",
    ],
)
def test_faults_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="fault"):
        parse_fault(text)


def test_cells_that_meet_what_they_cannot_hold():
    assert StuckAt().apply(torch.tensor([-128.0]), torch.tensor([1], dtype=torch.int32)).item() == -127


def test_rates_too_small_for_a_reciprocal():
    import warnings

    assert BitBias(p=1e-320, rate="rounded").p_hit(1) == 1e-320
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks = BitFlip(p=1e-320).draw_effects(99, np.random.default_rng(0))
    assert {bin(int(mask)).count("1") for mask in masks} == {1}
