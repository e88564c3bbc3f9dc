"""The folder of a search: what it searches, and one line for each architecture that was evaluated.

::

    DIR/search.json      schema, version, and the fingerprint: settings and data
    DIR/archive.jsonl    one JSON object an evaluation, each on the disk before the next
    DIR/supernet/        the newest checkpoint, see ``sparing.runs``
    DIR/trainings/       instead, where architectures are trained alone: checkpoints of those under way

Lines come in one order whatever the workers, so that a search that went on after kill -9 has the same bytes as one that
never stopped. The last line may be torn by a kill or a power cut: it is dropped and evaluated again.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sparing.errors import ArgumentError, FormatError
from sparing.explore import pareto_front
from sparing.nas.genotype import Genotype
from sparing.runs.journal import Journal, JournalKind, read_journal

__all__ = ["Evaluated", "SearchFolder", "best_first", "evaluated_front", "judged", "read_archive"]

_Count = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]


class Evaluated(BaseModel):
    """One architecture and how it did.

    Attributes:
        number: place in the archive, from 0.
        stage: ``"search"``: judged by the trained supernet or trained alone, comparable with others of that step;
            ``"policy"``: a reward on the way, from one batch and weights that were still being trained.
        step: of the training that gave the weights: the supernet's, or the architecture's own.
        vector: the architecture as options of the search space.
        genotype: the architecture.
        num_cells: of the final network.
        channels: C of it.
        num_macs: multiply-accumulates of the final network for one image.
        num_parameters: of the final network.
        clean_accuracy: without faults, 0 to 1.
        faulty_accuracies: of each draw of faults.
        reward: (1 − α_r)·clean + α_r·mean under faults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    number: _Count
    stage: Literal["search", "policy"]
    step: _Count
    vector: tuple[_Count, ...]
    genotype: Genotype
    num_cells: Annotated[int, Field(ge=3)]
    channels: Annotated[int, Field(ge=2)]
    num_macs: _Count
    num_parameters: _Count
    clean_accuracy: _Share
    faulty_accuracies: tuple[_Share, ...]
    reward: _Share

    @property
    def faulty_accuracy(self) -> float:
        """Mean of the draws; without draws the clean accuracy."""
        return (
            sum(self.faulty_accuracies) / len(self.faulty_accuracies) if self.faulty_accuracies else self.clean_accuracy
        )


_KIND = JournalKind(
    what="search",
    schema="sparing.nas.search",
    version=2,  # 1: first; 2: num_cells, channels
    header="search.json",
    lines="archive.jsonl",
    record=Evaluated,
    records="evaluations",
    argument="config",
)


def judged(records: Sequence[Evaluated]) -> list[Evaluated]:
    """Those that a search chooses among, comparable with each other: of the search stage, trained for longest."""
    found = [record for record in records if record.stage == "search"]
    last = max((record.step for record in found), default=0)
    return [record for record in found if record.step == last]


def best_first(record: Evaluated) -> tuple[float, int, int]:
    """A key to sort by: falling reward; of equal ones the one with fewer MACs, then the earlier one."""
    return -record.reward, record.num_macs, record.number


def evaluated_front(records: Sequence[Evaluated]) -> list[Evaluated]:
    """Those of :func:`judged` that no other dominates in clean and faulty accuracy, MACs and parameters.

    Returns:
        By falling reward, then in the order of the archive; of equal ones the first.
    """
    found = judged(records)
    if not found:
        return []
    costs = [[-one.clean_accuracy, -one.faulty_accuracy, one.num_macs, one.num_parameters] for one in found]
    front = [found[index] for index in pareto_front(np.array(costs, np.float64))]
    return sorted(front, key=lambda one: (-one.reward, one.number))


def read_archive(folder: str | os.PathLike[str]) -> list[Evaluated]:
    """Reads what a search has found so far; it may be at work.

    Raises:
        FormatError: not the folder of a search, or a line that was altered.
    """
    return _numbered(read_journal(folder, _KIND), Path(folder))


class SearchFolder(Journal[Evaluated]):
    """An open folder of one search; one process at a time has it.

    Args:
        path: the folder, created if it is not there.
        search: the fingerprint: JSON values that JSON gives back equal.

    Raises:
        BusyError, ConfigError, FormatError, OSError: as of :class:`~sparing.runs.journal.Journal`.
    """

    def __init__(self, path: str | os.PathLike[str], search: dict[str, Any]) -> None:
        super().__init__(path, search, _KIND)
        try:
            _numbered(self.records, self.path)
        except FormatError:
            self.close()
            raise

    def append(self, record: Evaluated) -> None:
        """Writes one evaluation; it is on the disk when this returns.

        Raises:
            ArgumentError: not the next number.
            OSError: the disk is full; the file is as it was.
        """
        if record.number != len(self.records):
            raise ArgumentError(f"record: expected number {len(self.records)}, got {record.number}")
        super().append(record)


def _numbered(records: list[Evaluated], path: Path) -> list[Evaluated]:
    for number, record in enumerate(records):
        if record.number != number:
            raise FormatError(
                f"{path}: {_KIND.lines}, line {number + 1} was altered: it has number {record.number}; restore it from "
                "a copy, or cut the file before that line"
            )
    return records
