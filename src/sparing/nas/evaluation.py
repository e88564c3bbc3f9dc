"""How good an architecture is by the shared weights: always the same images under the same draws of faults.

Batch norms of the supernet carry the statistics of whatever was sampled last. An architecture gets its own, and its own
ranges of features, from one batch of calibration images without faults; then it is judged in evaluation mode, with
frozen statistics, as a finished network would be. Statistics taken under faults would hide what the faults do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparing.errors import ArgumentError
from sparing.faults import FaultModel, inject
from sparing.faults.sites import fixed_point_features
from sparing.nas.archive import Evaluated
from sparing.nas.cost import NetworkCost
from sparing.nas.search_config import SearchConfig
from sparing.nas.space import SearchSpace
from sparing.nas.supernet import Supernet
from sparing.vision import ImageDataset, to_float

__all__ = ["Evaluator", "Measured", "batches_of", "calibrate_architecture_", "measure", "one_thread", "supernet_of"]


@dataclass(frozen=True)
class Measured:
    """Accuracies of an architecture.

    Attributes:
        clean_accuracy: 0 to 1.
        faulty_accuracies: of each draw.
    """

    clean_accuracy: float
    faulty_accuracies: tuple[float, ...]

    @property
    def faulty_accuracy(self) -> float:
        """Mean of the draws; without any the clean accuracy."""
        return float(np.mean(self.faulty_accuracies)) if self.faulty_accuracies else self.clean_accuracy

    def reward(self, share: float) -> float:
        """(1 − share)·clean + share·faulty."""
        return (1 - share) * self.clean_accuracy + share * self.faulty_accuracy

    def recorded(
        self,
        number: int,
        vector: tuple[int, ...],
        cost: NetworkCost,
        config: SearchConfig,
        *,
        step: int,
        stage: Literal["search", "policy"] = "search",
        size: tuple[int, int] | None = None,
    ) -> Evaluated:
        """The line of the archive.

        Args:
            number: place in the archive, from 0.
            vector: the architecture.
            cost: of its final network.
            config: of the search.
            step: of the training that gave the weights.
            stage: see :class:`~sparing.nas.archive.Evaluated`.
            size: cells and channels of that network; None: as configured.
        """
        num_cells, channels = size or (config.num_cells, config.channels)
        return Evaluated(
            number=number,
            stage=stage,
            step=step,
            vector=vector,
            genotype=SearchSpace(config.space).decode(vector),
            num_cells=num_cells,
            channels=channels,
            num_macs=cost.num_macs,
            num_parameters=cost.num_parameters,
            clean_accuracy=self.clean_accuracy,
            faulty_accuracies=self.faulty_accuracies,
            reward=self.reward(config.evaluation.reward_share),
        )


@torch.no_grad()
def calibrate_architecture_(network: nn.Module, images: Tensor) -> None:
    """Takes batch statistics and ranges of features from one batch without faults, and goes to evaluation mode.

    Args:
        network: with batch norms, fixed-point or not; nothing of what it held before is left in either.
        images: n × 3 × h × w floats.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.train()
    dropouts = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    for module in dropouts:
        module.eval()
    for _, features in fixed_point_features(network):
        features.peak.zero_()
    try:
        for norm in norms:
            norm.momentum = 1.0
        network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()


@torch.no_grad()
def measure(
    network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], fault: FaultModel, *, seed: int, draws: Sequence[int]
) -> Measured:
    """Accuracies of a network in evaluation mode.

    Args:
        network: a fixed-point model, or one under faults of weights.
        batches: images n × 3 × h × w and labels (n,), on the network's device.
        fault: what goes wrong.
        seed: 0 or more.
        draws: their numbers; the faults of a layer follow from seed, draw and the layer's name alone.
    """
    clean = _accuracy(network, batches)
    faulty = []
    for draw in draws:
        with inject(network, fault, seed=seed, draw=draw):
            faulty.append(_accuracy(network, batches))
    return Measured(clean, tuple(faulty))


class Evaluator:
    """Judges architectures of one supernet; may be sent to other processes, and gives the same numbers there.

    In one thread of PyTorch's, whatever the process has, since sums depend on how many there are.

    Args:
        supernet: trained.
        config: of the search.
        calibration: images for weights, from which the first are taken.
        held_out: images to judge by, from which the first are taken.
    """

    def __init__(
        self,
        supernet: Supernet,
        config: SearchConfig,
        *,
        calibration: ImageDataset,
        held_out: ImageDataset,
    ) -> None:
        self._supernet: Supernet | None = supernet
        self._num_classes = held_out.num_classes
        self._space, self._config = SearchSpace(config.space), config
        self._calibration = calibration.images[: config.evaluation.calibration_images]
        self._held_out = held_out
        self._state: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # Parametrized layers are not to be pickled, their weights are.
        tensors = self.supernet.state_dict()
        state["_state"] = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        state["_supernet"] = None
        return state

    @property
    def supernet(self) -> Supernet:
        """The supernet, made anew in another process."""
        if self._supernet is None:
            if self._state is None:
                raise AssertionError("unreachable: pickled with its state")
            supernet = supernet_of(self._config, self._num_classes)
            supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            supernet.load_state_dict({name: torch.from_numpy(array) for name, array in self._state.items()})
            self._supernet, self._state = supernet, None
        return self._supernet

    def __call__(self, vector: Sequence[int]) -> Measured:
        """Judges by the images and draws of the settings."""
        evaluation = self._config.evaluation
        return self.measure(vector, images=evaluation.images, draws=range(evaluation.draws))

    def measure(self, vector: Sequence[int], *, images: int | np.ndarray[Any, Any], draws: Sequence[int]) -> Measured:
        """Judges by other images or draws.

        Args:
            vector: the architecture.
            images: how many of the held-out ones, or which.
            draws: of faults, by number.

        Raises:
            ArgumentError: no such architecture, or no images.
        """
        chosen = np.arange(min(images, len(self._held_out))) if isinstance(images, int) else images
        if not len(chosen):
            raise ArgumentError("images: expected at least one")
        supernet = self.supernet
        genotype = self._space.decode(np.asarray(vector, np.int64))
        device = next(supernet.parameters()).device
        with one_thread():
            network = supernet.path(genotype)
            calibrate_architecture_(network, _floats(self._calibration, device))
            batches = batches_of(self._held_out, chosen, self._config.evaluation.batch_size, device)
            try:
                return measure(network, batches, self._config.fault, seed=self._config.seed, draws=draws)
            finally:
                network.train()


def batches_of(
    dataset: ImageDataset, chosen: npt.ArrayLike, batch_size: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Images n × 3 × h × w as networks take them, and their labels, batch by batch.

    Args:
        dataset: where they are from.
        chosen: which, by number.
        batch_size: at most, in batches of nearly equal size.
        device: where they go.
    """
    numbers = np.asarray(chosen)
    return [
        (_floats(dataset.images[part], device), torch.from_numpy(dataset.labels[part]).to(device))
        for part in np.array_split(numbers, -(-len(numbers) // batch_size))
    ]


def supernet_of(config: SearchConfig, num_classes: int) -> Supernet:
    """Builds the supernet of a search, with its first weights."""
    return Supernet(
        config.space,
        num_classes=num_classes,
        channels=config.channels,
        num_cells=config.num_cells,
        image_size=config.image_size,
        dropout=config.supernet.dropout,
        seed=config.seed,
    )


def _accuracy(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    right = []
    for x, labels in batches:
        logits = network(x)
        # argmax takes NaN for the largest.
        right.append(((logits.argmax(1) == labels) & logits.isfinite().all(1)).sum())
    return int(torch.stack(right).sum()) / sum(len(labels) for _, labels in batches)


def _floats(images: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    return to_float(images, device).contiguous(memory_format=torch.channels_last)


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets PyTorch compute in one thread: sums depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
