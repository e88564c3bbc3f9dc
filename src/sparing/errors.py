"""Everything that sparing raises on purpose.

::

    SparingError
    ├── ConfigError         (ValueError)       a configuration that contradicts itself or is out of range
    ├── ShapeError          (ValueError)       an array with the wrong number of axes or the wrong length
    ├── DtypeError          (TypeError)        an array, or a value, of the wrong type
    ├── NonFiniteError      (ValueError)       NaN or infinity where a number is needed
    ├── SparseFormatError   (ValueError)       sparse rows with unsorted, duplicate or out-of-range term ids
    ├── ArgumentError       (ValueError)       any other bad argument
    ├── DuplicateIdError    (ValueError)       an id given twice, or added although it is there
    ├── UnknownIdError      (KeyError)         an id that is not there
    ├── FormatError         (ValueError)       a file or folder that is truncated, altered or of another kind
    │   └── VersionError                       ... or written in a version that this release does not read
    ├── BusyError           (BlockingIOError)  another writer holds the lock
    ├── ReadOnlyError       (PermissionError)  a change to something that was opened for reading
    ├── ClosedError         (ValueError)       something is asked of what was closed
    ├── MissingExtraError   (ImportError)      an optional package is not installed
    └── CoreMissingError    (ImportError)      the compiled extension is missing or does not load

Catch :class:`SparingError` for all of them, or the built-in in brackets where generic code expects it. A message says
which argument, what was expected, what came, and what to do.
"""

from functools import partial
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

__all__ = [
    "ArgumentError",
    "BusyError",
    "ClosedError",
    "ConfigError",
    "CoreMissingError",
    "DtypeError",
    "DuplicateIdError",
    "FormatError",
    "MissingExtraError",
    "NonFiniteError",
    "ReadOnlyError",
    "ShapeError",
    "SparingError",
    "SparseFormatError",
    "UnknownIdError",
    "VersionError",
]


_LONGEST = 80
"""Characters shown of a value that pydantic refused: it may be a whole file."""


class SparingError(Exception):
    """The root of every error that sparing raises on purpose."""

    @classmethod
    def from_validation(cls, name: str, error: "ValidationError") -> Self:
        """Words what pydantic found.

        Args:
            name: what was validated, for example ``"config"``.
            error: pydantic's; each field is named with what was expected and what came.
        """
        return cls(f"{name}: {'; '.join(map(_worded, error.errors()))}")


def _worded(found: "ErrorDetails") -> str:
    place, got = ".".join(map(str, found["loc"])), repr(found["input"])
    shown = got if len(got) <= _LONGEST else f"{got[:_LONGEST]}…"
    return f"{place}{': ' if place else ''}{found['msg']}, got {shown}"


class ConfigError(SparingError, ValueError):
    """A configuration that contradicts itself or has a value out of range."""


class ShapeError(SparingError, ValueError):
    """An array with the wrong number of axes or the wrong length along one."""


class DtypeError(SparingError, TypeError):
    """An array, or a value, of a type that the argument does not take."""


class NonFiniteError(SparingError, ValueError):
    """NaN or infinity where a finite number is needed."""


class SparseFormatError(SparingError, ValueError):
    """Sparse rows whose term ids are unsorted, duplicate or out of range."""


class ArgumentError(SparingError, ValueError):
    """An argument with a bad value that no narrower error describes."""


class DuplicateIdError(SparingError, ValueError):
    """An id that is given twice, or added although it is there already."""


class UnknownIdError(SparingError, KeyError):
    """An id that is not there."""

    def __str__(self) -> str:
        # KeyError shows repr(message), which turns a sentence into a quoted string with escapes.
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class FormatError(SparingError, ValueError):
    """A file or folder that is truncated, altered or not of the expected kind."""


class VersionError(FormatError):
    """A file or folder in a version that this release of sparing does not read."""


class BusyError(SparingError, BlockingIOError):
    """Another writer holds the lock. Nothing was changed; try again when it has finished."""


class ReadOnlyError(SparingError, PermissionError):
    """A change to something that was opened for reading only."""


class ClosedError(SparingError, ValueError):
    """Something is asked of what was closed."""


class MissingExtraError(SparingError, ImportError):
    """An optional package is not installed.

    Args:
        package: the package that could not be imported, for example ``"torch"``.
        extra: the extra of sparing that brings it, for example ``"text"``.
        purpose: what needs it, for example ``"the dense encoder"``.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: run `pip install 'sparing[{extra}]'`",
            name=package,
        )
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[object, ...]:
        # The default rebuilds from the message alone, which fails for keyword arguments and so breaks process pools.
        return partial(MissingExtraError, extra=self.extra, purpose=self.purpose), (self.package,)


class CoreMissingError(SparingError, ImportError):
    """The compiled extension ``sparing._core`` is missing or does not load."""
