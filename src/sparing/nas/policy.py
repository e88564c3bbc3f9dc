"""The paper's mode: the supernet's weights and the policy that draws architectures learn in turn."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparing.errors import ConfigError, FormatError
from sparing.nas.controller import Controller, policy_step_
from sparing.nas.evaluation import Evaluator, Measured
from sparing.nas.genotype import NUM_INNER
from sparing.nas.search_config import SearchConfig
from sparing.nas.space import SearchSpace
from sparing.runs import Checkpoint, load_optimizer_, optimizer_tensors
from sparing.vision import EpochSampler, ImageDataset, stream_generator

__all__ = ["PolicySearch"]

# Streams of chance; those below are in supernet_training.py.
_FOR_WEIGHTS, _FOR_POLICY, _FOR_SAMPLES, _CONTROLLER = 11, 12, 13, 14
_ATTEMPTS = 1000


class PolicySearch:
    """The policy, its optimizer and baseline, and where they stand. It stays on the CPU.

    Args:
        space: that architectures are of.
        config: of the search.
        held_out: images that rewards are accuracies on.
        is_allowed: whether a vector is within the budget; what is not is drawn again.

    Attributes:
        step: steps of the policy done.
        steps_per_epoch: after each epoch of the weights.
    """

    def __init__(
        self,
        space: SearchSpace,
        config: SearchConfig,
        held_out: ImageDataset,
        *,
        is_allowed: Callable[[tuple[int, ...]], bool],
    ) -> None:
        self._space, self._config, self._is_allowed = space, config, is_allowed
        settings = config.controller
        seed = stream_generator(config.seed, _CONTROLLER).initial_seed()
        self.controller = Controller(
            len(space.primitives),
            num_nodes=NUM_INNER,
            hidden=settings.hidden,
            temperature=settings.temperature,
            seed=seed,
        )
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=settings.learning_rate)
        self.baseline: float | None = None
        self.step = 0
        self._sampler = EpochSampler(len(held_out), min(settings.batch_size, len(held_out)), seed=config.seed + 1)
        self.steps_per_epoch = settings.steps or self._sampler.steps_per_epoch

    def for_weights(self, step: int) -> tuple[int, ...]:
        """Draws the architecture whose weights step `step` trains."""
        return self._draw(_FOR_WEIGHTS, step)[1]

    def samples(self) -> list[tuple[int, ...]]:
        """Draws from the policy as it is, to choose among."""
        count = self._config.controller.samples
        return list(dict.fromkeys(self._draw(_FOR_SAMPLES, number)[1] for number in range(count)))

    def learn_(self, evaluator: Evaluator) -> tuple[tuple[int, ...], Measured]:
        """Draws an architecture, judges it by the next batch of held-out images under a draw of faults, learns from it.

        Returns:
            The vector, and what was measured.
        """
        settings = self._config.controller
        decisions, vector = self._draw(_FOR_POLICY, self.step)
        images = self._sampler.indices(self.step).numpy()
        measured = evaluator.measure(vector, images=images, draws=(self.step,))
        self.baseline = policy_step_(
            self.controller,
            self.optimizer,
            decisions,
            measured.reward(self._config.evaluation.reward_share),
            baseline=self.baseline,
            decay=settings.baseline_decay,
            entropy=settings.entropy,
        )
        self.step += 1
        return vector, measured

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by name."""
        held = {f"controller.{name}": tensor for name, tensor in self.controller.state_dict().items()}
        return held | {f"policy.{name}": tensor for name, tensor in optimizer_tensors(self.optimizer)[0].items()}

    def state(self) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        return {"optimizer": optimizer_tensors(self.optimizer)[1], "step": self.step, "baseline": self.baseline}

    def load_(self, found: Checkpoint, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises:
            FormatError: it does not fit.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in found.tensors.items() if n.startswith(prefix)}

        try:
            load_optimizer_(self.optimizer, part("policy."), state["optimizer"])
            self.controller.load_state_dict(part("controller."))
            self.step, self.baseline = int(state["step"]), state["baseline"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise FormatError(f"checkpoint: does not fit this search: {error}") from error

    def _draw(self, stream: int, number: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        generator = stream_generator(self._config.seed, stream, number)
        for _ in range(_ATTEMPTS):
            decisions = self.controller.sample(generator)
            vector = tuple(self._space.canonical(decisions).tolist())
            if self._is_allowed(vector):
                return decisions, vector
        raise ConfigError(
            f"max_macs, max_parameters: the policy drew {_ATTEMPTS} architectures, and none is within "
            f"{self._config.max_macs} MACs and {self._config.max_parameters} parameters"
        )
