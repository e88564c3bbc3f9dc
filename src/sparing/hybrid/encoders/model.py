"""Model directories of neural encoders: finding, checking, loading without noise, and the arithmetic they run in."""

import contextlib
import hashlib
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from sparing.errors import ArgumentError, FormatError, MissingExtraError
from sparing.hybrid.encoders.settings import ModelSettings
from sparing.runs.precision import Precision, resolve_precision

__all__ = [
    "HUB_PREFIX",
    "autocast",
    "check_sha256",
    "load_model",
    "model_sha256",
    "open_model",
    "resolve_model",
]

HUB_PREFIX = "hf://"
_HASHED_SUFFIXES = {".safetensors", ".bin", ".pt", ".json", ".txt", ".model"}
_IGNORED_FOLDERS = {"onnx", "openvino"}
_CHUNK_BYTES = 1 << 20
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, AttributeError, pickle.UnpicklingError)

_Settings = TypeVar("_Settings", bound=ModelSettings)

_log = logging.getLogger(__name__)


def resolve_model(model: str) -> Path:
    """Finds a model's directory.

    Args:
        model: a directory, or ``"hf://owner/name"`` / ``"hf://owner/name@revision"``. Only the second form may use the
            network, and only for what is not in the hub's local cache.

    Returns:
        The directory.

    Raises:
        ArgumentError: no such directory, not a model directory, or the hub has no such model or cannot be reached.
        MissingExtraError: a hub name without huggingface_hub installed.
    """
    if model.startswith(HUB_PREFIX):
        return _download(model)
    path = Path(model).expanduser()
    if not path.is_dir():
        what = "a file" if path.exists() else "nothing there"
        raise ArgumentError(
            f"model: expected a model directory, got {model!r} ({what}); give the folder with config.json and "
            f"the weights, or {HUB_PREFIX}OWNER/NAME for a model on the hub"
        )
    if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
        raise ArgumentError(
            f"model: {model!r} is not a model directory: it has neither config.json nor modules.json; "
            "give the folder that save_pretrained wrote"
        )
    return path


def _download(model: str) -> Path:
    name, _, revision = model.removeprefix(HUB_PREFIX).partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", extra="text", purpose=f"the model {model}") from error
    options: dict[str, Any] = {
        "revision": revision or None,
        "ignore_patterns": ["onnx/*", "openvino/*", "*.h5", "*.msgpack"],
    }
    try:
        try:
            return Path(snapshot_download(name, local_files_only=True, **options))
        except FileNotFoundError:
            return Path(snapshot_download(name, **options))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"model: {model!r} could not be had from the hub: {error}") from error


def model_sha256(folder: Path) -> str:
    """Checksum over the files that decide what a model computes: weights, tokenizer, settings; not its documentation.

    Args:
        folder: a model directory.

    Returns:
        64 hexadecimal digits. About 0.1 s for 100 MB.

    Raises:
        ArgumentError: no file with weights in the directory.
    """
    files = sorted(
        (path.relative_to(folder).as_posix(), path)
        for path in folder.rglob("*")
        if path.suffix in _HASHED_SUFFIXES and path.is_file() and not _is_ignored(path.relative_to(folder))
    )
    if not any(path.suffix in {".safetensors", ".bin"} for _, path in files):
        raise ArgumentError(
            f"model: no weights (*.safetensors or *.bin) in {str(folder)!r}; give a complete model directory"
        )
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _is_ignored(relative: Path) -> bool:
    return any(part in _IGNORED_FOLDERS or part.startswith(".") for part in relative.parts)


def check_sha256(model: str, *, expected: str | None, got: str) -> None:
    """Refuses a model that is not the one an index was built with.

    Raises:
        FormatError: the checksums differ.
    """
    if expected is not None and expected != got:
        raise FormatError(
            f"model {model!r} is not the one that the index was built with: expected checksum {expected[:12]}..., got "
            f"{got[:12]}...; put the old model back (or name its folder when opening), or build the index again"
        )


@contextlib.contextmanager
def autocast(precision: Precision, device: str) -> Iterator[None]:
    """Runs a model without gradients, in bfloat16 where wanted."""
    import torch

    with (
        torch.inference_mode(),
        torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        yield


@contextlib.contextmanager
def _load_quietly() -> Iterator[None]:
    """Keeps transformers' progress bars off the terminal while a model is loaded."""
    from transformers.utils import logging

    hf_logging: Any = logging
    was_on = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            hf_logging.enable_progress_bar()


def load_model(kind: str, folder: Path, *, device: str | None, max_tokens: int | None) -> Any:
    """Loads a sentence-transformers model from its directory, in float32 and without the network.

    Args:
        kind: ``"SentenceTransformer"`` or ``"SparseEncoder"``.
        folder: the model directory; one without ``modules.json`` gets the kind's usual pooling.
        device: a torch device name, or None for the first CUDA device if there is one, else the CPU.
        max_tokens: the most tokens of a text, or None for the directory's own limit.

    Returns:
        The model, in evaluation mode.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        ArgumentError: the directory does not load, or it has fewer positions than `max_tokens`.
    """
    purpose = "the dense encoder" if kind == "SentenceTransformer" else "the SPLADE encoder"
    try:
        import sentence_transformers
        import torch
        from safetensors import SafetensorError
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", extra="text", purpose=purpose) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with _load_quietly():
            model = getattr(sentence_transformers, kind)(str(folder), device=device, local_files_only=True)
    except (*_LOAD_ERRORS, SafetensorError) as error:
        raise ArgumentError(f"model: {str(folder)!r} does not load as a {kind}: {error}") from error
    model.float().eval()
    if max_tokens is not None:
        limit = model.max_seq_length
        if limit is not None and max_tokens > limit:
            raise ArgumentError(f"max_tokens: expected at most {limit}, the model's own limit, got {max_tokens}")
        model.max_seq_length = max_tokens
    _log.debug("loaded %s from %s on %s", kind, folder, device)
    return model


def open_model(kind: str, settings: _Settings, *, device: str | None) -> tuple[Any, _Settings]:
    """Finds, checks and loads the model of an encoder's settings.

    Args:
        kind: as :func:`load_model` takes it.
        settings: the model and how to run it.
        device: a torch device name; None takes the first CUDA device if there is one, else the CPU.

    Returns:
        The model, and the settings with the whole path, checksum and precision filled in.

    Raises:
        ArgumentError, FormatError, MissingExtraError: as :func:`resolve_model`, :func:`check_sha256` and
            :func:`load_model`.
    """
    folder = resolve_model(settings.model)
    sha256 = model_sha256(folder)
    check_sha256(settings.model, expected=settings.sha256, got=sha256)
    model = load_model(kind, folder, device=device, max_tokens=settings.max_tokens)
    precision = resolve_precision(settings.precision, model.device)
    name = settings.model if settings.model.startswith(HUB_PREFIX) else str(folder.resolve())
    return model, settings.model_copy(update={"model": name, "sha256": sha256, "precision": precision})
