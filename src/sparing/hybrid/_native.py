"""The compiled core, or a clear error where it is missing."""

from sparing.errors import CoreMissingError

try:
    from sparing import _core as core
except ImportError as error:  # pragma: no cover - depends on the installation
    raise CoreMissingError(
        f"the compiled extension sparing._core does not load ({error}); install sparing with pip on a machine with a "
        "C++20 compiler, or run `make test` in a checkout"
    ) from error

__all__ = ["core"]
