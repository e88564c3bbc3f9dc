"""Range clipping: what is beyond is brought back, after faults; nothing else changes."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")

from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError  # noqa: E402
from sparing.faults import BitBias, fixed_point_, inject  # noqa: E402
from sparing.faults.hardening import RangeClip, clip_ranges_, remove_range_clips_  # noqa: E402


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def images(n=4, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("beyond", ["bound", "zero"])
def test_without_faults_nothing_changes(beyond, fixed):
    model, x = network(), images()
    if fixed:
        fixed_point_(model, x)
    before = model(x)
    clip_ranges_(model, x, beyond=beyond)
    assert torch.equal(model(x), before)
    remove_range_clips_(model)
    assert torch.equal(model(x), before)
    assert not any(isinstance(module, RangeClip) for module in model.modules())
    assert all(len(module._forward_hooks) == (fixed and name in ("1", "3")) for name, module in model.named_modules())


def seen(model, place):
    found = []
    handle = model.get_submodule(place).register_forward_hook(lambda _, __, output: found.append(output.clone()))
    return found, handle


@pytest.mark.parametrize("fixed", [False, True])
def test_faults_are_clipped(fixed):
    model, x = network(), images()
    if fixed:
        fixed_point_(model, x)
    clip_ranges_(model, x)
    low, high = model[1].range_clip.low, model[1].range_clip.high
    inside = []
    # The next module's input is what all hooks leave.
    model[2].register_forward_pre_hook(lambda _, given: inside.append(given[0].clone()))
    clean = model(x)
    with inject(model, BitBias(p=0.5), seed=1, example=None if fixed else x) as injection:
        faulty = model(x)
    assert injection.hits["0"] > 100
    assert not torch.equal(faulty, clean)
    inside = [features.detach() for features in inside]
    assert float(inside[-1].max()) == float(high) == float(inside[0].max())
    assert float(inside[-1].min()) == float(low) == float(inside[0].min())
    assert not torch.equal(inside[0], inside[-1])
    assert torch.equal(model(x), clean)


def test_clips_come_last_in_either_order():
    one, other, x = network(), network(), images()
    fixed_point_(one, x)
    clip_ranges_(one, x)
    clip_ranges_(other, x)
    fixed_point_(other, x)
    order = [[type(hook).__name__ for hook in model[1]._forward_hooks.values()] for model in (one, other)]
    assert order[0] == order[1]
    for model in (one, other):
        inside = []
        model[2].register_forward_pre_hook(lambda _, given, inside=inside: inside.append(given[0].detach()))
        with inject(model, BitBias(p=0.5), seed=1):
            model(x)
        assert float(inside[0].max()) == float(model[1].range_clip.high)


def test_beyond_becomes_zero():
    clip = RangeClip(beyond="zero", quantile=1.0, device=torch.device("cpu"))
    clip(torch.tensor([-1.0, 2.0]))
    clip.watching = False
    assert clip(torch.tensor([-1.5, -1.0, 0.5, 2.0, 3.0, float("nan")])).tolist() == [0.0, -1.0, 0.5, 2.0, 0.0, 0.0]


def test_quantiles_leave_out_the_rarest():
    clip = RangeClip(beyond="bound", quantile=0.9, device=torch.device("cpu"))
    clip(torch.arange(1000.0))
    assert (float(clip.low), float(clip.high)) == (49.0, 950.0)


def test_state_dict():
    model, other, x = network(), network(), images()
    clip_ranges_(model, x)
    clip_ranges_(other, images(seed=1))
    other.load_state_dict(model.state_dict())
    assert float(other[3].range_clip.high) == float(model[3].range_clip.high)


def test_errors():
    model, x = network(), images()
    with pytest.raises(ArgumentError, match="beyond"):
        clip_ranges_(model, x, beyond="half")
    with pytest.raises(ArgumentError, match="quantile"):
        clip_ranges_(model, x, quantile=0.5)
    with pytest.raises(ArgumentError, match="at least one batch"):
        clip_ranges_(model, [])
    with pytest.raises(DtypeError, match="images"):
        clip_ranges_(model, [3])
    with pytest.raises(NonFiniteError, match="images"):
        clip_ranges_(model, x * torch.nan)
    with pytest.raises(ArgumentError, match="convolution"):
        clip_ranges_(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), x)
    assert list(model.state_dict()) == list(network().state_dict())
    clip_ranges_(model, x)
    with pytest.raises(ArgumentError, match="already"):
        clip_ranges_(model, x)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_convolution_for_training_only_is_left_out(fixed):
    class Helped(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.helper = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.main(x)
            return (x, self.helper(x)) if self.training else x

    model = Helped().eval()
    if fixed:
        fixed_point_(model, images())
    clip_ranges_(model, images())
    assert [name for name, module in model.named_modules() if isinstance(module, RangeClip)] == ["main.range_clip"]
