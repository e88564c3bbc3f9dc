"""Steps of crossbar blocks: every block by itself and by brute force, and the error of the weight that is gathered."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.pim import block_ranges  # noqa: E402
from sparing.pim.block_ranges import block_codes, block_cuts, block_steps, max_code, spread_steps  # noqa: E402
from sparing.pim.crossbar import CrossbarSize, block_grid  # noqa: E402
from sparing.pim.epitome import EpitomeShape, epitome_index, repetition_map  # noqa: E402

RULES = ("max", "overlap", "weighted_mse")


def made(seed, *size, heavy=False):
    x = torch.randn(*size, generator=torch.Generator().manual_seed(seed))
    return x**3 if heavy else x


def error(values, weights, step, bits):
    """Σ c·(e − Q(e))², from its definition, in float64."""
    values, weights = values.double(), weights.double()
    codes = (values / step).round().clamp(-max_code(bits), max_code(bits))
    return float((weights * (values - codes * step) ** 2).sum())


def pieces(matrix, grid):
    rows, cols = block_cuts(grid, tuple(matrix.shape))
    return [list(part.split(cols, 1)) for part in matrix.split(rows, 0)]


@st.composite
def matrices(draw):
    """A matrix with its grid, and counts of uses."""
    kernel = draw(st.sampled_from([1, 4, 9]))
    ins, outs = draw(st.integers(1, 7)), draw(st.integers(1, 11))
    grid = block_grid(ins, outs, kernel, CrossbarSize(draw(st.integers(1, 20)), draw(st.integers(1, 6))))
    seed = draw(st.integers(0, 10**6))
    matrix = made(seed, ins * kernel, outs, heavy=draw(st.booleans()))
    counts = torch.randint(0, 5, matrix.shape, generator=torch.Generator().manual_seed(seed))
    return matrix, grid, counts


@settings(max_examples=30, deadline=None)
@given(matrices(), st.integers(2, 9), st.sampled_from(RULES))
def test_each_block_is_on_its_own(case, bits, rule):
    matrix, grid, counts = case
    steps = block_steps(matrix, grid, bits, rule, counts)
    blocks, uses = pieces(matrix, grid), pieces(counts, grid)
    assert steps.shape == (len(blocks), len(blocks[0])) == (len(grid.row_cuts), len(grid.col_cuts))
    assert steps.dtype == torch.float32
    assert bool((steps > 0).all())
    for r, row in enumerate(blocks):
        for c, block in enumerate(row):
            alone = block_grid(1, block.shape[1], block.shape[0], CrossbarSize(block.shape[0], block.shape[1]))
            # To float32's rounding: sums of another length are taken in another order.
            torch.testing.assert_close(steps[r, c], block_steps(block, alone, bits, rule, uses[r][c])[0, 0])
    spread, codes = spread_steps(steps, grid, tuple(matrix.shape)), block_codes(matrix, steps, grid, bits)
    for r, row in enumerate(pieces(codes, grid)):
        for c, block in enumerate(row):
            assert torch.equal(block, block_codes(blocks[r][c], steps[r : r + 1, c : c + 1], alone_grid(block), bits))
            assert bool((pieces(spread, grid)[r][c] == steps[r, c]).all())
    assert int(codes.abs().max()) <= max_code(bits)


def alone_grid(block):
    return block_grid(1, block.shape[1], block.shape[0], CrossbarSize(block.shape[0], block.shape[1]))


def test_maximum_by_hand():
    matrix = torch.tensor([[3.0, -1.0, 0.5], [0.0, 6.0, -0.5], [9.0, 0.0, 0.0]])
    grid = block_grid(3, 3, 1, CrossbarSize(2, 2))
    steps = block_steps(matrix, grid, 3, "max")
    assert steps.tolist() == pytest.approx(np.array([[2.0, 0.5 / 3], [3.0, 1.2e-38]]), rel=0.03)
    assert block_codes(matrix, steps, grid, 3).tolist() == [[2, 0, 3], [0, 3, -3], [3, 0, 0]]
    assert float(matrix[2, 2] / steps[1, 1]) == 0


def test_overlap_mixes_the_maxima_of_reused_and_single_use_elements(monkeypatch):
    monkeypatch.setattr(block_ranges, "REUSED_SHARE", 0.25)
    matrix = torch.tensor([[4.0], [-2.0], [8.0], [100.0]])
    counts = torch.tensor([[2], [3], [1], [0]])
    grid = block_grid(4, 1, 1, CrossbarSize(4, 1))
    assert float(block_steps(matrix, grid, 3, "overlap", counts)) == pytest.approx((0.25 * 4 + 0.75 * 8) / 3)
    # All used alike: nothing to mix.
    assert float(block_steps(matrix, grid, 3, "overlap", torch.full((4, 1), 2))) == pytest.approx(100 / 3)
    assert float(block_steps(matrix, grid, 3, "overlap")) == pytest.approx(100 / 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([2, 3, 4, 5]), st.booleans())
def test_least_squares_is_the_optimum(seed, length, bits, heavy):
    values = made(seed, length, 1, heavy=heavy)
    counts = torch.randint(0, 6, (length, 1), generator=torch.Generator().manual_seed(seed))
    step = float(block_steps(values, alone_grid(values), bits, "weighted_mse", counts))
    found = error(values, counts, step, bits)
    # Between places where a code changes the error is a parabola: its lowest point, or an end, is the least.
    halves = torch.arange(max_code(bits)) + 0.5
    places = (values.abs().double() / halves).flatten().unique()
    places = places[places > 1e-12]
    middles = torch.cat([places * 0.999, places, places * 1.001, (places[1:] + places[:-1]) / 2]).tolist()
    tried = []
    for middle in middles:
        codes = (values.double() / middle).round().clamp(-max_code(bits), max_code(bits))
        scale = float((counts * codes * codes).sum())
        best = float((counts * codes * values).sum()) / scale if scale else middle
        tried += [error(values, counts, middle, bits), error(values, counts, best, bits)]
    energy = float((counts * values.double() ** 2).sum())
    assert found <= min(tried) + 1e-6 * energy


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.booleans())
def test_least_squares_is_never_worse_than_the_maximum(seed, bits, heavy):
    values = made(seed, 150, 2, heavy=heavy)
    counts = torch.randint(0, 4, values.shape, generator=torch.Generator().manual_seed(seed))
    grid = block_grid(150, 2, 1, CrossbarSize(60, 1))
    found, plain = (block_steps(values, grid, bits, rule, counts) for rule in ("weighted_mse", "max"))
    blocks, uses = pieces(values, grid), pieces(counts, grid)
    for r in range(3):
        for c in range(2):
            errors = [error(blocks[r][c], uses[r][c], float(s[r, c]), bits) for s in (found, plain)]
            assert errors[0] <= errors[1] * (1 + 1e-5)


def test_search_with_many_bits_is_near_the_optimum(monkeypatch):
    """What is searched beyond 5 bits, against what sorting finds."""
    values = torch.cat([made(i, 400, 1, heavy=i % 2 == 1) for i in range(6)], 1)
    grid = block_grid(400, 6, 1, CrossbarSize(400, 1))
    for bits in (6, 8):
        searched = block_steps(values, grid, bits, "weighted_mse")
        monkeypatch.setattr(block_ranges, "_EXACT_CODE", 1000)
        exact = block_steps(values, grid, bits, "weighted_mse")
        monkeypatch.undo()
        for c in range(6):
            ones = torch.ones(400)
            least = error(values[:, c], ones, float(exact[0, c]), bits)
            assert least * (1 - 1e-6) <= error(values[:, c], ones, float(searched[0, c]), bits) <= least * 1.03


def test_blocks_are_sorted_in_parts(monkeypatch):
    values, grid = made(0, 60, 40), block_grid(60, 40, 1, CrossbarSize(8, 8))
    whole = block_steps(values, grid, 4, "weighted_mse")
    monkeypatch.setattr(block_ranges, "_SORTED", 1000)
    assert torch.equal(block_steps(values, grid, 4, "weighted_mse"), whole)


def test_weighted_error_is_that_of_the_gathered_weight():
    weight_shape, shape = (12, 10, 3, 3), EpitomeShape(out_channels=5, in_channels=4, kernel=(4, 4))
    size = shape.size_of(weight_shape)
    index = epitome_index(weight_shape, shape)
    counts = repetition_map(index, size)
    epitome, grid = made(3, *size), block_grid(4, 5, 16, CrossbarSize(40, 3))
    matrix, uses = epitome.flatten(1).T, counts.flatten(1).T
    assert len(grid.row_cuts) * len(grid.col_cuts) == 4
    errors = {}
    for rule in RULES:
        steps = block_steps(matrix, grid, 3, rule, uses)
        rounded = block_codes(matrix, steps, grid, 3) * spread_steps(steps, grid, tuple(matrix.shape))
        weighted = float((uses * (matrix - rounded).double() ** 2).sum())
        gathered = epitome.flatten()[index] - rounded.T.reshape(size).flatten()[index]
        assert weighted == pytest.approx(float((gathered.double() ** 2).sum()), rel=1e-6)
        errors[rule] = weighted
    unweighted = block_steps(matrix, grid, 3, "weighted_mse")
    rounded = block_codes(matrix, unweighted, grid, 3) * spread_steps(unweighted, grid, tuple(matrix.shape))
    assert errors["weighted_mse"] < float((uses * (matrix - rounded).double() ** 2).sum())
    assert errors["weighted_mse"] < 0.8 * errors["max"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    matrix, grid = made(1, 20, 6).to(dtype), block_grid(20, 6, 1, CrossbarSize(7, 4))
    for rule in RULES:
        steps = block_steps(matrix, grid, 4, rule)
        wide = block_steps(matrix.double(), grid, 4, rule)
        assert steps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(steps.double(), wide, rtol=1e-5, atol=0)
    assert block_codes(matrix, steps, grid, 4).dtype == torch.int8
    assert block_codes(matrix, steps, grid, 9).dtype == torch.int16


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("rule", RULES)
def test_zeros_have_a_step(rule, bits):
    grid = block_grid(4, 4, 1, CrossbarSize(2, 4))
    matrix = torch.cat([torch.zeros(2, 4), made(0, 2, 4)])
    for counts in (None, torch.ones(4, 4), torch.zeros(4, 4)):
        steps = block_steps(matrix, grid, bits, rule, counts)
        assert bool((steps > 0).all())
        assert bool((block_codes(matrix, steps, grid, bits)[:2] == 0).all())
        assert int(block_codes(matrix, steps, grid, bits).abs().max()) > 0


@pytest.mark.parametrize(
    ("ins", "outs", "groups", "cuts"),
    [
        (6, 8, 2, ((27,), (4, 4))),  # one group a crossbar
        (12, 12, 12, ((9,), (3, 3, 3, 3))),  # three groups along the diagonal
        (10, 10, 10, ((9,), (3, 3, 3, 1))),  # the last crossbar holds fewer
        (16, 40, 2, ((27, 27, 18), (16, 4, 16, 4))),
    ],
)
def test_grouped_convolutions(ins, outs, groups, cuts):
    crossbar = CrossbarSize(30, 16) if outs > 12 else CrossbarSize(27, 16)
    grid = block_grid(ins, outs, 9, crossbar, groups=groups)
    matrix = made(0, ins // groups * 9, outs)
    assert block_cuts(grid, tuple(matrix.shape)) == cuts
    steps = block_steps(matrix, grid, 3, "max")
    assert steps.shape == (len(cuts[0]), len(cuts[1]))
    assert float(steps[0, -1]) == pytest.approx(float(matrix[: cuts[0][0], -cuts[1][-1] :].abs().max()) / 3)


def test_refusals():
    grid, matrix = block_grid(4, 4, 1, CrossbarSize(2, 2)), made(0, 4, 4)
    for bits in (1, 17, 32):
        with pytest.raises(ArgumentError, match=f"bits: expected 2 to 16 for quantized weights, got {bits}"):
            block_steps(matrix, grid, bits, "max")
    with pytest.raises(ArgumentError, match="rule: expected one of max, overlap, weighted_mse, got 'mean'"):
        block_steps(matrix, grid, 3, "mean")
    with pytest.raises(DtypeError, match=r"matrix: .*torch.int64"):
        block_steps(matrix.long(), grid, 3, "max")
    for shape in ((4, 5), (5, 4), (4,), (16,), (2, 8)):
        with pytest.raises(ShapeError, match="matrix: expected"):
            block_steps(torch.zeros(shape), grid, 3, "max")
    for bad in (float("nan"), float("inf")):
        spoiled = matrix.clone()
        spoiled[3, 1] = bad
        for rule in RULES:
            with pytest.raises(NonFiniteError, match="matrix"):
                block_steps(spoiled, grid, 3, rule, torch.ones(4, 4))
    with pytest.raises(ShapeError, match="counts: expected the shape of the matrix"):
        block_steps(matrix, grid, 3, "weighted_mse", torch.ones(16))
    with pytest.raises(ArgumentError, match="counts: expected numbers of 0 or more, got a negative one"):
        block_steps(matrix, grid, 3, "weighted_mse", -torch.ones(4, 4))
    with pytest.raises(ShapeError, match="steps: expected shape"):
        block_codes(matrix, torch.ones(1, 2), grid, 3)


def test_groups_that_share_one_crossbar_have_one_block():
    grid = block_grid(8, 8, 9, CrossbarSize(), groups=2)
    assert grid.num_blocks == 1
    assert block_cuts(grid, (36, 8)) == ((36,), (8,))
    assert block_steps(torch.ones(36, 8), grid, 3, "max").shape == (1, 1)
