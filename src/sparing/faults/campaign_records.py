"""The folder of a campaign: what it is, and one line for each draw, written as soon as it is known.

::

    DIR/campaign.json    schema, version, and the fingerprint: faults, settings, model, data
    DIR/clean.sparing    predictions without faults
    DIR/draws.jsonl      one JSON object a draw, in the campaign's own order; each on the disk before the next
    DIR/result.json      the result, once it is complete

Lines come in one order whatever the workers, so a resumed campaign has the same bytes as one that never stopped. The
last line may be torn by a kill or a power cut: it is dropped and drawn again.
"""

import os
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sparing.runs.artifact import read_artifact, write_artifact
from sparing.runs.journal import Journal, JournalKind

__all__ = ["CampaignFolder", "DrawRecord"]

_CLEAN = "clean.sparing"
_CLEAN_SCHEMA = "sparing.faults.predictions"

_Count = Annotated[int, Field(ge=0)]


class DrawRecord(BaseModel):
    """One draw at one point.

    Attributes:
        point: which rate, site or bit, as its label.
        draw: counted from 0.
        correct: images classified rightly.
        changed: images whose prediction is not that of the network without faults.
        hits: positions that were hit, over all batches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    point: str
    draw: _Count
    correct: _Count
    changed: _Count
    hits: _Count


_KIND = JournalKind(
    what="campaign",
    schema="sparing.faults.campaign-folder",
    version=1,  # 1: first
    header="campaign.json",
    lines="draws.jsonl",
    record=DrawRecord,
    records="draws",
    argument="folder",
)


class CampaignFolder(Journal[DrawRecord]):
    """An open folder of one campaign; one process at a time has it.

    Args:
        path: the folder, created if it is not there.
        campaign: the fingerprint: JSON values that JSON gives back equal.

    Raises:
        BusyError, ConfigError, FormatError, OSError: as of :class:`~sparing.runs.journal.Journal`.
    """

    def __init__(self, path: str | os.PathLike[str], campaign: dict[str, Any]) -> None:
        super().__init__(path, campaign, _KIND)

    def clean_predictions(self) -> npt.NDArray[np.int64] | None:
        """Gives what :meth:`keep_clean_predictions` kept, if it did."""
        file = self.path / _CLEAN
        if not file.exists():
            return None
        found: npt.NDArray[np.int64] = read_artifact(file, schema=_CLEAN_SCHEMA, versions={1}).arrays["predictions"]
        return found

    def keep_clean_predictions(self, predictions: npt.NDArray[np.int64]) -> None:
        """Keeps the predictions without faults, so that all draws are held against the same ones."""
        write_artifact(
            self.path / _CLEAN, schema=_CLEAN_SCHEMA, version=1, arrays={"predictions": predictions}, meta={}
        )
