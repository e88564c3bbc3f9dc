"""Replace one file as a whole: a reader sees the old bytes or the new ones, never a mix, whatever kills the writer."""

import contextlib
import os
import secrets
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sparing.errors import BusyError

# Windows has no flock: writers cannot see there whether another is alive, so nothing of another's is removed.
if sys.platform != "win32":
    import fcntl

__all__ = ["fsync_directory", "only_writer", "remove_stale_temporaries", "replace_file", "try_lock"]

_PREFIX, _SUFFIX = ".sparing-", ".tmp"


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of `path` when the block ends without an error.

    The new bytes go to a temporary name in the same folder, are flushed to the disk, and are then renamed. If the block
    raises (a full disk, an interrupt) the temporary is removed and `path` is as it was. A temporary whose writer was
    killed is removed by the next writer in that folder.

    Args:
        path: the file to create or to replace. A symbolic link is followed, and the mode of an existing file is kept.

    Yields:
        A file opened for binary writing.

    Raises:
        OSError: the folder is missing, not writable or full. `path` is unchanged.

    Example:
        >>> with replace_file("settings.json") as file:  # doctest: +SKIP
        ...     _ = file.write(b"{}")
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise IsADirectoryError(f"{path}: expected a file to replace, got a folder or a device")
    remove_stale_temporaries(target.parent)
    temporary, file = _create_temporary(target)
    try:
        try:
            yield file
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            os.fsync(file.fileno())
            # Renamed while still open, and so still locked: a cleaner cannot take it for a dead writer's.
            if sys.platform != "win32":
                temporary.replace(target)
        finally:
            # On a full disk closing tries to flush once more and fails again; the first error is the one to report.
            with contextlib.suppress(OSError):
                file.close()
        if sys.platform == "win32":
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(target.parent)


def fsync_directory(folder: Path) -> None:
    """Flushes a folder's entries, so that a rename in it survives a power cut, where the platform can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Takes an exclusive lock on an open file without waiting; it ends when the file is closed or its process dies.

    Returns:
        False if another holder has it. True also where the platform has no such locks.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keeps other writers out of a folder meanwhile, without a file for it.

    Raises:
        BusyError: another writer is at work in it.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            free = try_lock(descriptor)
        except OSError:  # some network file systems lock only what is open for writing
            free = True
        if not free:
            raise BusyError(f"{folder}: another writer is at work; try again when it has finished")
        yield
    finally:
        os.close(descriptor)


def remove_stale_temporaries(folder: Path) -> None:
    """Removes temporary files in `folder` whose writers are dead. Files that cannot be removed are left alone."""
    if sys.platform == "win32":
        return
    for stale in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError), stale.open("rb") as file:
            if try_lock(file.fileno()):
                stale.unlink()


def _create_temporary(target: Path) -> tuple[Path, BinaryIO]:
    # A digest instead of the target's name: names near the file system's limit leave no room for a suffix.
    digest = zlib.crc32(os.fsencode(target.name))
    while True:
        temporary = target.parent / f"{_PREFIX}{digest:08x}-{secrets.token_hex(6)}{_SUFFIX}"
        file = temporary.open("xb")
        try:
            # Between creation and lock a cleaner may take the file for a dead writer's; then start again.
            if try_lock(file.fileno()) and _is_linked(temporary, file):
                return temporary, file
        except BaseException:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        file.close()


def _is_linked(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
