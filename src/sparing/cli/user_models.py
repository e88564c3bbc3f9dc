"""Networks from a file of the user's: ``model.py:factory``."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["network_from_file"]


def network_from_file(text: str, *, argument: str = "network") -> "nn.Module":
    """Runs a file and calls the function in it that makes the network.

    Args:
        text: ``FILE.py:FUNCTION``.
        argument: what it was given as, for messages.

    Raises:
        ArgumentError: no such file or function, one that fails, or one that gives no module.
    """
    from torch import nn

    name, colon, function = text.rpartition(":")
    if not colon:
        raise ArgumentError(f"{argument}: expected FILE.py:FACTORY, got {text!r}")
    path = Path(name)
    if not path.is_file():
        raise ArgumentError(f"{argument}: expected a file, got {name!r}")
    factory = getattr(_imported(path, argument), function, None)
    if not callable(factory):
        raise ArgumentError(f"{argument}: expected a function {function!r} in {path.name}, found none")
    model = _run(path, argument, factory)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{argument}: expected {function} to return a torch.nn.Module, got {type(model).__name__}")
    return model


def _imported(path: Path, argument: str) -> Any:
    # A name of its own, so that no package is hidden; dataclasses look their module up.
    name = f"_sparing_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{argument}: {path.name} cannot be imported")
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = module
    try:
        _run(path, argument, lambda: loader.exec_module(module))
    finally:
        # What is left there would seem to be importable in worker processes too.
        del sys.modules[name]
    return module


def _run(path: Path, argument: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:  # whatever goes wrong in a file of the user's
        raise ArgumentError(f"{argument}: {path.name} failed: {type(error).__name__}: {error}") from error
