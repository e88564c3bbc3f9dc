"""Runs leave traces: versioned files and folders that survive crashes, records of what ran where, and progress."""

from sparing.runs.artifact import Artifact, read_artifact, verify_artifact, write_artifact
from sparing.runs.generations import current_generation, replace_folder, verify_folder
from sparing.runs.progress import Progress
from sparing.runs.record import run_record, write_record

__all__ = [
    "Artifact",
    "Progress",
    "current_generation",
    "read_artifact",
    "replace_folder",
    "run_record",
    "verify_artifact",
    "verify_folder",
    "write_artifact",
    "write_record",
]
