"""The end of a search: one architecture is chosen, the finalists judged once more, and everything written down."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sparing.errors import ArgumentError, FormatError
from sparing.nas.archive import Evaluated, SearchFolder, best_first, evaluated_front, judged
from sparing.nas.genotype import Genotype, save_genotype
from sparing.nas.search_config import SearchConfig
from sparing.runs.atomic import replace_file
from sparing.runs.documents import Settings, parse_document

__all__ = ["Finalist", "SearchResult", "conclude", "derive", "load_search_result"]

_SCHEMA: Literal["sparing.nas.search-result"] = "sparing.nas.search-result"
_VERSION: Literal[2] = 2  # 1: first; 2: num_cells, channels, config
RESULT_FILE = "result.json"

_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]


class Finalist(Settings):
    """An architecture that was judged once more.

    Attributes:
        number: its place in the archive.
        clean_accuracy: on more held-out images, by the shared weights.
        faulty_accuracies: there, of draws that the search has not seen.
        reward: of these.
    """

    number: _Count
    clean_accuracy: _Share
    faulty_accuracies: tuple[_Share, ...]
    reward: _Share


class SearchResult(Settings):
    """What a search found.

    Attributes:
        schema_name, version: of the document.
        genotype: the chosen architecture.
        chosen: its place in the archive.
        num_cells: of its final network.
        channels: C of it.
        config: settings of the search.
        num_macs: of its final network for one image.
        num_parameters: of its final network.
        num_evaluated: architectures judged, by the trained supernet or trained alone.
        supernet_steps: of the training of the shared weights; 0 without any.
        front: places in the archive of what nothing dominates in clean and faulty accuracy, MACs and parameters.
        finalists: by falling reward; empty if the best reward of the search was taken as it is.
    """

    schema_name: Literal["sparing.nas.search-result"] = _SCHEMA
    version: Literal[2] = _VERSION
    genotype: Genotype
    chosen: _Count
    num_cells: _Count
    channels: _Count
    config: SearchConfig
    num_macs: _Count
    num_parameters: _Count
    num_evaluated: _Count
    supernet_steps: _Count
    front: tuple[_Count, ...]
    finalists: tuple[Finalist, ...] = ()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``result.json``, replacing it as a whole.

        Raises:
            OSError: it cannot be written.
        """
        with replace_file(Path(folder) / RESULT_FILE) as file:
            file.write(self.model_dump_json(indent=1).encode() + b"\n")


def conclude(
    folder: SearchFolder,
    config: SearchConfig,
    chosen: Evaluated,
    *,
    finalists: Sequence[Finalist] = (),
    supernet_steps: int = 0,
) -> SearchResult:
    """Writes down what a search has found, ``result.json`` and ``genotype.json``, each replaced as a whole."""
    records = folder.records
    result = SearchResult(
        genotype=chosen.genotype,
        chosen=chosen.number,
        num_cells=chosen.num_cells,
        channels=chosen.channels,
        config=config,
        num_macs=chosen.num_macs,
        num_parameters=chosen.num_parameters,
        num_evaluated=len({record.vector for record in records if record.stage == "search"}),
        supernet_steps=supernet_steps,
        front=tuple(one.number for one in evaluated_front(records)),
        finalists=tuple(finalists),
    )
    save_genotype(folder.path / "genotype.json", result.genotype)
    result.save(folder.path)
    return result


def load_search_result(folder: str | os.PathLike[str]) -> SearchResult:
    """Reads what a search that came to its end has found.

    Raises:
        FormatError: no such file, or not such a document; VersionError: of another version.
    """
    path = Path(folder) / RESULT_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FormatError(f"{folder}: no {RESULT_FILE}: the search has not come to its end") from error
    return parse_document(
        data, SearchResult, schema=_SCHEMA, version=_VERSION, name=path.name, what="the result of a search"
    )


def derive(
    records: Sequence[Evaluated],
    *,
    max_macs: int | None = None,
    max_parameters: int | None = None,
    count: int = 1,
) -> list[Evaluated]:
    """Chooses architectures of a finished search; a tighter budget than the search's can be set.

    Args:
        records: of the archive.
        max_macs: at most; None: any.
        max_parameters: at most; None: any.
        count: how many, 1 or more; fewer if there are fewer.

    Returns:
        By falling reward; of equal ones the one with fewer MACs, then the earlier one.

    Raises:
        ArgumentError: none is within the budget, or a count below 1.
    """
    if count < 1:
        raise ArgumentError(f"count: expected 1 or more, got {count}")
    found = judged(records)
    limits = (np.inf if max_macs is None else max_macs, np.inf if max_parameters is None else max_parameters)
    within = [one for one in found if one.num_macs <= limits[0] and one.num_parameters <= limits[1]]
    if not within:
        least = min((one.num_macs for one in found), default=None)
        raise ArgumentError(
            f"max_macs, max_parameters: none of the {len(found)} architectures is within {max_macs} MACs and "
            f"{max_parameters} parameters; the smallest has {least} MACs"
        )
    return sorted(within, key=best_first)[:count]
