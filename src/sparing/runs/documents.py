"""Settings and JSON documents: fields that a pydantic model describes; documents also say their schema and version."""

import json
import os
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sparing.errors import ArgumentError, ConfigError, FormatError, VersionError
from sparing.runs.atomic import replace_file

__all__ = ["Document", "Settings", "differences", "json_values", "parse_document", "validated"]

_Model = TypeVar("_Model", bound=BaseModel)


class Settings(BaseModel):
    """Frozen fields, no others, and no number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Makes them from what somebody typed.

        Raises:
            ConfigError: a setting that is unknown or out of range.
        """
        return validated(cls, settings, name="config")


class Document(Settings):
    """What is saved as JSON; the fields ``schema_name`` and ``version`` are among its own."""

    def to_json(self) -> str:
        """Returns the document as readable JSON."""
        return self.model_dump_json(indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the document as JSON, replacing the file as a whole.

        Raises:
            OSError: the file cannot be written; an older one is unchanged.
        """
        with replace_file(path) as file:
            file.write(self.to_json().encode())


def validated(kind: type[_Model], fields: Any, *, name: str | None = None) -> _Model:
    """Validates fields.

    Args:
        kind: that they make.
        fields: a mapping.
        name: of the argument, for messages; None: the kind's.

    Raises:
        ConfigError: naming each bad field, what was expected and what came.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ConfigError.from_validation(name or kind.__name__, error) from None


def json_values(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of values as JSON gives them back.

    Raises:
        ArgumentError: they do not come back equal, or cannot be written.
    """
    given = dict(values)
    try:
        back: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))
        json.dumps(given, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{name}: expected values that JSON can hold: {error}") from error
    if back != given:
        raise ArgumentError(f"{name}: JSON does not give it back equal; use string keys, and lists rather than tuples")
    return back


class _Head(BaseModel):
    schema_name: str
    version: Any


def parse_document(data: bytes | str, kind: type[_Model], *, schema: str, version: int, name: str, what: str) -> _Model:
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
