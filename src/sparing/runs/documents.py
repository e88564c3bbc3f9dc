"""JSON documents that say what they are: a schema, a version, and fields that a pydantic model describes."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sparing.errors import FormatError, VersionError

__all__ = ["differences", "parse_document"]

_Document = TypeVar("_Document", bound=BaseModel)


class _Head(BaseModel):
    schema_name: str
    version: Any


def parse_document(
    data: bytes | str, kind: type[_Document], *, schema: str, version: int, name: str, what: str
) -> _Document:
    """Reads a document, whoever wrote it: the schema first, then the version, then the fields.

    Args:
        data: JSON in UTF-8. Nested deeper than 200 levels it is refused.
        kind: its fields, ``schema_name`` and ``version`` among them.
        schema: the ``schema_name`` that is expected.
        version: the one that this release reads.
        name: of the file, for messages.
        what: it should be, for messages: ``"a compression plan"``.

    Returns:
        The document.

    Raises:
        FormatError: not JSON, another schema, or fields that are missing, unknown or out of range; names each.
        VersionError: another version.
    """
    try:
        head = _Head.model_validate_json(data)
        if head.schema_name != schema:
            raise FormatError(f"{name}: not {what}: expected schema_name {schema!r}, got {head.schema_name!r}")
        if head.version != version:
            raise VersionError(
                f"{name}: {what} in version {head.version!r}, expected {version}: "
                "read it with the release of sparing that wrote it"
            )
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise FormatError.from_validation(f"{name}: not {what}", error) from None


def differences(saved: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describes each leaf of JSON values that differs, by its dotted name, as ``seed: saved 0, now 1``."""
    found: list[str] = []
    for key in sorted({*saved, *given}):
        old, new = saved.get(key), given.get(key)
        if key in saved and key in given and isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif key not in saved or key not in given or old != new:
            was = repr(old) if key in saved else "absent"
            now = repr(new) if key in given else "absent"
            found.append(f"{prefix}{key}: saved {was}, now {now}")
    return found
