"""Poolings and sums between layers, as a dry run finds them."""

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from sparing.pim.layers import trace_layers  # noqa: E402


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = F.max_pool2d(self.a(x), 3, stride=2, padding=1, ceil_mode=True)
        x = F.avg_pool2d(self.b(x), (2, 1))
        x = F.adaptive_avg_pool2d(x, (2, 2))
        x = F.adaptive_max_pool2d(x, 1)
        return self.fc(x.flatten(1))


def test_poolings_of_every_kind():
    steps = {step.name: step for step in trace_layers(Pools(), (3, 16, 16)).steps}
    assert list(steps) == ["a", "pool:1", "b", "pool:2", "pool:3", "pool:4", "fc"]
    pool = steps["pool:1"]
    assert (pool.kind, pool.channels, pool.kernel, pool.stride, pool.padding) == ("pool", 4, (3, 3), (2, 2), (1, 1))
    assert (pool.in_size, pool.out_size) == ((16, 16), (9, 9))
    assert (steps["pool:2"].kernel, steps["pool:2"].stride, steps["pool:2"].out_size) == ((2, 1), (2, 1), (4, 9))
    assert (steps["pool:3"].kernel, steps["pool:3"].out_size) == ((2, 5), (2, 2))
    assert (steps["pool:4"].kernel, steps["pool:4"].out_size) == ((2, 2), (1, 1))
    assert [step.inputs for step in steps.values()] == [
        *[("",), ("a",), ("pool:1",), ("b",), ("pool:2",), ("pool:3",), ("pool:4",)],
    ]


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(1),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean((-1, -2), keepdim=True),
        lambda x: x.amax((2, 3)),
    ],
)
def test_a_mean_over_the_map_is_a_pooling(pool):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(pool(self.a(x)).flatten(1))

    found = trace_layers(Head(), (3, 5, 6)).steps[1]
    assert (found.kind, found.kernel, found.in_size, found.out_size) == ("pool", (5, 6), (5, 6), (1, 1))


def test_a_pooling_that_changes_nothing_is_none():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d((5, 6)), nn.Conv2d(4, 4, 1))
    assert [(step.name, step.inputs) for step in trace_layers(model, (3, 5, 6)).steps] == [("0", ("",)), ("2", ("0",))]


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x):
        a = self.a(x) + self.scale  # no sum of two maps
        a = a + a[:, :1]
        b = self.b(a).add_(1)
        b += a
        return self.c(torch.relu(b) + b * a.mean((2, 3), keepdim=True) + 0.5)


def test_sums_of_two_maps_only():
    steps = {step.name: step for step in trace_layers(Sums(), (3, 6, 6)).steps}
    assert list(steps) == ["a", "b", "sum:1", "pool:1", "sum:2", "c"]
    assert steps["sum:1"].inputs == ("a", "b")
    assert steps["sum:2"].inputs == ("pool:1", "sum:1")
    assert (steps["sum:2"].channels, steps["sum:2"].out_size) == (4, (6, 6))
    assert steps["c"].inputs == ("sum:2",)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.up = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 8)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return tokens + self.up(tokens)


def test_sums_of_vectors_in_rows():
    *_, found = trace_layers(Tokens(), (3, 16, 16)).steps
    assert (found.kind, found.channels, found.out_size, found.inputs) == ("sum", 8, (1, 16), ("patch", "up"))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.b(self.a(self.a(x)) + x)


def test_a_layer_that_is_called_twice_is_one_step():
    steps = trace_layers(Twice(), (3, 4, 4)).steps
    assert [(step.name, step.num_calls, step.inputs) for step in steps] == [
        ("a", 2, ("", "a")),
        ("sum:1", 1, ("", "a")),
        ("b", 1, ("sum:1",)),
    ]
    assert steps[0].num_pixels == 32


def test_layers_keep_their_inputs_and_steps_have_their_sizes():
    network = trace_layers(Pools(), (3, 16, 16))
    assert [layer.inputs for layer in network.layers] == [("",), ("a",), ("b",)]
    for layer in network.layers:
        (found,) = [step for step in network.steps if step.name == layer.name]
        assert found == layer.as_step(found.inputs)
        assert (found.channels, found.num_pixels) == (layer.out_channels, layer.num_pixels)
