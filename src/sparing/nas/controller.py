"""The policy of the paper's mode: an LSTM with attention draws cells, decision by decision, and learns from rewards.

====================  ==================================================================
in papers             here
====================  ==================================================================
controller            :class:`Controller`
anchor                state of the LSTM after a node, which later nodes attend to
b                     ``baseline``, moving mean of rewards
REINFORCE             :func:`policy_step_`
====================  ==================================================================

For each cell type and each inner node, twice: which earlier node (by attention over the anchors), then which
primitive. Sources: H. Pham et al., *Efficient Neural Architecture Search via Parameter Sharing*, 2018 (the network);
R. Williams, 1992 (REINFORCE); X. Ning et al., *FTT-NAS*, 2020 (sizes).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparing.errors import ArgumentError

__all__ = ["Controller", "policy_step_"]

_INITIAL_RANGE = 0.1


class Controller(nn.Module):
    """Draws cells, and says how likely cells are.

    Decisions are ``(cell_types, num_nodes, 2, 2)`` int64: for each of a node's two inputs the number of the earlier
    node (0 and 1 are the cell's inputs), then of the primitive.

    Args:
        num_primitives: to choose from, 1 or more.
        cell_types: kinds of cells; each begins with no anchors but the two inputs', the LSTM's state goes on.
        num_nodes: inner nodes of a cell.
        hidden: width.
        temperature: that all logits are divided by.
        seed: of the first weights.
    """

    def __init__(
        self,
        num_primitives: int,
        *,
        cell_types: int = 2,
        num_nodes: int = 4,
        hidden: int = 100,
        temperature: float = 5.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(num_primitives, cell_types, num_nodes, hidden) < 1:
            raise ArgumentError("num_primitives, cell_types, num_nodes, hidden: expected 1 or more of each")
        self.cell_types, self.num_nodes, self.temperature = cell_types, num_nodes, temperature
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.lstm = nn.LSTMCell(hidden, hidden)
            self.start = nn.Parameter(torch.empty(hidden))
            self.primitives = nn.Embedding(num_primitives, hidden)
            self.head = nn.Linear(hidden, num_primitives)
            self.anchor_keys = nn.Linear(hidden, hidden, bias=False)
            self.query = nn.Linear(hidden, hidden, bias=False)
            self.score = nn.Linear(hidden, 1, bias=False)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -_INITIAL_RANGE, _INITIAL_RANGE)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of decisions."""
        return self.cell_types, self.num_nodes, 2, 2

    @torch.no_grad()
    def sample(self, generator: torch.Generator) -> NDArray[np.int64]:
        """Draws one architecture's decisions.

        Args:
            generator: on the CPU; advanced.
        """
        return self._walk(None, generator)[0]

    def forward(self, decisions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Says how likely decisions are.

        Args:
            decisions: of :attr:`shape`.

        Returns:
            Natural logarithm of their probability, and the sum of the entropies (nats) of the choices on the way.

        Raises:
            ArgumentError: another shape, or a choice that there is not.
        """
        if decisions.shape != self.shape:
            raise ArgumentError(f"decisions: expected shape {self.shape}, got {decisions.shape}")
        _, log_probability, entropy = self._walk(decisions, None)
        return log_probability, entropy

    def _walk(
        self, given: NDArray[np.int64] | None, generator: torch.Generator | None
    ) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        decisions = np.zeros(self.shape, np.int64)
        state: tuple[Tensor, Tensor] | None = None
        x = self.start[None]
        totals: list[tuple[Tensor, Tensor]] = []

        def choose(logits: Tensor, at: tuple[int, ...]) -> int:
            log_p = torch.log_softmax(logits / self.temperature, 0)
            if given is not None:
                chosen = int(given[at])
                if not 0 <= chosen < len(log_p):
                    raise ArgumentError(f"decisions: expected 0 to {len(log_p) - 1} at {at}, got {chosen}")
            else:
                chosen = int(torch.multinomial(log_p.exp(), 1, generator=generator))
            decisions[at] = chosen
            totals.append((log_p[chosen], -(log_p.exp() * log_p).sum()))
            return chosen

        for kind in range(self.cell_types):
            anchors: list[Tensor] = []
            for _ in range(2):
                state = self.lstm(x, state)
                anchors.append(state[0])
                x = self.start[None]
            for node in range(self.num_nodes):
                for branch in range(2):
                    state = self.lstm(x, state)
                    keys = self.anchor_keys(torch.cat(anchors))
                    logits = self.score(torch.tanh(keys + self.query(state[0])))[:, 0]
                    x = anchors[choose(logits, (kind, node, branch, 0))]
                    state = self.lstm(x, state)
                    primitive = choose(self.head(state[0])[0], (kind, node, branch, 1))
                    x = self.primitives.weight[primitive][None]
                state = self.lstm(x, state)
                anchors.append(state[0])
                x = self.start[None]
        log_probability = torch.stack([total[0] for total in totals]).sum()
        return decisions, log_probability, torch.stack([total[1] for total in totals]).sum()


def policy_step_(
    controller: Controller,
    optimizer: torch.optim.Optimizer,
    decisions: NDArray[np.int64],
    reward: float,
    *,
    baseline: float | None,
    decay: float = 0.99,
    entropy: float = 0.01,
) -> float:
    """Makes decisions likelier that were rewarded above the baseline, and others less likely.

    Args:
        controller: one step is made.
        optimizer: of its parameters.
        decisions: that were drawn.
        reward: for them, finite.
        baseline: before; None at the first step, whose reward then is the baseline.
        decay: of the baseline.
        entropy: weight of the entropy, which keeps choices open.

    Returns:
        The new baseline, decay·baseline + (1 − decay)·reward.

    Raises:
        ArgumentError: a reward that is not finite.
    """
    if not math.isfinite(reward):
        raise ArgumentError(f"reward: expected a finite number, got {reward}")
    before = reward if baseline is None else baseline
    log_probability, uncertainty = controller(decisions)
    loss = -(reward - before) * log_probability - entropy * uncertainty
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return decay * before + (1 - decay) * reward
