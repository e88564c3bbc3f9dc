"""What training leaves on the disk: a tokenizer as a folder of two files, and images that were encoded once.

::

    DIR/tokenizer.safetensors   the weights
    DIR/tokenizer.json          schema, version, settings, and the checksum of the weights; written last
    DIR/tokens-….sparing        the tokens of one set of images by one tokenizer
"""

import hashlib
import os
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save

from sparing.errors import FormatError
from sparing.runs.artifact import read_artifact, write_artifact
from sparing.runs.atomic import replace_file
from sparing.runs.documents import parse_document
from sparing.runs.progress import Progress
from sparing.var.checkpoints import read_state, tokenizer_from
from sparing.var.config import TokenizerConfig
from sparing.var.training.transformer import TokenDataset, encode_dataset
from sparing.var.vqvae import VQVAE
from sparing.vision.datasets import ImageDataset

__all__ = ["cached_tokens", "data_fingerprint", "load_tokenizer", "save_tokenizer", "tokenizer_fingerprint"]

_WEIGHTS, _SETTINGS = "tokenizer.safetensors", "tokenizer.json"
_SCHEMA: Literal["sparing.var.tokenizer"] = "sparing.var.tokenizer"
_VERSION: Literal[1] = 1  # 1: first
_TOKENS_SCHEMA, _TOKENS_VERSION = "sparing.var.tokens", 1  # 1: first
_DIGITS = 12


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: Literal["sparing.var.tokenizer"]
    version: int
    tokenizer: TokenizerConfig
    sha256: str


def save_tokenizer(folder: str | os.PathLike[str], tokenizer: VQVAE) -> None:
    """Writes a tokenizer. The same weights give the same bytes.

    Args:
        folder: made if needed.
        tokenizer: on any device.

    Raises:
        OSError: the folder cannot be written.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    raw = _weights(tokenizer)
    saved = _Saved(
        schema_name=_SCHEMA,
        version=_VERSION,
        tokenizer=tokenizer.config,
        sha256=hashlib.sha256(raw).hexdigest(),
    )
    with replace_file(root / _WEIGHTS) as file:
        file.write(raw)
    with replace_file(root / _SETTINGS) as file:
        file.write(saved.model_dump_json(indent=1).encode() + b"\n")


def load_tokenizer(folder: str | os.PathLike[str]) -> VQVAE:
    """Reads what :func:`save_tokenizer` wrote.

    Args:
        folder: with both files.

    Returns:
        The tokenizer, on the CPU, in evaluation mode.

    Raises:
        FormatError: a file is missing, the weights are truncated or altered, or the settings do not fit them.
        VersionError: written in a version that this release does not read.
        NonFiniteError: NaN or infinity among the weights.
    """
    root = Path(folder)
    try:
        data = (root / _SETTINGS).read_bytes()
    except FileNotFoundError:
        raise FormatError(
            f"{root}: no {_SETTINGS}; give a folder that `sparing var train-tokenizer` or save_tokenizer has finished"
        ) from None
    saved = parse_document(
        data, _Saved, schema=_SCHEMA, version=_VERSION, name=_SETTINGS, what="the settings of a tokenizer"
    )
    weights = root / _WEIGHTS
    if not weights.is_file() or hashlib.sha256(weights.read_bytes()).hexdigest() != saved.sha256:
        raise FormatError(f"{_WEIGHTS}: missing, truncated or altered; train on in the folder, or copy it again")
    return tokenizer_from(read_state(weights), config=saved.tokenizer)


def tokenizer_fingerprint(tokenizer: VQVAE) -> str:
    """Returns 12 hexadecimal digits of settings and weights: equal where the tokens of all images are."""
    settings = tokenizer.config.model_dump_json().encode()
    return hashlib.sha256(settings + _weights(tokenizer)).hexdigest()[:_DIGITS]


def data_fingerprint(dataset: ImageDataset) -> str:
    """Returns 8 hexadecimal digits of images, labels and class names."""
    crc = zlib.crc32(np.ascontiguousarray(dataset.images).data)
    crc = zlib.crc32(np.ascontiguousarray(dataset.labels).data, crc)
    return f"{zlib.crc32(repr((dataset.images.shape, dataset.class_names)).encode(), crc):08x}"


def cached_tokens(
    folder: str | os.PathLike[str], tokenizer: VQVAE, dataset: ImageDataset, *, progress: Progress | None = None
) -> TokenDataset:
    """Encodes images, or reads what an earlier call encoded from the same images with the same tokenizer.

    Args:
        folder: keeps the tokens, 4·L bytes an image; made if needed.
        tokenizer: on the device to encode on.
        dataset: images of its size.
        progress: called with ``("encoding", done, images)``, where there is work to do.

    Returns:
        The tokens, under a name that tells the data and the tokenizer.

    Raises:
        ShapeError: images of another size.
        FormatError: the kept file is damaged; delete it.
        OSError: the folder cannot be written.
    """
    root = Path(folder)
    keys = data_fingerprint(dataset), tokenizer_fingerprint(tokenizer)
    name = f"{dataset.name} ({keys[0]}) through tokenizer {keys[1]}"
    path = root / f"tokens-{keys[0]}-{keys[1]}.sparing"
    if path.is_file():
        kept = read_artifact(path, schema=_TOKENS_SCHEMA, versions={_TOKENS_VERSION}).arrays
        return TokenDataset(kept["tokens"], kept["labels"], name)
    found = encode_dataset(tokenizer, dataset, progress=progress)
    root.mkdir(parents=True, exist_ok=True)
    write_artifact(
        path,
        schema=_TOKENS_SCHEMA,
        version=_TOKENS_VERSION,
        arrays={"tokens": found.tokens, "labels": found.labels},
        meta={"data": dataset.name, "tokenizer": keys[1]},
    )
    return TokenDataset(found.tokens, found.labels, name)


def _weights(tokenizer: VQVAE) -> bytes:
    return save({name: t.detach().cpu().contiguous() for name, t in tokenizer.state_dict().items()})
