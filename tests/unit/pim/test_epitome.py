"""Epitomes: the gather by loops, the gradient by hand, wrapping by repeated feature maps, the fit by least squares."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from hypothesis import assume, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from sparing.errors import ArgumentError, NonFiniteError, ShapeError  # noqa: E402
from sparing.pim.epitome import (  # noqa: E402
    Epitome,
    EpitomeShape,
    epitome_index,
    fit_epitome,
    patches_of,
    repetition_map,
)

EITHER = st.booleans()


@st.composite
def cases(draw, wrapped=EITHER, kernels=EITHER):
    """A weight and an epitome of it: every number of groups, kernels of the weight's own size and larger."""
    weight = tuple(draw(st.integers(1, n)) for n in (14, 14, 3, 3))
    kernel = tuple(n + draw(st.integers(0, 2)) for n in weight[2:]) if draw(kernels) else None
    out, in_ = draw(st.integers(1, weight[0])), draw(st.integers(1, weight[1]))
    return weight, EpitomeShape(out_channels=out, in_channels=in_, kernel=kernel, wrapped=draw(wrapped))


def gathered(weight_shape, epitome, stored):
    """The virtual weight, element by element."""
    weight = np.full(weight_shape, np.nan)
    _, ei, _, _ = stored.shape
    for patch in patches_of(weight_shape, epitome):
        for o in range(patch.num_out):
            for i in range(patch.num_in):
                for r in range(weight_shape[2]):
                    for c in range(weight_shape[3]):
                        place = patch.out_start + o, patch.in_start + i, r, c
                        assert np.isnan(weight[place]), "two patches lie on one weight"
                        channel = (patch.from_in + i) % ei
                        weight[place] = stored[patch.from_out + o, channel, patch.from_row + r, patch.from_col + c]
    return weight


def numbered(size):
    return np.arange(math.prod(size), dtype=float).reshape(size)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_gather_is_the_patches_laid_out(case):
    weight_shape, shape = case
    stored = numbered(shape.size_of(weight_shape))
    expected = gathered(weight_shape, shape, stored)
    assert not np.isnan(expected).any(), "a weight that no patch lies on"
    index = epitome_index(weight_shape, shape)
    assert index.dtype == torch.int64
    assert tuple(index.shape) == weight_shape
    np.testing.assert_array_equal(torch.from_numpy(stored).flatten()[index], expected)
    weight = Epitome(weight_shape, shape)(torch.from_numpy(stored))
    np.testing.assert_array_equal(weight, expected)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_patches(case):
    (out, in_, height, width), shape = case
    found = patches_of((out, in_, height, width), shape)
    eo, ei, p, q = shape.size_of((out, in_, height, width))
    assert len(found) == -(-out // eo) * -(-in_ // ei)
    starts = [(patch.out_start, patch.in_start) for patch in found]
    assert starts == sorted(set(starts))
    for patch in found:
        assert 1 <= patch.num_out <= eo - patch.from_out
        assert 1 <= patch.num_in <= ei
        assert 0 <= patch.from_in < ei
        assert 0 <= patch.from_row <= p - height
        assert 0 <= patch.from_col <= q - width


@settings(max_examples=50, deadline=None)
@given(cases())
def test_repetition_counts_each_weight_once(case):
    weight_shape, shape = case
    size = shape.size_of(weight_shape)
    uses = repetition_map(epitome_index(weight_shape, shape), size)
    assert tuple(uses.shape) == size
    assert int(uses.sum()) == math.prod(weight_shape)
    # No patch has an element twice.
    assert int(uses.max()) <= len(patches_of(weight_shape, shape))
    counted = np.zeros(size, dtype=int)
    for place in gathered(weight_shape, shape, numbered(size)).astype(int).flatten():
        counted[np.unravel_index(place, size)] += 1
    np.testing.assert_array_equal(uses, counted)


@settings(max_examples=150, deadline=None)
@given(cases(kernels=st.just(False)))
@example(((5, 4, 1, 1), EpitomeShape(out_channels=4, in_channels=4)))
@example(((5, 4, 1, 1), EpitomeShape(out_channels=4, in_channels=4, wrapped=True)))
def test_every_element_is_used(case):
    weight_shape, shape = case
    assert int(repetition_map(epitome_index(weight_shape, shape), shape.size_of(weight_shape)).min()) >= 1


@settings(max_examples=150, deadline=None)
@given(cases())
def test_every_corner_is_used_when_there_are_patches_for_it(case):
    weight_shape, shape = case
    (_, _, p, q), (_, _, height, width) = shape.size_of(weight_shape), weight_shape
    corners = (p - height + 1) * (q - width + 1)
    found = patches_of(weight_shape, shape)
    firsts = [patch for patch in found if patch.out_start == 0] if shape.wrapped else found
    used = {(patch.from_row, patch.from_col) for patch in firsts}
    if len(firsts) >= corners:
        assert len(used) == corners
    else:
        assert len(used) == len(firsts)


@settings(max_examples=150, deadline=None)
@given(cases(wrapped=st.just(False)))
@example(((32, 16, 1, 1), EpitomeShape(out_channels=16, in_channels=4)))
@example(((8, 4, 1, 1), EpitomeShape(out_channels=4, in_channels=1, kernel=(2, 2))))
@example(((12, 6, 1, 1), EpitomeShape(out_channels=2, in_channels=2)))
def test_output_groups_differ_where_they_can(case):
    weight_shape, shape = case
    found = patches_of(weight_shape, shape)
    _, ei, p, q = shape.size_of(weight_shape)
    pairs = ei * (p - weight_shape[2] + 1) * (q - weight_shape[3] + 1)
    groups = {}
    for patch in found:
        groups.setdefault(patch.out_start, []).append((patch.from_in, patch.from_row, patch.from_col))
    num_ins = len(next(iter(groups.values())))
    if len(groups) <= pairs:
        # At every input, not only at one: neighbours share no element there.
        for places in zip(*groups.values(), strict=True):
            assert len(set(places)) == len(places)
    elif num_ins > 1 and ei > 1 and len(groups) <= pairs * ei:
        assert len(set(map(tuple, groups.values()))) == len(groups)


@settings(max_examples=100, deadline=None)
@given(cases(wrapped=st.just(True)))
def test_wrapped_output_groups_are_copies(case):
    weight_shape, shape = case
    weight = epitome_index(weight_shape, shape)
    for start in range(0, weight_shape[0], shape.out_channels):
        part = weight[start : start + shape.out_channels]
        assert torch.equal(part, weight[: len(part)])


@settings(max_examples=40, deadline=None)
@given(cases(wrapped=st.just(True)), st.integers(1, 2))
def test_wrapped_convolution_is_a_repeated_feature_map(case, stride):
    weight_shape, shape = case
    size = shape.size_of(weight_shape)
    generator = torch.Generator().manual_seed(0)
    # Whole numbers: sums are exact in any order.
    stored = torch.randint(-8, 9, size, generator=generator).double()
    x = torch.randint(-8, 9, (2, weight_shape[1], 6, 6), generator=generator).double()
    weight = Epitome(weight_shape, shape)(stored)
    whole = functional.conv2d(x, weight, stride=stride, padding=1)
    part = functional.conv2d(x, weight[: shape.out_channels], stride=stride, padding=1)
    num_groups = -(-weight_shape[0] // shape.out_channels)
    assert torch.equal(whole, part.repeat(1, num_groups, 1, 1)[:, : weight_shape[0]])


def test_wrapping_costs_what_groups_could_differ_in():
    weight_shape, shape = (8, 8, 3, 3), EpitomeShape(out_channels=4, in_channels=4)
    wrapped = shape.model_copy(update={"wrapped": True})
    index = {s: epitome_index(weight_shape, s) for s in (shape, wrapped)}
    assert torch.equal(index[wrapped][:4], index[wrapped][4:])
    assert not (index[shape][:4] == index[shape][4:]).any()


@settings(max_examples=40, deadline=None)
@given(cases())
def test_gradient_is_scattered(case):
    weight_shape, shape = case
    size = shape.size_of(weight_shape)
    generator = torch.Generator().manual_seed(1)
    # The gradient of each weight by dense autograd, added up by hand.
    x = torch.randint(-4, 5, (2, weight_shape[1], 5, 5), generator=generator).double()
    stored = torch.randint(-4, 5, size, generator=generator).double().requires_grad_()
    epitome = Epitome(weight_shape, shape)
    dense = epitome(stored).detach().requires_grad_()
    functional.conv2d(x, dense).square().sum().backward()
    expected = np.zeros(math.prod(size))
    for place, gradient in zip(epitome.index.flatten().tolist(), dense.grad.flatten().tolist(), strict=True):
        expected[place] += gradient
    functional.conv2d(x, epitome(stored)).square().sum().backward()
    np.testing.assert_array_equal(stored.grad.flatten(), expected)


def test_gradient_numerically():
    epitome = Epitome((5, 4, 3, 3), EpitomeShape(out_channels=3, in_channels=3))
    stored = torch.randn(epitome.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(epitome, stored.requires_grad_())


def test_gradient_is_the_same_on_every_run():
    # Several threads may not sum in any order: the same seed is to give the same bytes.
    epitome = Epitome((256, 128, 3, 3), EpitomeShape(out_channels=64, in_channels=28))
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(epitome.size, generator=generator).requires_grad_()
    gradient = torch.randn(epitome.weight_shape, generator=generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first, *others = [torch.autograd.grad(epitome(stored), stored, gradient)[0] for _ in range(4)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first, other) for other in others)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_fit_is_the_least_squares_optimum(case, seed):
    weight_shape, shape = case
    assume(math.prod(weight_shape) <= 600)
    size = shape.size_of(weight_shape)
    weight = torch.randn(weight_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    index = epitome_index(weight_shape, shape)
    stored, residual = fit_epitome(weight, index, size)
    # Each weight is one row of a system with a single 1; of the many solutions lstsq gives the shortest.
    system = np.zeros((index.numel(), math.prod(size)))
    system[np.arange(index.numel()), index.flatten()] = 1
    best = np.linalg.lstsq(system, weight.flatten().numpy(), rcond=None)[0]
    np.testing.assert_allclose(stored.flatten(), best, atol=1e-12)
    error = np.square(system @ best - weight.flatten().numpy()).sum() / np.square(weight.numpy()).sum()
    assert residual == pytest.approx(error, abs=1e-12)
    assert 0 <= residual <= 1


@settings(max_examples=60, deadline=None)
@given(cases())
def test_fit_finds_an_epitome_again(case):
    weight_shape, shape = case
    epitome = Epitome(weight_shape, shape)
    stored = torch.randn(epitome.size, generator=torch.Generator().manual_seed(0))
    weight = epitome(stored)
    again = epitome.right_inverse(weight)
    used = repetition_map(epitome.index, epitome.size) > 0
    torch.testing.assert_close(again, stored * used, rtol=1e-6, atol=0)
    assert epitome.residual == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(epitome(again), weight, rtol=1e-6, atol=0)


def test_full_size_is_the_identity():
    shape = EpitomeShape(out_channels=6, in_channels=5)
    assert len(patches_of((6, 5, 3, 3), shape)) == 1
    assert torch.equal(epitome_index((6, 5, 3, 3), shape).flatten(), torch.arange(270))


def test_fit_of_zeros_and_of_half_precision():
    index = epitome_index((4, 4, 1, 1), EpitomeShape(out_channels=2, in_channels=2))
    stored, residual = fit_epitome(torch.zeros(4, 4, 1, 1), index, (2, 2, 1, 1))
    assert not stored.any()
    assert residual == 0
    half, _ = fit_epitome(torch.ones(4, 4, 1, 1, dtype=torch.bfloat16), index, (2, 2, 1, 1))
    assert half.dtype == torch.bfloat16
    assert (half == 1).all()


def test_fit_takes_weights_of_any_memory_layout():
    shape = EpitomeShape(out_channels=2, in_channels=2)
    weight = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    epitome = Epitome((4, 4, 3, 3), shape)
    plain, channels_last = weight, weight.to(memory_format=torch.channels_last)
    assert torch.equal(epitome.right_inverse(plain), epitome.right_inverse(channels_last))
    linear = Epitome((4, 6), shape)
    across = weight.flatten()[:24].view(6, 4)
    assert torch.equal(linear.right_inverse(across.T), linear.right_inverse(across.T.contiguous()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_fit_refuses_what_is_no_number(bad):
    weight = torch.zeros(4, 4, 1, 1)
    weight[1, 2] = bad
    with pytest.raises(NonFiniteError, match="weight: expected finite numbers"):
        fit_epitome(weight, epitome_index((4, 4, 1, 1), EpitomeShape(out_channels=2, in_channels=2)), (2, 2, 1, 1))


def test_fit_refuses_another_shape():
    index = epitome_index((4, 4, 1, 1), EpitomeShape(out_channels=2, in_channels=2))
    with pytest.raises(ShapeError, match=r"the index, \(4, 4, 1, 1\), got \(4, 2, 1, 1\)"):
        fit_epitome(torch.zeros(4, 2, 1, 1), index, (2, 2, 1, 1))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"out_channels": 9, "in_channels": 4}, "at most 8 output and 4 input channels.* got 9 and 4"),
        ({"out_channels": 8, "in_channels": 5}, "got 8 and 5"),
        ({"out_channels": 8, "in_channels": 4, "kernel": (2, 3)}, "a kernel of at least 3 × 3, got 2 × 3"),
        ({"out_channels": 8, "in_channels": 4, "kernel": (3, 2)}, "got 3 × 2"),
    ],
)
def test_epitomes_that_do_not_fit(shape, message):
    for refused in (patches_of, epitome_index, Epitome):
        with pytest.raises(ShapeError, match=message):
            refused((8, 4, 3, 3), EpitomeShape(**shape))


@pytest.mark.parametrize("field", [{"out_channels": 0}, {"in_channels": 0}, {"kernel": (3,)}, {"kernal": (3, 3)}])
def test_shapes_that_are_none(field):
    with pytest.raises(ValidationError):
        EpitomeShape(**{"out_channels": 1, "in_channels": 1, **field})


@pytest.mark.parametrize("axes", [(), (4,), (4, 4, 3), (4, 4, 3, 3, 3)])
def test_weights_of_other_axes(axes):
    with pytest.raises(ArgumentError, match="weight_shape: expected"):
        Epitome(axes, EpitomeShape(out_channels=1, in_channels=1))


def test_linear_weights_have_two_axes():
    epitome = Epitome((6, 4), EpitomeShape(out_channels=3, in_channels=2))
    assert epitome.size == (3, 2, 1, 1)
    assert epitome(torch.zeros(3, 2, 1, 1)).shape == (6, 4)
    assert repr(epitome) == "Epitome((6, 4) from (3, 2, 1, 1))"


def test_a_quantizer_rounds_the_epitome_and_not_the_weight():
    class Doubled(nn.Module):
        def forward(self, x):
            assert x.shape == (3, 2, 1, 1)
            return 2 * x

    epitome = Epitome((6, 4), EpitomeShape(out_channels=3, in_channels=2))
    stored = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    plain = epitome(stored)
    epitome.quantizer = Doubled()
    assert torch.equal(epitome(stored), 2 * plain)
    assert [name for name, _ in epitome.named_children()] == ["quantizer"]
