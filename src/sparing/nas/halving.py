"""Successive halving: architectures are trained alone, many for a short time, the better of them for longer.

Each has weights of its own and is judged as a finished network would be, so that nothing depends on how well shared
weights stand for them; in return few are tried. Every round trains from new weights, on the whole of a learning rate's
cycle: a network in mid-cycle says little. Within a budget each is as wide as it allows.

Source: K. Jamieson and A. Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter Optimization*, 2016.
"""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sparing.errors import ArgumentError, ConfigError, NonFiniteError
from sparing.nas.archive import Evaluated, SearchFolder, best_first
from sparing.nas.cost import network_cost
from sparing.nas.cost_table import widest_channels
from sparing.nas.evaluation import Measured, batches_of, measure, one_thread
from sparing.nas.final_training import FinalTrainingConfig, trained_network
from sparing.nas.search_config import SearchConfig
from sparing.nas.space import SearchSpace
from sparing.runs import Progress, Shared, open_executor
from sparing.vision import ImageDataset

__all__ = ["Candidate", "Rounds", "halve"]

_CANDIDATES = 31
"""Stream of chance."""
_LEAST_BATCH = 2
_ATTEMPTS = 100
"""Draws for each architecture that is wanted."""


class Candidate(NamedTuple):
    """An architecture, how deep and how wide it is.

    Attributes:
        vector: its options.
        num_cells: in a row.
        channels: C.
    """

    vector: tuple[int, ...]
    num_cells: int
    channels: int


class Rounds:
    """Trains and judges architectures; may be sent to other processes, and gives the same numbers there.

    Args:
        config: of the search.
        weights: images to train on.
        held_out: images to judge by, from which the first are taken.
        device: where to train.
        folder: for checkpoints of trainings that are under way.
        checkpoint_steps: steps of a training between them; None: one an epoch.

    Attributes:
        config: as given.
        folder: as given.
        candidates: of the first round.
        steps: of a training of each round.

    Raises:
        ArgumentError: too few images for rounds of growing length, or too small ones.
        ConfigError: too few architectures within the budget were found.
    """

    def __init__(
        self,
        config: SearchConfig,
        weights: ImageDataset,
        held_out: ImageDataset,
        *,
        device: torch.device,
        folder: Path,
        checkpoint_steps: int | None = None,
    ) -> None:
        self.config, self.folder, self._held_out, self._device = config, folder, held_out, device
        self._images, self._trainings = [], []
        for epochs in config.halving.epochs:
            # Whole epochs share the images: copies would be sent to every worker.
            part = weights if epochs >= 1 else weights.subset(range(max(1, round(epochs * len(weights)))))
            training = config.halving.training.model_copy(
                update={
                    "epochs": max(1, round(epochs)),
                    "batch_size": min(config.halving.training.batch_size, len(part)),
                    "seed": config.seed,
                    "precision": config.precision,
                    "checkpoint_steps": checkpoint_steps or config.halving.training.checkpoint_steps,
                }
            )
            if training.batch_size < _LEAST_BATCH:
                raise ArgumentError(
                    f"dataset: expected at least {_LEAST_BATCH} images a step in each round, for batch norms, got "
                    f"{len(part)} images and batches of {training.batch_size}"
                )
            if training.crop_padding >= config.image_size and training.crop_mode == "reflect":
                raise ArgumentError(
                    f"halving.training.crop_padding: expected less than the {config.image_size} pixels of image_size, "
                    f"got {training.crop_padding}"
                )
            self._images.append(part)
            self._trainings.append(training)
        pairs = zip(self._images, self._trainings, strict=True)
        self.steps = tuple(training.epochs * (len(part) // training.batch_size) for part, training in pairs)
        if any(later <= sooner for sooner, later in itertools.pairwise(self.steps)):
            raise ArgumentError(
                f"dataset: expected enough images for rounds of ever more steps, got {len(weights)} for weights, which "
                f"are {self.steps} steps of {config.halving.training.batch_size}"
            )
        self.candidates = _drawn(config, held_out.num_classes)

    def record(self, number: int, step: int, candidate: Candidate, measured: Measured) -> Evaluated:
        """A line of the archive."""
        config, genotype = self.config, SearchSpace(self.config.space).decode(candidate.vector)
        cost = network_cost(
            genotype,
            image_size=config.image_size,
            channels=candidate.channels,
            num_cells=candidate.num_cells,
            num_classes=self._held_out.num_classes,
        )
        size = candidate.num_cells, candidate.channels
        return measured.recorded(number, candidate.vector, cost, config, step=step, size=size)

    def checkpoints(self, number: int, candidate: Candidate) -> Path:
        """The folder of one training's checkpoints."""
        return self.folder / "-".join(map(str, (number, candidate.num_cells, candidate.channels, *candidate.vector)))

    def __call__(self, number: int, candidate: Candidate) -> Measured:
        """Trains an architecture as a round says, and judges it.

        Args:
            number: of the round, from 0.
            candidate: the architecture.

        Returns:
            Accuracies on held-out images; 0 where the training diverged.
        """
        config, halving = self.config, self.config.halving
        final = FinalTrainingConfig(
            channels=candidate.channels,
            num_cells=candidate.num_cells,
            image_size=config.image_size,
            fault=config.fault,
            loss_share=halving.loss_share,
            weight_limit=halving.weight_limit,
            calibration_images=config.evaluation.calibration_images,
            training=self._trainings[number],
        )
        genotype = SearchSpace(config.space).decode(candidate.vector)
        images = range(min(halving.images, len(self._held_out)))
        with one_thread():
            try:
                network, _ = trained_network(
                    genotype,
                    self._images[number],
                    config=final,
                    device=self._device,
                    checkpoint_folder=self.checkpoints(number, candidate),
                )
            except NonFiniteError:
                return Measured(0.0, (0.0,) * halving.draws)
            batches = batches_of(self._held_out, images, config.evaluation.batch_size, self._device)
            return measure(network, batches, config.fault, seed=config.seed, draws=range(halving.draws))


def halve(
    folder: SearchFolder, rounds: Rounds, *, workers: int, progress: Progress, after: Callable[[], object]
) -> list[Evaluated]:
    """Goes through all rounds; what is in the archive already is not trained again.

    Args:
        folder: whose archive it is.
        rounds: what trains and judges.
        workers: processes.
        progress: called with ``("round 1 of 3", done, total)`` and so on.
        after: called after each new line of the archive.

    Returns:
        The last round, by falling reward.

    Raises:
        NonFiniteError: every training of a round diverged.
    """
    known = {(record.vector, record.step): record for record in folder.records}
    candidates, best = rounds.candidates, list[Evaluated]()
    with open_executor(workers, shared=rounds, threads=1) as executor:
        for number, step in enumerate(rounds.steps):
            candidates = candidates[: rounds.config.halving.candidates[number]]
            new = [one for one in candidates if (one.vector, step) not in known]
            found = executor.map(_trained, [executor.shared] * len(new), [number] * len(new), new)
            for done, one in enumerate(candidates, 1):
                if (one.vector, step) not in known:
                    record = rounds.record(len(folder.records), step, one, next(found))
                    folder.append(record)
                    shutil.rmtree(rounds.checkpoints(number, one), ignore_errors=True)
                    known[one.vector, step] = record
                    after()
                progress(f"round {number + 1} of {len(rounds.steps)}", done, len(candidates))
            best = sorted((known[one.vector, step] for one in candidates), key=best_first)
            if not best[0].clean_accuracy:
                raise NonFiniteError(
                    f"every network of round {number + 1} diverged or classified nothing: lower "
                    f"halving.training.learning_rate, {rounds.config.halving.training.learning_rate} now"
                )
            candidates = [Candidate(one.vector, one.num_cells, one.channels) for one in best]
    shutil.rmtree(rounds.folder, ignore_errors=True)
    return best


def _drawn(config: SearchConfig, num_classes: int) -> list[Candidate]:
    """The first round's architectures: by chance, each once, within the budget."""
    space, rng = SearchSpace(config.space), np.random.default_rng([config.seed, _CANDIDATES])
    limits = {"max_macs": config.max_macs, "max_parameters": config.max_parameters}
    found: dict[tuple[int, ...], Candidate] = {}
    for _ in range(_ATTEMPTS * config.halving.candidates[0]):
        genotype = space.random(rng)
        vector = tuple(space.encode(genotype).tolist())
        num_cells, channels = int(rng.choice(config.halving.num_cells or (config.num_cells,))), config.channels
        if any(limit is not None for limit in limits.values()):
            try:
                channels = widest_channels(
                    genotype,
                    **limits,
                    image_size=config.image_size,
                    num_cells=num_cells,
                    num_classes=num_classes,
                )
            except ArgumentError:
                continue
        found.setdefault(vector, Candidate(vector, num_cells, channels))
        if len(found) == config.halving.candidates[0]:
            return list(found.values())
    raise ConfigError(
        f"max_macs, max_parameters: expected room for {config.halving.candidates[0]} architectures, found "
        f"{len(found)} within {config.max_macs} and {config.max_parameters}"
    )


def _trained(handle: "Shared[Rounds]", number: int, candidate: Candidate) -> Measured:
    return handle.get()(number, candidate)
