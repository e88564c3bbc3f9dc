"""One document as a user gives it, what is checked about it, and when two metadata values are equal."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from sparing.errors import ArgumentError, DtypeError

__all__ = ["Document", "Where", "canonical_value", "checked_metadata"]

Where = Mapping[str, Any]
"""A filter over metadata, for example ``{"section": "math", "tags": ["c++", "python"]}``: each field named must hold
the value, or one of a list of alternatives. A field that holds a list holds each of its members."""

_EXACT_FLOAT_INTEGERS = 2**53


@dataclass(frozen=True, slots=True)
class Document:
    """One document.

    Attributes:
        key: the caller's own name for it, not empty, unique in an index.
        text: what is searched and shown.
        metadata: JSON values by field name; scalars and lists of scalars serve as filters.
    """

    key: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, record: Mapping[str, Any], *, key_field: str = "id", text_field: str = "text") -> Self:
        """Reads a record such as a line of JSONL; all other fields become metadata.

        Args:
            record: field names to JSON values.
            key_field: the field with the key: a string, or an integer, which becomes one.
            text_field: the field with the text.

        Raises:
            ArgumentError: a field is missing.
            DtypeError: a field has the wrong type.

        Example:
            >>> Document.from_mapping({"id": 7, "text": "a red fox", "section": "animals"})
            Document(key='7', text='a red fox', metadata={'section': 'animals'})
        """
        for name in (key_field, text_field):
            if name not in record:
                raise ArgumentError(f"document: expected a field {name!r}, got the fields {sorted(map(str, record))}")
        key = record[key_field]
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        metadata = {name: value for name, value in record.items() if name not in (key_field, text_field)}
        document = cls(key, record[text_field], metadata)
        checked_metadata(document)
        return document


def checked_metadata(document: Document) -> str:
    """Returns a document's metadata as JSON, or says what is wrong with the document.

    Raises:
        DtypeError: a key or a text that is not a string, or metadata that is not a mapping with string keys.
        ArgumentError: an empty key, metadata that is not JSON, or text that is not valid Unicode.
    """
    if not isinstance(document.key, str):
        raise DtypeError(f"document key: expected a string, got {type(document.key).__name__} ({document.key!r})")
    if not document.key or "\0" in document.key:
        raise ArgumentError(f"document key: expected a string, not empty and without NUL, got {document.key!r}")
    if not isinstance(document.text, str):
        raise DtypeError(f"text of document {document.key!r}: expected a string, got {type(document.text).__name__}")
    if not isinstance(document.metadata, Mapping):
        raise DtypeError(
            f"metadata of document {document.key!r}: expected a mapping, got {type(document.metadata).__name__}"
        )
    if not all(isinstance(name, str) for name in document.metadata):
        raise DtypeError(f"metadata of document {document.key!r}: expected field names that are strings")
    try:
        document.key.encode()
        document.text.encode()
        return json.dumps(dict(document.metadata), allow_nan=False)
    except UnicodeEncodeError as error:
        raise ArgumentError(f"document {document.key!r}: not valid Unicode ({error.reason})") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"metadata of document {document.key!r}: expected JSON values: {error}") from error


def canonical_value(value: Any) -> str | None:
    """Returns a scalar as text that is equal for equal values and differs between types; None for anything else.

    Example:
        >>> canonical_value(1.0), canonical_value("1"), canonical_value([1])
        ('1', '"1"', None)
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_FLOAT_INTEGERS:
        value = int(value)
    if isinstance(value, str | bool | int) or value is None or (isinstance(value, float) and np.isfinite(value)):
        return json.dumps(value)
    return None
