"""`sparing`: finds the command, and turns errors, warnings and interrupts into one line, and an exit code.

====  ==========================================================
code  meaning
====  ==========================================================
0     done
2     bad arguments, bad input, a damaged file, a missing package
130   interrupted (Ctrl-C); nothing was half-written
141   whoever read the output went away (`sparing ... | head`)
====  ==========================================================
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import sparing
from sparing.errors import CoreMissingError, SparingError

__all__ = ["build_parser", "main"]

_BAD_INPUT, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    # Here and not above, so that a Ctrl-C while NumPy and SciPy load is met like any other.
    from sparing.cli import faults, nas, pim, var

    parser = argparse.ArgumentParser(prog="sparing", description=(sparing.__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"sparing {sparing.__version__}")
    groups = parser.add_subparsers(title="systems", metavar="SYSTEM", required=True)
    _add_hybrid(groups)
    var.add_commands(groups)
    pim.add_commands(groups)
    faults.add_commands(groups)
    nas.add_commands(groups)
    return parser


def _add_hybrid(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    try:
        from sparing.cli import hybrid
    except CoreMissingError as error:
        # The other systems are whole without the compiled core; this one says what is wrong when it is asked.
        reason = str(error)

        def fail(_arguments: argparse.Namespace) -> None:
            raise CoreMissingError(reason)

        parser = groups.add_parser("hybrid", help="not available: the compiled core does not load", add_help=False)
        parser.add_argument("rest", nargs=argparse.REMAINDER)
        parser.set_defaults(run=fail)
    else:
        hybrid.add_commands(groups)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments after the program's name; the process's own where None.

    Returns:
        The exit code.
    """
    try:
        arguments = build_parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _show
            arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # What Python would flush at its end goes nowhere now, instead of failing once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt as stop:
        # A command that keeps what it has done so far says so.
        return _fail(str(stop) or "interrupted; nothing was changed", _INTERRUPTED)
    except (SparingError, OSError) as error:
        return _fail(" ".join(str(error).split()), _BAD_INPUT)
    return 0


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"sparing: warning: {message}\n")


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"sparing: error: {message}\n")
    return code
