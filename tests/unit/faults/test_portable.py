"""Networks with parametrizations go to other processes as bytes and come back the same, with memory of their own."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402
from torch.nn.utils.parametrizations import orthogonal  # noqa: E402

from sparing.errors import ArgumentError  # noqa: E402
from sparing.faults.fixed_point import fixed_point_, is_fixed_point, remove_fixed_point_  # noqa: E402
from sparing.faults.injection import inject  # noqa: E402
from sparing.faults.models import BitFlip  # noqa: E402
from sparing.faults.portable import network_from_bytes, network_to_bytes  # noqa: E402


@pytest.fixture
def model():
    torch.manual_seed(0)
    # Without batch norm the rounding hangs on the convolution itself and refers back to it.
    found = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )
    orthogonal(found[5])
    fixed_point_(found.eval(), torch.randn(8, 3, 6, 6))
    return found


def test_the_same_network(model):
    copy = network_from_bytes(network_to_bytes(model))
    x = torch.randn(5, 3, 6, 6)
    assert torch.equal(copy(x), model(x))
    assert copy.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(copy.state_dict().values(), model.state_dict().values(), strict=True))
    assert [name for name, _ in copy.named_modules()] == [name for name, _ in model.named_modules()]
    assert [m.training for m in copy.modules()] == [m.training for m in model.modules()]
    assert copy[3].fixed_point.layer is copy[3]
    assert copy[1].fixed_point.layer is copy[0]
    assert parametrize.type_before_parametrizations(copy[0]) is nn.Conv2d
    assert torch.equal(network_from_bytes(network_to_bytes(copy))(x), model(x))


def test_its_own_memory(model):
    copy, x = network_from_bytes(network_to_bytes(model)), torch.randn(5, 3, 6, 6)
    before = model(x)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert torch.equal(model(x), before)
    assert not torch.equal(copy(x), before)


@pytest.mark.parametrize("where", ["weights", "features"])
def test_the_same_faults(model, where):
    copy, x = network_from_bytes(network_to_bytes(model)), torch.randn(5, 3, 6, 6)
    found = []
    for network in (model, copy):
        with torch.no_grad(), inject(network, BitFlip(p=0.05, where=where), seed=3):
            found.append(network(x))
    assert torch.equal(*found)
    assert not torch.equal(found[0], model(x))


def test_it_can_be_taken_back(model):
    copy = network_from_bytes(network_to_bytes(model))
    remove_fixed_point_(copy)
    assert not is_fixed_point(copy)
    assert is_fixed_point(model)


def test_gradients(model):
    copy, x = network_from_bytes(network_to_bytes(model)), torch.randn(5, 3, 6, 6)
    for network in (model, copy):
        network(x).sum().backward()
    for a, b in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_what_cannot_go():
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(ArgumentError, match=r"model: Linear cannot be sent to other processes: .*use one worker"):
        network_to_bytes(model)
