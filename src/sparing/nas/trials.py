"""Evaluated architectures as trials in Optuna's storage, so that its dashboard and its plots open a search.

A copy of the archive and no part of the search: where the journal does not fit the archive, or was torn by a kill, it
is written anew. Open it with ``optuna-dashboard trials.journal``.
"""

import contextlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sparing.errors import MissingExtraError
from sparing.nas.archive import Evaluated

__all__ = ["TrialJournal"]

_NUMBER = "archive_number"
_DIRECTIONS = ("maximize", "maximize", "minimize", "minimize")
_METRICS = ("clean accuracy", "faulty accuracy", "MACs", "parameters")


class TrialJournal:
    """A study in a journal file of Optuna: each evaluation a finished trial.

    The four values are clean accuracy, accuracy under faults, MACs and parameters; parameters are the architecture's
    choices, ``site 0``, ``site 1``, ...; attributes are the reward, the genotype and the place in the archive. Only
    evaluations to choose by are trials: by the trained supernet, or of networks trained alone, whose steps are an
    attribute too (only those of equal steps compare).

    Args:
        path: the journal; its folder must exist, and this object is the only one that writes there.
        num_options: of each site of the architecture's vector.
        name: of the study.

    Raises:
        MissingExtraError: Optuna is not installed.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, num_options: Sequence[int], name: str = "sparing nas search"
    ) -> None:
        self._optuna = _optuna()
        self._path, self._name = Path(path), name
        self._options = [int(count) for count in num_options]
        # A writer that was killed leaves its lock; the search's own lock says that there is no other.
        for leftover in self._path.parent.glob(f"{self._path.name}.lock*"):
            leftover.unlink()
        _cut_torn_line(self._path)
        self._study: Any = None

    def sync(self, records: Sequence[Evaluated]) -> None:
        """Makes the trials those of these evaluations: adds what is missing, and nothing twice.

        Raises:
            OSError: the journal cannot be written.
        """
        found = [record for record in records if record.stage == "search"]
        if self._study is None:
            self._study = self._open()
        with _quiet(self._optuna):
            trials = self._study.get_trials(deepcopy=False)
            if not _same(trials, found):
                self._path.unlink()
                self._study, trials = self._open(), []
            for record in found[len(trials) :]:
                self._study.add_trial(self._trial(record))

    def _open(self) -> Any:
        with _quiet(self._optuna):
            try:
                return self._create()
            except Exception:  # noqa: BLE001 - a torn journal fails in many ways, and is only a copy
                self._path.unlink(missing_ok=True)
                return self._create()

    def _create(self) -> Any:
        backend = self._optuna.storages.journal.JournalFileBackend(str(self._path))
        study = self._optuna.create_study(
            storage=self._optuna.storages.JournalStorage(backend),
            study_name=self._name,
            directions=list(_DIRECTIONS),
            load_if_exists=True,
        )
        study.set_metric_names(list(_METRICS))
        return study

    def _trial(self, record: Evaluated) -> Any:
        values = [record.clean_accuracy, record.faulty_accuracy, record.num_macs, record.num_parameters]
        names = [f"site {site}" for site in range(len(self._options))]
        categorical = self._optuna.distributions.CategoricalDistribution
        return self._optuna.trial.create_trial(
            values=[float(value) for value in values],
            params=dict(zip(names, record.vector, strict=True)),
            distributions={name: categorical(tuple(range(n))) for name, n in zip(names, self._options, strict=True)},
            user_attrs={
                _NUMBER: record.number,
                "reward": record.reward,
                "step": record.step,
                "num_cells": record.num_cells,
                "channels": record.channels,
                "genotype": record.genotype.model_dump(mode="json"),
            },
        )


def _cut_torn_line(path: Path) -> None:
    """Optuna would append to a line that a kill tore."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def _same(trials: Sequence[Any], records: Sequence[Evaluated]) -> bool:
    """Whether trials are those of the first records."""
    return len(trials) <= len(records) and all(
        trial.user_attrs.get(_NUMBER) == record.number
        and [trial.params.get(f"site {site}") for site in range(len(record.vector))] == list(record.vector)
        for trial, record in zip(trials, records, strict=False)
    )


@contextlib.contextmanager
def _quiet(optuna: ModuleType) -> Any:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna marks what it calls experimental
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", extra="nas", purpose="a search as trials of Optuna") from error
    found: ModuleType = optuna
    return found
