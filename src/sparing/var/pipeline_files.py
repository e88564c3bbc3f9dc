"""The folder of a saved pipeline: settings, weights and the plan in force, whole at every moment."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator
from safetensors.torch import save
from torch import nn

from sparing.errors import FormatError
from sparing.runs.atomic import only_writer, replace_file
from sparing.runs.documents import parse_document
from sparing.var.checkpoints import read_state, tokenizer_from, transformer_from
from sparing.var.compact import pack_state, unpack_state
from sparing.var.config import TokenizerConfig, VARConfig
from sparing.var.plan import CompressionPlan, load_plan
from sparing.var.transformer import VARTransformer
from sparing.var.vqvae import VQVAE

__all__ = ["PipelineParts", "read_parts", "upload_parts", "write_parts"]

_CONFIG = "config.json"
_MODELS = ("tokenizer", "transformer")
_SCHEMA: Literal["sparing.var.pipeline"] = "sparing.var.pipeline"
_VERSION: Literal[1] = 1
_READ_ATTEMPTS = 10
_NAMED = ("tokenizer-*.safetensors", "transformer-*.safetensors", "plan-*.json")


@dataclass(frozen=True, eq=False)
class PipelineParts:
    """What a folder holds: two models, the names of the classes, and the plan that was in force."""

    tokenizer: VQVAE
    transformer: VARTransformer
    class_names: tuple[str, ...] | None
    plan: CompressionPlan | None


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: Literal["sparing.var.pipeline"]
    version: int
    tokenizer: TokenizerConfig
    transformer: VARConfig
    class_names: tuple[str, ...] | None = None
    weight_bits: Literal[8] | None = None
    files: dict[str, str]
    sha256: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names, classes = self.class_names, self.transformer.num_classes
        if names is not None and len(names) != classes:
            raise ValueError(f"class_names: expected {classes} names, got {len(names)}")
        return self


def write_parts(folder: Path, parts: PipelineParts, *, weight_bits: Literal[8] | None = None) -> None:
    """Writes a folder; being killed leaves what was there before.

    Args:
        folder: exists.
        parts: the plan fits the weights as they will be read.
        weight_bits: 8 rounds large weights to codes of a byte.

    Raises:
        BusyError: another process is writing to the folder.
        OSError: a file cannot be written.
    """
    contents = {name: (_tensor_bytes(getattr(parts, name), weight_bits), "safetensors") for name in _MODELS}
    if parts.plan is not None:
        contents["plan"] = (parts.plan.to_json().encode(), "json")
    digests = {name: hashlib.sha256(data).hexdigest() for name, (data, _) in contents.items()}
    # The digest in the name: an interrupted save leaves the old files and the settings that name them.
    files = {name: f"{name}-{digests[name][:12]}.{suffix}" for name, (_, suffix) in contents.items()}
    saved = _Saved(
        schema_name=_SCHEMA,
        version=_VERSION,
        tokenizer=parts.tokenizer.config,
        transformer=parts.transformer.config,
        class_names=parts.class_names,
        weight_bits=weight_bits,
        files=files,
        sha256=digests,
    )
    with only_writer(folder):
        for name, (data, _) in contents.items():
            with replace_file(folder / files[name]) as file:
                file.write(data)
        with replace_file(folder / _CONFIG) as file:
            file.write(saved.model_dump_json(indent=1).encode() + b"\n")
        for pattern in _NAMED:
            for old in folder.glob(pattern.replace("*", "[0-9a-f]" * 12)):
                if old.name not in files.values():
                    old.unlink()


def read_parts(folder: Path) -> PipelineParts:
    """Reads what :func:`write_parts` wrote.

    Raises:
        FormatError: a file is missing, truncated or altered, or settings do not fit the weights.
        VersionError: written in a version that this release does not read.
    """
    for _ in range(_READ_ATTEMPTS - 1):
        settings = _settings(folder)
        try:
            return _read(folder, settings)
        except FormatError:
            # A writer may have put other files in force, and removed these, while they were read.
            if settings == _settings(folder):
                raise
    return _read(folder, _settings(folder))


def upload_parts(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str = "Save a pipeline of sparing",
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> Any:
    """Sends what :func:`write_parts` wrote, and the card beside it, to the hub, and removes what they replace there.

    Args:
        folder: of the files.
        repo_id: OWNER/NAME; made if needed.
        commit_message: of the upload.
        private: who sees a repository that is made.
        token: of the hub; None: the one that is logged in.
        branch: None: the main one.
        create_pr: whether to open a pull request.

    Returns:
        Where it is, as ``huggingface_hub`` says.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    return api.upload_folder(
        repo_id=api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id,
        repo_type="model",
        folder_path=folder,
        commit_message=commit_message,
        revision=branch,
        create_pr=create_pr,
        allow_patterns=[_CONFIG, "README.md", *_NAMED],
        delete_patterns=list(_NAMED),
    )


def _read(folder: Path, settings: bytes) -> PipelineParts:
    saved = _read_saved(settings)
    for name, file_name in saved.files.items():
        file = folder / file_name
        if not file.is_file() or _sha256(file) != saved.sha256[name]:
            raise FormatError(f"{file_name}: missing, truncated or altered; save or copy the folder again")
    try:
        states = {name: read_state(folder / saved.files[name]) for name in _MODELS}
        plan = load_plan(folder / saved.files["plan"]) if "plan" in saved.files else None
    except FileNotFoundError as error:
        raise FormatError(f"{error}; save or copy the folder again") from error
    if saved.weight_bits is not None:
        states = {name: unpack_state(state) for name, state in states.items()}
    return PipelineParts(
        tokenizer_from(states["tokenizer"], config=saved.tokenizer),
        transformer_from(states["transformer"], config=saved.transformer),
        saved.class_names,
        plan,
    )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _tensor_bytes(model: nn.Module, weight_bits: int | None) -> bytes:
    state = model.state_dict() if weight_bits is None else pack_state(model.state_dict())
    return save({name: t.detach().cpu().contiguous() for name, t in state.items()})


def _settings(folder: Path) -> bytes:
    try:
        return (folder / _CONFIG).read_bytes()
    except FileNotFoundError:
        raise FormatError(f"{folder.name}: no {_CONFIG}; give a folder that save_pretrained wrote") from None


def _read_saved(data: bytes) -> _Saved:
    saved = parse_document(data, _Saved, schema=_SCHEMA, version=_VERSION, name=_CONFIG, what="a saved VARPipeline")
    if any(Path(name).name != name for name in saved.files.values()) or set(saved.files) != set(saved.sha256):
        raise FormatError(f"{_CONFIG}: files: expected plain names with checksums")
    if not set(_MODELS) <= set(saved.files) <= {*_MODELS, "plan"}:
        expected = f"{', '.join(_MODELS)} and perhaps plan"
        raise FormatError(f"{_CONFIG}: files: expected {expected}, got {sorted(saved.files)}")
    return saved
