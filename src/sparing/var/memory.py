"""The most memory that work had in use, of a CUDA device or of this process on Linux; and giving some back."""

import contextlib
import ctypes
import re
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

__all__ = ["PeakMemory", "return_freed_memory"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class PeakMemory:
    """Measures the block that it stands around.

    On CUDA: bytes of tensors at their highest. On Linux: the highest resident size of the whole process, which counts
    everything loaded before too. Elsewhere nothing.

    Args:
        device: whose memory.

    Attributes:
        peak_bytes: after the block; None where it is not known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak_bytes: int | None = None
        self._is_reset = False

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
                self._is_reset = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)
            return
        # Where the peak could not be set back, it may be that of work before.
        if not self._is_reset:
            return
        with contextlib.suppress(OSError):
            found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii", errors="replace"))
            self.peak_bytes = None if found is None else int(found[1]) * 1024


def return_freed_memory() -> None:
    """Gives the system back what this process freed but its allocator kept (glibc keeps pieces under 32 MiB)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
