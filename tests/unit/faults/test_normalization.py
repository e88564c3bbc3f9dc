"""Normalizations measured anew under faults: against sums by hand, restored bit for bit, and what they bring."""

import contextlib
import copy

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")

from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.faults import StuckAt, fixed_point_, inject, recalibrate_norms_  # noqa: E402
from sparing.faults.normalization import recalibrated_norms  # noqa: E402

FAULT = StuckAt(rate=0.2, form="bit")


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 4, 3),
        nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5),
    )  # fmt: skip
    recalibrate_norms_(model, images(64, seed=9))
    return model.eval()


def images(n=16, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + 0.3


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("batches", [1, 3])
def test_statistics_are_those_of_the_images_under_the_faults(batches):
    model = network()
    given = [images(16 + 4 * k, seed=k) + k for k in range(batches)]
    with inject(model, FAULT, seed=3), torch.no_grad():
        first = [model[0](x) for x in given]
        recalibrate_norms_(model, given if batches > 1 else given[0])
        # All inputs as if they were one batch.
        torch.testing.assert_close(model[1].running_mean, torch.cat(first).mean((0, 2, 3)))
        torch.testing.assert_close(model[1].running_var, torch.cat(first).var((0, 2, 3)))
        # What follows sees the first normalization by each batch's own statistics.
        scaled = [nn.functional.batch_norm(x, None, None, model[1].weight, model[1].bias, training=True) for x in first]
        second = [model[4](torch.relu(x)) for x in scaled]
        torch.testing.assert_close(model[5].running_mean, torch.cat(second).mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1


@pytest.mark.parametrize("faulty", [False, True])
def test_only_normalizations_change(faulty):
    model, x = network(), images()
    fixed_point_(model, x)
    model.train()
    before, modes = state(model), [module.training for module in model.modules()]
    with inject(model, FAULT, seed=3) if faulty else contextlib.nullcontext():
        recalibrate_norms_(model, 9 * images(seed=1))
    after = state(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{k}.{name}" for k in (1, 5) for name in ("running_mean", "running_var")} | {
        f"{k}.num_batches_tracked" for k in (1, 5) if before[f"{k}.num_batches_tracked"] != 1
    }
    assert [module.training for module in model.modules()] == modes


def test_a_block_restores_bit_for_bit_also_after_an_error():
    model = network()
    before = state(model)
    with pytest.raises(KeyError), recalibrated_norms(model, images()):
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
        raise KeyError
    assert same(before, state(model))
    model[7] = nn.Linear(3, 5)
    before = state(model)
    with pytest.raises(RuntimeError):
        recalibrate_norms_(model, images())
    assert same(before, state(model))
    assert (model[1].momentum, model[1].training) == (0.1, False)


def test_what_does_not_run_keeps_its_statistics():
    model = network()
    spare = nn.BatchNorm2d(4)
    spare.running_mean.fill_(7)
    model[0].add_module("spare", spare)
    recalibrate_norms_(model, images())
    assert bool((spare.running_mean == 7).all())
    assert not torch.equal(model[1].running_mean, network()[1].running_mean)


def test_without_faults_on_the_same_images_it_changes_nothing():
    model, x = network(), images(64, seed=9)
    again = copy.deepcopy(model)
    recalibrate_norms_(again, x)
    torch.testing.assert_close(again(x), model(x))


def test_numbers_far_from_0_are_measured_exactly():
    norm = nn.BatchNorm1d(1)
    x = 1e4 + torch.randn(5, 500, 1, generator=torch.Generator().manual_seed(0))
    recalibrate_norms_(norm, list(x))
    torch.testing.assert_close(norm.running_var, x.double().var().float()[None], rtol=1e-4, atol=0)


def test_what_becomes_infinite_on_the_way_is_refused():
    model = network()
    with torch.no_grad():
        model[4].bias[1] = torch.inf
    before = state(model)
    with pytest.raises(NonFiniteError, match="finite inputs of batch normalizations"):
        recalibrate_norms_(model, images())
    assert same(before, state(model))


def test_what_scales_and_shifts_channels_is_undone():
    model, x = network(), images(200, seed=5)
    recalibrate_norms_(model, x)
    with torch.no_grad():
        before = model(x)
        scale = torch.linspace(0.5, 2, 8)
        model[0].weight.mul_(scale[:, None, None, None])
        model[0].bias.mul_(scale).add_(3)
        assert (model(x) - before).abs().mean() > 0.1
        recalibrate_norms_(model, x)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


def test_what_is_refused():
    model = network()
    before = state(model)
    with pytest.raises(ShapeError, match=r"images: expected batches of 2 or more images, got shape \(1, 3,"):
        recalibrate_norms_(model, [images(), images(1)])
    with pytest.raises(ArgumentError, match="images: expected at least one batch"):
        recalibrate_norms_(model, [])
    with pytest.raises(DtypeError, match="expected a tensor of images"):
        recalibrate_norms_(model, [3])
    with pytest.raises(DtypeError, match="images: expected one batch or several, got int"):
        recalibrate_norms_(model, 3)
    with pytest.raises(NonFiniteError, match="images: expected finite numbers"):
        recalibrate_norms_(model, images() * torch.nan)
    assert same(before, state(model))
    for bare in (nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))):
        with pytest.raises(ArgumentError, match="at least one batch normalization with running statistics that runs"):
            recalibrate_norms_(bare, images())


def test_a_normalization_that_is_called_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            for layer in self.inner:
                x = layer(input=x) if isinstance(layer, nn.BatchNorm2d) else layer(x)
            return x

    named, plain = Named().eval(), network()
    for model in (named, plain):
        recalibrate_norms_(model, images(20, seed=4))
    assert same(state(named.inner), state(plain))
