"""Architecture search under faults: a supernet is trained, its architectures are judged, the best one is chosen.

Three modes. ``"halving"``: architectures are trained alone, ever fewer for ever longer. ``"evolution"``: shared weights
are trained with random architectures, and then evolution looks among them, each judged on fixed images under fixed
draws of faults. ``"policy-gradient"``, the paper's: epochs of the weights, with architectures that a policy draws, take
turns with steps of the policy, whose rewards are accuracies on held-out images.

Source: X. Ning et al., *FTT-NAS*, arXiv 2003.10375, 2020, section 5.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparing.errors import ArgumentError, ConfigError, FormatError
from sparing.nas.archive import SearchFolder
from sparing.nas.cost_table import CostTable
from sparing.nas.derive import Finalist, SearchResult, conclude, derive
from sparing.nas.evaluation import Evaluator, supernet_of
from sparing.nas.evolutionary import Judge, evolve
from sparing.nas.halving import Rounds, halve
from sparing.nas.images import data_identity, downscaled, parted
from sparing.nas.policy import PolicySearch
from sparing.nas.search_config import SearchConfig
from sparing.nas.space import SearchSpace
from sparing.nas.supernet_training import SupernetTraining
from sparing.nas.trials import TrialJournal
from sparing.runs import Checkpoint, CheckpointFolder, Progress, Shared, WorkExecutor, open_executor
from sparing.vision import ImageDataset

__all__ = ["run_search"]

_KIND = "sparing.nas.search"
_RANDOM_ARCHITECTURES = 21


def run_search(
    dataset: ImageDataset,
    *,
    config: SearchConfig,
    folder: str | os.PathLike[str],
    workers: int = 1,
    device: torch.device | str = "cpu",
    checkpoint_steps: int | None = None,
    trials: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Searches an architecture for images and a kind of fault.

    A search that was interrupted (by an error, by the callback, by kill -9) goes on when the same call is made again;
    on the CPU, with the same number of threads, weights and archive end up bit for bit those of a search in one go,
    with any number of workers.

    Args:
        dataset: images that the search may use, parted by chance into those for weights and those held out. Images
            for tests are none of its business.
        config: the settings.
        folder: of the search: archive, checkpoints, and in the end ``result.json`` and ``genotype.json``.
        workers: processes that judge architectures, on the CPU only, each in one thread. A script that asks for several
            wants the usual ``if __name__ == "__main__":``.
        device: where the supernet is.
        checkpoint_steps: steps between checkpoints; None: one an epoch. It does not change what is computed.
        trials: keep Optuna's ``trials.journal`` too, see :class:`~sparing.nas.trials.TrialJournal`.
        progress: called with ``"supernet"``, ``"policy"``, ``"evaluations"``, ``"finalists"``, or of each round of
            halving with ``"round 1 of 3"``; may raise to stop.

    Returns:
        What was found.

    Raises:
        ArgumentError: images that do not fit the settings, or workers beside another device than the CPU.
        BusyError: another search is at work in the folder.
        ConfigError: the folder holds a search with other settings or data (each difference is named), or nothing is
            within the budget.
        FormatError: a damaged folder, or of something else.
        MissingExtraError: `trials` without Optuna.
        NonFiniteError: the training diverged.
        OSError: a full disk.
    """
    target = torch.device(device)
    if workers > 1 and target.type != "cpu":
        raise ArgumentError(f"workers: expected 1 on {target.type}, got {workers}; several are for the CPU")
    images = downscaled(dataset, config.image_size)
    weights, held_out = parted(images, config.weight_images, seed=config.seed)
    identity: dict[str, Any] = {
        "settings": config.model_dump(mode="json"),
        "data": data_identity(images),
        "device": target.type,
    }
    # What cannot be searched is refused before there is a folder.
    prepared: Rounds | CostTable
    if config.mode == "halving":
        prepared = Rounds(
            config,
            weights,
            held_out,
            device=target,
            folder=Path(folder) / "trainings",
            checkpoint_steps=checkpoint_steps,
        )
    else:
        prepared = _costs(config, dataset.num_classes)
    tell = progress if progress is not None else _silent
    # Dropout draws from torch's global generator: it is seeded for each step, and left as it was.
    cuda = [target] if target.type == "cuda" else []
    with SearchFolder(folder, identity) as opened, torch.random.fork_rng(devices=cuda):
        journal = None
        if trials:
            journal = TrialJournal(opened.path / "trials.journal", num_options=SearchSpace(config.space).num_options)

        def mirror() -> None:
            if journal is not None:
                journal.sync(opened.records)

        mirror()  # also when there is nothing left to do but what a kill has kept from being written
        if isinstance(prepared, Rounds):
            best = halve(opened, prepared, workers=workers, progress=tell, after=mirror)
            return conclude(opened, config, best[0])
        search = _Search(opened, config, prepared, weights, held_out, target, identity, checkpoint_steps, tell, mirror)
        return search.run(workers)


class _Search:
    """One session of a search."""

    def __init__(
        self,
        folder: SearchFolder,
        config: SearchConfig,
        cost: CostTable,
        weights: ImageDataset,
        held_out: ImageDataset,
        device: torch.device,
        identity: dict[str, Any],
        checkpoint_steps: int | None,
        progress: Progress,
        mirror: Callable[[], object],
    ) -> None:
        self.folder, self.config, self.held_out = folder, config, held_out
        self.progress, self.mirror = progress, mirror
        self.space = SearchSpace(config.space)
        self.cost = cost
        supernet = supernet_of(config, held_out.num_classes).to(device)
        self.training = SupernetTraining(supernet, weights, config)
        self.evaluator = Evaluator(supernet, config, calibration=weights, held_out=held_out)
        self.policy: PolicySearch | None = None
        if config.mode == "policy-gradient":
            self.policy = PolicySearch(self.space, config, held_out, is_allowed=lambda v: not self.violation(v))
        self.checkpoints = CheckpointFolder(folder.path / "supernet", kind=_KIND, config=identity)
        self.checkpoint_steps = checkpoint_steps
        found = self.checkpoints.latest()
        if found is not None:
            self._load(found)
        elif folder.records:
            folder.keep_(0)

    def violation(self, vector: tuple[int, ...]) -> float:
        """How far an architecture is over the budget; 0 within."""
        cost = self.cost(vector)
        pairs = ((cost.num_macs, self.config.max_macs), (cost.num_parameters, self.config.max_parameters))
        return sum(max(0.0, value / limit - 1) for value, limit in pairs if limit is not None)

    def run(self, workers: int) -> SearchResult:
        training = self.training
        while not training.is_done or self._owes_policy():
            if self._owes_policy():
                self._learn_policy()
                self._save()
                continue
            training.train_step(self.space.decode(self._for_weights()))
            self.progress("supernet", training.step, training.total)
            saves = training.ends_epoch or training.step % (self.checkpoint_steps or training.total) == 0
            if saves and not self._owes_policy():
                self._save()
        with open_executor(workers, shared=self.evaluator, threads=1) as executor:
            judge = Judge(
                self.folder,
                self.config,
                executor,
                cost=self.cost,
                violation=self.violation,
                step=training.step,
                after=self.mirror,
            )
            if self.policy is None:
                evolve(judge, self.space, self.config, progress=self.progress)
            else:
                samples = self.policy.samples()
                for done, _ in enumerate(judge.judge(samples), 1):
                    self.progress("evaluations", done, len(samples))
            return self._finish(executor)

    def _for_weights(self) -> tuple[int, ...]:
        if self.policy is not None:
            return self.policy.for_weights(self.training.step)
        rng = np.random.default_rng([self.config.seed, _RANDOM_ARCHITECTURES, self.training.step])
        return tuple(self.space.encode(self.space.random(rng)).tolist())

    def _owes_policy(self) -> bool:
        """Whether an epoch of the weights is over, and that of the policy is not."""
        if self.policy is None:
            return False
        epochs = self.training.step // self.training.sampler.steps_per_epoch
        return self.policy.step < epochs * self.policy.steps_per_epoch

    def _learn_policy(self) -> None:
        policy = self.policy
        if policy is None:
            raise AssertionError("unreachable: there is a policy")
        total = self.config.supernet.epochs * policy.steps_per_epoch
        while self._owes_policy():
            vector, measured = policy.learn_(self.evaluator)
            self.folder.append(
                measured.recorded(
                    len(self.folder.records),
                    vector,
                    self.cost(vector),
                    self.config,
                    step=self.training.step,
                    stage="policy",
                )
            )
            self.progress("policy", policy.step, total)

    def _finish(self, executor: WorkExecutor) -> SearchResult:
        records, config = self.folder.records, self.config
        best = derive(records, max_macs=config.max_macs, max_parameters=config.max_parameters, count=config.finalists)
        finalists: list[Finalist] = []
        if len(best) > 1:
            first = config.evaluation.draws
            draws = tuple(range(first, first + config.final_draws))
            vectors = [one.vector for one in best]
            found = executor.map(
                _judged_again,
                [executor.shared] * len(best),
                vectors,
                [config.final_images] * len(best),
                [draws] * len(best),
            )
            for one, measured in zip(best, found, strict=True):
                reward = measured.reward(config.evaluation.reward_share)
                finalists.append(
                    Finalist(
                        number=one.number,
                        clean_accuracy=measured.clean_accuracy,
                        faulty_accuracies=measured.faulty_accuracies,
                        reward=reward,
                    )
                )
                self.progress("finalists", len(finalists), len(best))
            finalists.sort(key=lambda one: (-one.reward, one.number))
        chosen = records[finalists[0].number if finalists else best[0].number]
        return conclude(self.folder, config, chosen, finalists=finalists, supernet_steps=self.training.step)

    def _save(self) -> None:
        tensors, state = self.training.tensors(), {"optimizer": self.training.state(), "policy": None}
        if self.policy is not None:
            tensors |= self.policy.tensors()
            state["policy"] = self.policy.state()
        self.checkpoints.save(self.training.step, tensors, {**state, "num_records": len(self.folder.records)})

    def _load(self, found: Checkpoint) -> None:
        try:
            optimizer, policy = found.state["optimizer"], found.state["policy"]
            count = int(found.state["num_records"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"checkpoint: does not fit this search: {error!r}") from error
        self.training.load_(found, optimizer)
        if self.policy is not None:
            self.policy.load_(found, policy)
        # What the trained supernet judged stays; what was learned from after the checkpoint is learned again.
        if not self.training.is_done or self._owes_policy():
            self.folder.keep_(count)


def _costs(config: SearchConfig, num_classes: int) -> CostTable:
    """The costs of all architectures, and that the budget has room for one."""
    cost = CostTable(
        SearchSpace(config.space),
        channels=config.channels,
        num_cells=config.num_cells,
        image_size=config.image_size,
        num_classes=num_classes,
    )
    least, limits = cost.least, (config.max_macs, config.max_parameters)
    for value, limit in zip((least.num_macs, least.num_parameters), limits, strict=True):
        if limit is not None and value > limit:
            raise ConfigError(
                f"max_macs, max_parameters: expected at least the {least.num_macs} MACs and {least.num_parameters} "
                f"parameters of a network with empty cells, got {limits[0]} and {limits[1]}"
            )
    return cost


def _judged_again(handle: "Shared[Evaluator]", vector: tuple[int, ...], images: int, draws: tuple[int, ...]) -> Any:
    return handle.get().measure(vector, images=images, draws=draws)


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Reports nothing."""
