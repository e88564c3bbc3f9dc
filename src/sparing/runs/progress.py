"""How long work reports that it advances: one callback type for all library code."""

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``.

`stage` names the step in a word or two, `done` counts from 0 to `total`, and `done == total` ends the stage. It is
called from the thread that started the work, may raise to stop it, and must be quick.
"""
