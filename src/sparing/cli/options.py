"""What commands of several systems share: options, lists of numbers, devices, and what Ctrl-C says."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["add_command", "integers", "numbers", "open_device", "resumable", "seed"]

_LARGEST_SEED = 2**64 - 1  # of PyTorch's generators


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """Adds one command, with `--json`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="one line of JSON on standard output")
    return parser


def integers(text: str) -> tuple[int, ...]:
    """Parses ``1,2,3``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 1,2,3, got {text!r}") from None


def numbers(text: str) -> tuple[float, ...]:
    """Parses ``0.95,0.9``, or ``none`` for no numbers."""
    try:
        return () if text == "none" else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.95,0.9, or none, got {text!r}") from None


def seed(text: str) -> int:
    """Parses a seed."""
    if not text.isdecimal() or int(text) > _LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {_LARGEST_SEED}, got {text!r}")
    return int(text)


def open_device(name: str) -> "torch.device":
    """Finds a device.

    Raises:
        ArgumentError: no device of this name here.
    """
    from sparing.runs.devices import usable_device

    return usable_device(name, name="--device")


@contextlib.contextmanager
def resumable(message: str | None) -> Iterator[None]:
    """Stands around work that keeps what it has done when Ctrl-C comes; says so then.

    Args:
        message: what is kept, and how to go on; None: nothing is.
    """
    try:
        yield
    except KeyboardInterrupt:
        if message is None:
            raise
        raise KeyboardInterrupt(f"interrupted; {message}") from None
