"""Fixed point: values against the format's definition, ranges, gradients, and the way back."""

import copy
import math

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, NonFiniteError  # noqa: E402
from sparing.faults import (  # noqa: E402
    BitBias,
    StuckAt,
    calibrate_,
    fault_sites,
    fixed_point_,
    inject,
    is_fixed_point,
    remove_fixed_point_,
)
from sparing.faults.number_format import FixedPointWeight, exponent_of, writable  # noqa: E402


def rounded(x):
    """By the definition, number by number."""
    peak = max(abs(v) for v in x)
    step = 2.0 ** (math.ceil(math.log2(peak)) - 7) if peak else 0.0
    return [min(max(round(v / step), -127), 127) * step if step else 0.0 for v in x]


@given(st.lists(st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=1, max_size=20))
def test_weights_are_codes_times_a_step(values):
    assert FixedPointWeight()(torch.tensor(values)).tolist() == rounded(torch.tensor(values).tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_all_dtypes_round_alike(dtype):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(FixedPointWeight()(x.to(dtype)).double(), FixedPointWeight()(x.double()))


@pytest.mark.parametrize(
    ("peak", "exponent"), [(1.0, 0), (1.001, 1), (0.5, -1), (3.0, 2), (4.0, 2), (0.0, -64), (1e-30, -64)]
)
def test_exponents(peak, exponent):
    assert exponent_of(torch.tensor([0.0, -peak]), "x") == exponent
    with pytest.raises(NonFiniteError, match="x: expected finite"):
        exponent_of(torch.tensor([peak, float("nan")]), "x")


def test_a_device_and_python_find_the_same_step():
    """Numbers on other devices are computed there, from bits; that code runs on a CPU, too."""
    from sparing.faults import number_format

    for peak in [0.0, 1e-30, 0.5, 0.500001, 1.0, 3.9, 4.0, 1e20]:
        assert float(number_format._step_of(torch.tensor(peak))) == number_format._step_of(float(torch.tensor(peak)))
    assert float(number_format._larger(torch.tensor(2.0), torch.tensor(float("nan")))) == 2.0


def test_a_network_computes_with_rounded_numbers(network, images):
    model, plain = network(), network()
    sites = fixed_point_(model, images)
    assert [s.output for s in sites] == ["bn1", "conv2", "bn3", "fc"]
    assert all(s.exponent is not None for s in sites[:3])
    with torch.no_grad():
        weight = {
            name: FixedPointWeight()(plain.get_submodule(name).weight) for name in ("conv1", "conv2", "conv3", "fc")
        }

        def features(x, at):
            step = 2.0 ** (sites[at].exponent - 7)
            return (x / step).round().clamp(-127, 127) * step

        x = nn.functional.conv2d(images, weight["conv1"], padding=1)
        x = features(plain.bn1(x), 0).relu()
        x = features(nn.functional.conv2d(x, weight["conv2"], plain.conv2.bias, stride=2, groups=4), 1).relu()
        x = features(plain.bn3(nn.functional.conv2d(x, weight["conv3"])), 2)
        x = nn.functional.linear(x.mean((2, 3)), weight["fc"], plain.fc.bias)
        assert torch.allclose(model(images), x, atol=1e-6)
        # Frozen: an image's result does not depend on the others.
        assert torch.allclose(model(images[:1] * 1.0), x[:1], atol=1e-6)


def test_training_takes_the_range_of_the_batch_and_remembers_it(network, images):
    model = network()
    fixed_point_(model, images)
    features = model.conv2.fixed_point
    calibrated = float(features.peak)
    model.train()
    model.bn1.eval()  # so that the size of the images matters
    seen = []
    model.relu2.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    model(images * 0.1)
    largest = float(seen[0].abs().max())
    assert features.latest <= largest < features.latest * 128
    assert float(features.peak) == pytest.approx(calibrated * 0.99)
    model(images * 50)
    assert float(features.peak) >= float(seen[1].abs().max()) * 0.99
    assert float(features.step) == features.latest
    state = model.state_dict()
    again = network()
    fixed_point_(again, images)
    again.load_state_dict(state)
    model.eval()
    assert torch.equal(model(images), again(images))


def test_gradients_pass_as_if_nothing_was_rounded(network, images):
    model, plain = network(), network()
    fixed_point_(model, images)
    model.fc.weight.sum().backward()
    assert torch.equal(model.fc.parametrizations.weight.original.grad, torch.ones(5, 6))
    x = images.clone().requires_grad_()
    model.bn1(x.new_ones(2, 8, 3, 3).requires_grad_())
    inner = torch.randn(2, 8, 3, 3).requires_grad_()
    for net in (model, plain):
        net.bn1(inner).sum().backward()
    assert torch.equal(
        inner.grad,
        2
        * (plain.bn1.weight / (plain.bn1.running_var + plain.bn1.eps).sqrt())
        .detach()[None, :, None, None]
        .expand_as(inner),
    )


def test_it_trains(network, images):
    model = network().train()
    fixed_point_(model, images)
    assert all(module.training for module in model.modules())
    labels = torch.arange(12) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = float(model.bn1.num_batches_tracked)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert float(model.bn1.num_batches_tracked) == before + 60


@pytest.mark.parametrize("fault", [StuckAt(rate=1.0, share_high=0.0), StuckAt(rate=0.3, form="bit")])
def test_faults_do_not_move_the_range_of_the_others(network, images, fault):
    """The largest weight is gone; every weight that is not hit is what it was, in training as in evaluation."""
    model = network()
    fixed_point_(model, images)
    layer = model.conv1
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.flatten()[5] = 3.0
    clean = layer.weight.detach().clone()
    for mode in (True, False):
        model.train(mode)
        with inject(model, fault, include=["conv1"], seed=3) as injection:
            faulty = layer.weight.detach().clone()
            with inject(model, StuckAt(rate=0.01), include=["conv1"], seed=4):
                assert (layer.weight.detach() != faulty).sum() < 20
        unhit = original.numel() - injection.hits["conv1"]
        assert int((faulty == clean).sum()) >= unhit
        assert torch.equal(faulty * 2**5, (faulty * 2**5).round())  # multiples of the same step, 4 / 128
        assert torch.equal(layer.weight, clean)


def test_faults_do_not_move_the_peaks_of_features(network, images):
    model = network().train()
    fixed_point_(model, images)
    peaks = [float(model.get_submodule(s.output).fixed_point.peak) for s in fault_sites(model)[:3]]
    with inject(model, StuckAt(rate=0.5) + BitBias(p=0.5)):
        model(images)
    assert peaks == [float(model.get_submodule(s.output).fixed_point.peak) for s in fault_sites(model)[:3]]


def test_everything_comes_back(network, images):
    model, plain = network(), network()
    fixed_point_(model, images)
    assert is_fixed_point(model)
    copied = copy.deepcopy(model)
    expected = copied(images)
    remove_fixed_point_(model)
    assert not is_fixed_point(model)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))
    assert torch.equal(model(images), plain(images))
    assert not any(module._forward_hooks for module in model.modules())
    assert type(model.conv1) is nn.Conv2d
    # A copy is a network of its own.
    assert torch.equal(copied(images), expected)
    assert copied.bn1.fixed_point.layer is copied.conv1


def test_new_ranges(network, images):
    model = network()
    fixed_point_(model, images)
    small = float(model.bn1.fixed_point.peak)
    calibrate_(model, [images * 4, images])
    assert float(model.bn1.fixed_point.peak) == pytest.approx(small * 4, rel=0.1)
    large = [value.clone() for value in model.state_dict().values()]
    for bad in (images * float("nan"), images * 3e38):
        with pytest.raises(NonFiniteError):
            calibrate_(model, [images, bad])
        assert all(torch.equal(a, b) for a, b in zip(large, model.state_dict().values(), strict=True))
    with pytest.raises(ArgumentError, match="already"):
        fixed_point_(model, images)
    with pytest.raises(ArgumentError, match="expected a fixed-point model"):
        calibrate_(network(), images)
    with pytest.raises(ArgumentError, match="at least one batch"):
        calibrate_(model, [])


def test_nothing_changes_on_an_error(network, images):
    model = network()
    names = list(model.state_dict())
    for bad, error in ((images * float("nan"), NonFiniteError), ([images, images * float("inf")], NonFiniteError)):
        with pytest.raises(error):
            fixed_point_(model, bad)
        assert not is_fixed_point(model)
        assert list(model.state_dict()) == names
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="weight of fc"):
        fixed_point_(model, images)
    assert list(model.state_dict()) == names


def test_autocast_rounds_in_bfloat16(network, images):
    model = network()
    fixed_point_(model, images)
    seen = []
    model.relu1.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(images)
    codes = seen[0].double() / float(model.bn1.fixed_point.step)
    assert seen[0].dtype == torch.bfloat16
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= 127


class Activated(nn.Conv2d):
    """A convolution whose output is kept for gradients, by the activation, and by a term of the loss."""

    def forward(self, x):
        y = torch.sigmoid(super().forward(x))
        self.penalty = y.square().sum()
        return y


@pytest.mark.parametrize("where", ["module", "hook", "plain"])
@pytest.mark.parametrize("kind", ["fixed", "faulty", "both"])
def test_what_gradients_need_is_not_written_over(where, kind):
    torch.manual_seed(0)
    first = (Activated if where == "module" else nn.Conv2d)(3, 4, 3)
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(144, 2))
    if where == "hook":
        first.register_forward_hook(lambda _, __, output: torch.sigmoid(output))
    x = torch.randn(5, 3, 8, 8)
    if kind != "faulty":
        fixed_point_(model, x)
    seen = []
    first.register_forward_hook(lambda _, __, output: seen.append(output) if where == "hook" else None)
    fault = BitBias(p=0.2 if kind != "fixed" else 0.0)
    with inject(model, fault, example=x) as injection:
        model(x).sum().backward()
    assert (injection.hits["0"] > 0) == (kind != "fixed")
    # Straight through: the gradient of the first layer does not know of rounding or faults behind it.
    weight = model[2].weight.detach()
    twin = nn.Conv2d(3, 4, 3)
    twin.load_state_dict({"weight": first.weight.detach(), "bias": first.bias.detach()})
    y = twin(x) if where == "plain" else torch.sigmoid(twin(x))
    (y.flatten(1) @ weight.t()).sum().backward()
    torch.testing.assert_close(first.bias.grad, twin.bias.grad)


def test_the_usual_path_makes_no_copy(network, images):
    model = network()
    fixed_point_(model, images)
    given = torch.randn(2, 8, 4, 4, requires_grad=True) * 1
    for name in ("bn1", "conv2"):
        assert writable(model.get_submodule(name), given) is given
    model.conv2.register_forward_hook(lambda _, __, output: None)
    assert writable(model.conv2, given) is not given
    with torch.no_grad():
        assert writable(model.conv2, given) is given
