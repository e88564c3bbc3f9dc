"""Judging architectures, once each, and evolution among them on a supernet that is trained."""

from collections.abc import Callable, Iterator, Sequence

from sparing.errors import ConfigError
from sparing.explore import Evolution
from sparing.nas.archive import Evaluated, SearchFolder
from sparing.nas.cost_table import CostTable
from sparing.nas.evaluation import Evaluator, Measured
from sparing.nas.search_config import SearchConfig
from sparing.nas.space import SearchSpace
from sparing.runs import Progress, Shared, WorkExecutor

__all__ = ["Judge", "evolve"]

_IDLE_GENERATIONS = 100
"""Generations without a new architecture within the budget, after which evolution ends: there are no more."""


class Judge:
    """Puts architectures into the archive, each once, by all workers.

    Args:
        folder: whose archive it is; what is in there already is not evaluated again.
        config: of the search.
        executor: whose shared value is the :class:`~sparing.nas.evaluation.Evaluator`.
        cost: of a vector's final network.
        violation: how far a vector is over the budget, 0 within.
        step: of the supernet's training.
        after: called after each new line of the archive.
    """

    def __init__(
        self,
        folder: SearchFolder,
        config: SearchConfig,
        executor: WorkExecutor,
        *,
        cost: CostTable,
        violation: Callable[[tuple[int, ...]], float],
        step: int,
        after: Callable[[], object],
    ) -> None:
        self._folder, self._config, self._executor = folder, config, executor
        self._cost, self.violation, self._step, self._after = cost, violation, step, after
        self.known = {record.vector: record for record in folder.records if record.stage == "search"}

    def judge(self, vectors: Sequence[tuple[int, ...]]) -> Iterator[Evaluated]:
        """Evaluates those that are not known; each is written down as soon as it is its turn.

        Yields:
            What is known of each vector, in their order.
        """
        new = list(dict.fromkeys(vector for vector in vectors if vector not in self.known))
        found = self._executor.map(_measured, [self._executor.shared] * len(new), new)
        for vector in vectors:
            if vector not in self.known:
                record = self._record(vector, next(found))
                self._folder.append(record)
                self.known[vector] = record
                self._after()
            yield self.known[vector]

    def _record(self, vector: tuple[int, ...], measured: Measured) -> Evaluated:
        number = len(self._folder.records)
        return measured.recorded(number, vector, self._cost(vector), self._config, step=self._step)


def evolve(judge: Judge, space: SearchSpace, config: SearchConfig, *, progress: Progress | None) -> None:
    """Evaluates architectures that evolution breeds until there are enough.

    What was evaluated before, in an earlier session, is told again and not evaluated: the archive is all the state.

    Args:
        judge: of architectures.
        space: that they are of.
        config: how many, by which objectives, within which budget. What is over the budget is not evaluated.
        progress: called with ``("evaluations", done, total)``.

    Raises:
        ConfigError: no architecture within the budget was found.
    """
    evolution = Evolution(space.num_options, seed=config.seed, config=config.evolution)
    seen: set[tuple[int, ...]] = set()
    idle = 0
    while idle < _IDLE_GENERATIONS:
        vectors = [tuple(space.canonical(vector).tolist()) for vector in evolution.ask()]
        violations = [judge.violation(vector) for vector in vectors]
        allowed = dict.fromkeys(v for v, over in zip(vectors, violations, strict=True) if not over and v not in seen)
        new = list(allowed)[: config.evaluations - len(seen)]
        for done, _ in enumerate(judge.judge(new), len(seen) + 1):
            if progress is not None:
                progress("evaluations", done, config.evaluations)
        seen.update(new)
        idle = 0 if new else idle + 1
        if len(seen) == config.evaluations:
            return
        evolution.tell([_objectives(judge.known.get(v), config) for v in vectors], violations)
    if not seen:
        raise ConfigError(
            f"max_macs, max_parameters: expected room for an architecture, got {config.max_macs} and "
            f"{config.max_parameters}; the smallest that was tried is over by {evolution.front().least_violation:.0%}"
        )


def _objectives(record: Evaluated | None, config: SearchConfig) -> list[float]:
    """Less is better. What was not evaluated is over the budget, and loses by that."""
    if record is None:
        return [0.0] * len(config.objectives)
    values = {
        "clean": -record.clean_accuracy,
        "faulty": -record.faulty_accuracy,
        "macs": float(record.num_macs),
        "parameters": float(record.num_parameters),
    }
    return [values[name] for name in config.objectives]


def _measured(handle: "Shared[Evaluator]", vector: tuple[int, ...]) -> Measured:
    return handle.get()(vector)
