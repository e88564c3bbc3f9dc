"""What an encoder needs to be made again: small frozen values that are saved with a text index."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sparing.errors import ConfigError
from sparing.runs.precision import Precision

__all__ = [
    "BM25Settings",
    "DenseSettings",
    "EncoderSettings",
    "ModelSettings",
    "SpladeSettings",
    "one_line",
    "parse_settings",
]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BM25Settings(_Settings):
    """Settings of :class:`~sparing.hybrid.encoders.BM25Encoder`.

    Attributes:
        k1: how soon repeated terms stop counting, at least 0.
        b: how much long documents are held back, 0 (not at all) to 1 (in full).
        language: the language of the stemmer and of the stop words, by its English name, for example ``"german"``;
            None keeps every word as it is written.
        min_token_length: shorter words are dropped; in characters, at least 1.
    """

    kind: Literal["bm25"] = "bm25"
    k1: float = Field(1.5, ge=0, allow_inf_nan=False)
    b: float = Field(0.75, ge=0, le=1)
    language: str | None = "english"
    min_token_length: int = Field(2, ge=1, le=64)


class ModelSettings(_Settings):
    """What the settings of all encoders with a model share; see :class:`DenseSettings`."""

    model: str = Field(min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    max_tokens: int | None = Field(None, ge=3)
    precision: Precision = "auto"


class DenseSettings(ModelSettings):
    """Settings of :class:`~sparing.hybrid.encoders.DenseEncoder`.

    Attributes:
        model: a model directory, or ``"hf://owner/name"`` (``"hf://owner/name@revision"``) for one on the model hub.
        sha256: checksum over the model's files; a model with another one is refused. None accepts any and is filled in.
        max_tokens: longer texts are cut off; None keeps the directory's own limit.
        precision: ``"auto"``, ``"bfloat16"`` or ``"float32"``.
    """

    kind: Literal["dense"] = "dense"


class SpladeSettings(ModelSettings):
    """Settings of :class:`~sparing.hybrid.encoders.SpladeEncoder`; see :class:`DenseSettings`.

    Attributes:
        max_terms: only the heaviest terms of a text are kept; None keeps all.
    """

    kind: Literal["splade"] = "splade"
    max_terms: int | None = Field(None, ge=1)


EncoderSettings = Annotated[BM25Settings | DenseSettings | SpladeSettings, Field(discriminator="kind")]

_ADAPTER: TypeAdapter[BM25Settings | DenseSettings | SpladeSettings] = TypeAdapter(EncoderSettings)


def parse_settings(data: Any) -> BM25Settings | DenseSettings | SpladeSettings:
    """Reads settings back from what ``settings.model_dump()`` gave.

    Args:
        data: a mapping with ``kind`` and the fields of that kind.

    Returns:
        The settings.

    Raises:
        ConfigError: an unknown kind or field, or a value out of range; the message names the field.

    Example:
        >>> parse_settings({"kind": "bm25", "k1": 1.2}).k1
        1.2
    """
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise ConfigError(f"encoder settings are not valid: {one_line(error)}") from error


def one_line(error: ValidationError) -> str:
    """Says what pydantic found wrong, on one line, fields first."""
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()[:5])
