"""Runs leave traces: versioned files and folders that survive crashes, records of what ran where, and progress."""

from sparing.runs.artifact import Artifact, read_artifact, verify_artifact, write_artifact
from sparing.runs.checkpoints import Checkpoint, CheckpointFolder
from sparing.runs.executors import (
    InProcessExecutor,
    ProcessExecutor,
    RayExecutor,
    Shared,
    WorkExecutor,
    open_executor,
)
from sparing.runs.generations import current_generation, replace_folder, verify_folder
from sparing.runs.journal import Journal, JournalKind, read_journal
from sparing.runs.optimizers import load_optimizer_, optimizer_tensors
from sparing.runs.progress import Progress
from sparing.runs.record import run_record, write_record

__all__ = [
    "Artifact",
    "Checkpoint",
    "CheckpointFolder",
    "InProcessExecutor",
    "Journal",
    "JournalKind",
    "ProcessExecutor",
    "Progress",
    "RayExecutor",
    "Shared",
    "WorkExecutor",
    "current_generation",
    "load_optimizer_",
    "open_executor",
    "optimizer_tensors",
    "read_artifact",
    "read_journal",
    "replace_folder",
    "run_record",
    "verify_artifact",
    "verify_folder",
    "write_artifact",
    "write_record",
]
