"""Rounding weights in training: values, gradients, when steps change, and what a state dict brings back."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError, NonFiniteError, ShapeError  # noqa: E402
from sparing.pim.block_quantizer import BlockQuantizer  # noqa: E402
from sparing.pim.block_ranges import block_steps, spread_steps  # noqa: E402
from sparing.pim.crossbar import CrossbarSize, block_grid  # noqa: E402

GRID = block_grid(4, 6, 4, CrossbarSize(9, 4))


def stored(seed=0):
    return torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from(["max", "overlap", "weighted_mse"]))
def test_values_are_codes_times_steps(seed, bits, rule):
    weight = stored(seed)
    quantizer = BlockQuantizer(weight, GRID, bits, rule=rule).eval()
    spread = spread_steps(quantizer.steps, GRID, (16, 6))
    assert torch.equal(quantizer(weight).flatten(1).T, quantizer.codes(weight) * spread)
    assert torch.equal(quantizer.steps, block_steps(weight.flatten(1).T, GRID, bits, rule))
    assert quantizer.steps.shape == (2, 2)


def test_gradients_pass_straight_through_but_where_values_are_clipped():
    weight = stored().requires_grad_()
    quantizer = BlockQuantizer(weight, GRID, 3).eval()
    slopes = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    (quantizer(weight) * slopes).sum().backward()
    spread = spread_steps(quantizer.steps, GRID, (16, 6)).T.reshape(6, 4, 2, 2)
    inside = weight.detach().abs() <= 3.5 * spread
    assert 0 < int((~inside).sum()) < 20
    torch.testing.assert_close(weight.grad, slopes * inside)


@pytest.mark.parametrize("seed", range(5))
def test_by_the_maximum_nothing_is_clipped(seed):
    weight = stored(seed).requires_grad_()
    BlockQuantizer(weight, GRID, 3, rule="max").eval()(weight).sum().backward()
    assert bool((weight.grad == 1).all())


def test_steps_follow_the_weights_in_training_only():
    quantizer = BlockQuantizer(stored(), GRID, 3, refresh_every=3).eval()
    first = quantizer.steps.clone()
    quantizer(stored(1))
    assert torch.equal(quantizer.steps, first)
    assert int(quantizer.calls) == 0
    quantizer.train()
    seen = []
    for seed in range(1, 8):
        quantizer(stored(seed))
        seen.append(quantizer.steps.clone())
    expected = [block_steps(stored(seed).flatten(1).T, GRID, 3, "weighted_mse") for seed in (1, 1, 1, 4, 4, 4, 7)]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert int(quantizer.calls) == 7


def test_how_often_without_being_told():
    asked = {rule: BlockQuantizer(stored(), GRID, 3, rule=rule).refresh_every for rule in ("max", "weighted_mse")}
    assert asked == {"max": 1, "weighted_mse": 10}


def test_a_loaded_quantizer_goes_on_where_it_was():
    quantizer = BlockQuantizer(stored(), GRID, 3, refresh_every=3)
    for seed in range(4):
        quantizer(stored(seed))
    other = BlockQuantizer(stored(9), GRID, 3, refresh_every=3)
    other.load_state_dict(quantizer.state_dict())
    third = copy.deepcopy(quantizer)
    assert set(quantizer.state_dict()) == {"steps", "calls"}
    for seed in range(20, 24):
        rounded = quantizer(stored(seed))
        assert torch.equal(rounded, other(stored(seed)))
        assert torch.equal(rounded, third(stored(seed)))
    assert torch.equal(quantizer.steps, other.steps)
    # The refresh fell on the third of these calls.
    assert torch.equal(quantizer.steps, block_steps(stored(22).flatten(1).T, GRID, 3, "weighted_mse"))


def test_counts_weigh_the_error():
    weight = stored()
    counts = torch.ones(6, 4, 2, 2)
    counts[0, 0] = 1000
    steps = BlockQuantizer(weight, GRID, 3, counts=counts).steps
    assert torch.equal(steps, block_steps(weight.flatten(1).T, GRID, 3, "weighted_mse", counts.flatten(1).T))
    assert not torch.equal(steps, BlockQuantizer(weight, GRID, 3).steps)


def test_counts_stay_whole_in_bfloat16():
    counts = torch.full((6, 4, 2, 2), 1001)
    assert set(BlockQuantizer(stored().bfloat16(), GRID, 3, counts=counts).bfloat16().counts.flatten().tolist()) == {
        1001
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    weight = stored().to(dtype)
    quantizer = BlockQuantizer(weight, GRID, 4)
    rounded = quantizer(weight)
    assert rounded.dtype == dtype
    torch.testing.assert_close(rounded, BlockQuantizer(weight.float(), GRID, 4)(weight.float()).to(dtype))


def test_training_lowers_the_loss():
    """A linear layer that learns to be another one, with 3-bit weights all the way."""
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(256, 16, generator=generator), torch.randn(16, 8, generator=generator)
    grid = block_grid(16, 8, 1, CrossbarSize(8, 4))
    weight = torch.nn.Parameter(torch.randn(8, 16, generator=generator) * 0.3)
    quantizer = BlockQuantizer(weight, grid, 3)
    optimizer = torch.optim.SGD([weight], lr=0.3)
    losses = []
    for _ in range(60):
        loss = (x @ quantizer(weight).T - x @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # What is left is about the error of rounding the target itself.
    rounded = BlockQuantizer(target.T, grid, 3).eval()(target.T)
    floor = float((x @ rounded.T - x @ target).square().mean())
    assert losses[-1] < 0.1 * losses[0]
    assert losses[-1] < 3 * floor


def test_refusals():
    with pytest.raises(ArgumentError, match="refresh_every: expected at least 1, got 0"):
        BlockQuantizer(stored(), GRID, 3, refresh_every=0)
    with pytest.raises(ArgumentError, match="bits"):
        BlockQuantizer(stored(), GRID, 32)
    with pytest.raises(ShapeError, match="counts: expected the shape of stored"):
        BlockQuantizer(stored(), GRID, 3, counts=torch.ones(16, 6))
    with pytest.raises(ShapeError, match="stored: expected"):
        BlockQuantizer(torch.ones(6), GRID, 3)
    with pytest.raises(ShapeError, match="matrix: expected the 16 × 6"):
        BlockQuantizer(stored().transpose(0, 1), GRID, 3)
    quantizer = BlockQuantizer(stored(), GRID, 3)
    before = quantizer.steps.clone()
    with pytest.raises(NonFiniteError):
        quantizer(stored() * float("nan"))
    assert torch.equal(quantizer.steps, before)
    for call in (quantizer, quantizer.codes, quantizer.refresh_):
        with pytest.raises(ShapeError, match=r"stored: expected shape \(6, 4, 2, 2\)"):
            call(torch.zeros(6, 16))


def test_steps_are_float32_in_a_model_of_any_dtype():
    weight = stored()
    weight[:, :3] = 0  # a block of zeros, and with it the least step there is
    quantizer = BlockQuantizer(weight.double(), GRID, 3).eval()
    before = quantizer.steps.clone()
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32):
        quantizer.to(dtype)
        assert quantizer.steps.dtype == torch.float32
        assert torch.equal(quantizer.steps, before)
        assert bool(torch.isfinite(quantizer(weight.to(dtype))).all())
    twin = copy.deepcopy(quantizer).to("meta")
    assert twin.to_empty(device="cpu").steps.device.type == "cpu"
