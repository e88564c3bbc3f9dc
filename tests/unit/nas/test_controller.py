"""The policy: probabilities that add up, draws that follow them, and a reward that is learned."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError  # noqa: E402
from sparing.nas.controller import Controller, policy_step_  # noqa: E402


def tiny(**settings):
    return Controller(2, **{"cell_types": 1, "num_nodes": 1, "hidden": 8, "temperature": 1.0, "seed": 3, **settings})


def every_decision():
    """All of a cell with one node: two inputs, two primitives, twice."""
    return [np.array(c, np.int64).reshape(1, 1, 2, 2) for c in itertools.product(range(2), repeat=4)]


def test_probabilities_of_all_decisions_add_up_to_one():
    controller = tiny()
    torch.nn.init.normal_(controller.head.weight)
    total = sum(float(controller(decisions)[0].detach().exp()) for decisions in every_decision())
    assert total == pytest.approx(1.0, abs=1e-5)


def test_draws_follow_the_probabilities():
    controller = tiny()
    for parameter in controller.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    generator, n = torch.Generator().manual_seed(0), 600
    drawn = [controller.sample(generator).tobytes() for _ in range(n)]
    for decisions in every_decision():
        p = float(controller(decisions)[0].detach().exp())
        assert abs(drawn.count(decisions.tobytes()) / n - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-9


def test_an_untrained_policy_is_close_to_uniform():
    controller = Controller(8)
    decisions = controller.sample(torch.Generator().manual_seed(1))
    assert decisions.shape == (2, 4, 2, 2)
    uniform = 2 * 2 * sum(np.log(node + 2) + np.log(8) for node in range(4))
    log_p, entropy = (float(x.detach()) for x in controller(decisions))
    assert -log_p == pytest.approx(uniform, rel=0.02)
    assert entropy == pytest.approx(uniform, rel=0.001)
    assert (decisions[..., 0] < np.arange(4)[None, :, None] + 2).all()


def test_the_gradient_is_that_of_the_formula():
    """Against finite differences of -(R - b) log p - beta H."""
    controller, decisions = tiny().double(), every_decision()[6]
    weight = controller.head.bias
    steps = torch.optim.SGD(controller.parameters(), lr=1.0)
    before = weight.detach().clone()

    def loss():
        log_p, entropy = (x.detach() for x in controller(decisions))
        return float(-(0.8 - 0.3) * log_p - 0.05 * entropy)

    with torch.no_grad():
        weight[0] += 1e-6
        high = loss()
        weight[0] -= 2e-6
        low = loss()
        weight.copy_(before)
    baseline = policy_step_(controller, steps, decisions, 0.8, baseline=0.3, decay=0.9, entropy=0.05)
    assert float(before[0] - weight[0].detach()) == pytest.approx((high - low) / 2e-6, rel=1e-4)
    assert baseline == pytest.approx(0.9 * 0.3 + 0.1 * 0.8)


def test_the_first_reward_is_the_baseline():
    controller = tiny()
    steps = torch.optim.SGD(controller.parameters(), lr=1.0)
    before = [p.detach().clone() for p in controller.parameters()]
    assert policy_step_(controller, steps, every_decision()[0], 0.7, baseline=None, entropy=0.0) == pytest.approx(0.7)
    assert all(torch.equal(a, b) for a, b in zip(before, controller.parameters(), strict=True))


def test_a_reward_is_learned():
    """Primitive 1 everywhere is rewarded."""
    controller = tiny()
    steps = torch.optim.Adam(controller.parameters(), lr=0.02)
    generator, baseline = torch.Generator().manual_seed(0), None
    for _ in range(100):
        decisions = controller.sample(generator)
        reward = float(decisions[..., 1].mean())
        baseline = policy_step_(controller, steps, decisions, reward, baseline=baseline, decay=0.9)
    mean = np.mean([controller.sample(generator)[..., 1].mean() for _ in range(50)])
    assert mean > 0.9


def test_same_seed_same_policy():
    a, b = (Controller(3, num_nodes=2, hidden=6, seed=5) for _ in range(2))
    draws = [controller.sample(torch.Generator().manual_seed(2)) for controller in (a, b)]
    assert (draws[0] == draws[1]).all()
    before = torch.random.get_rng_state()
    Controller(3, num_nodes=2, hidden=6, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_is_refused():
    controller = tiny()
    with pytest.raises(ArgumentError, match="shape"):
        controller(np.zeros((2, 1, 2, 2), np.int64))
    with pytest.raises(ArgumentError, match="0 to 1"):
        controller(np.full((1, 1, 2, 2), 2))
    with pytest.raises(ArgumentError, match="finite"):
        policy_step_(controller, None, every_decision()[0], float("nan"), baseline=None)
    with pytest.raises(ArgumentError, match="1 or more"):
        Controller(0)
