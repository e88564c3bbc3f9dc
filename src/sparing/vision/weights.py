"""Trained classifiers as files: safetensors with the architecture inside, so that any of them opens by its path."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, RootModel
from torch import Tensor, nn

from sparing.errors import ArgumentError, DtypeError, FormatError, MissingExtraError, NonFiniteError
from sparing.runs.atomic import replace_file
from sparing.runs.documents import json_values, parse_document
from sparing.vision.mobilenet import MobileNetV2, MobileNetV2Config
from sparing.vision.resnet import ResNet, ResNetConfig
from sparing.vision.vgg import VGG, VGGConfig

__all__ = ["Classifier", "SavedClassifier", "load_classifier", "save_classifier"]

_SCHEMA: Literal["sparing.vision.classifier"] = "sparing.vision.classifier"
_VERSION = 1  # 1: first
# All in one entry: safetensors does not keep the order of several, and the same input is to give the same bytes.
_ENTRY = "sparing"

Classifier: TypeAlias = ResNet | VGG | MobileNetV2
_Config: TypeAlias = ResNetConfig | VGGConfig | MobileNetV2Config
_FAMILIES = {ResNet: "resnet", VGG: "vgg", MobileNetV2: "mobilenet_v2"}


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_name: Literal["sparing.vision.classifier"]
    version: int
    class_names: tuple[str, ...]
    meta: dict[str, Any]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _SavedResNet(_Saved):
    family: Literal["resnet"]
    architecture: ResNetConfig


class _SavedVGG(_Saved):
    family: Literal["vgg"]
    architecture: VGGConfig


class _SavedMobileNetV2(_Saved):
    family: Literal["mobilenet_v2"]
    architecture: MobileNetV2Config


class _Description(RootModel[Annotated[_SavedResNet | _SavedVGG | _SavedMobileNetV2, Field(discriminator="family")]]):
    pass


@dataclass(frozen=True, eq=False)
class SavedClassifier:
    """What a file holds.

    Attributes:
        model: in float32 on the CPU, in evaluation mode.
        class_names: one name a class, or none.
        meta: the JSON values that were saved with it.
    """

    model: Classifier
    class_names: tuple[str, ...]
    meta: dict[str, Any]


def save_classifier(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    class_names: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Writes a classifier to one file, replacing it as a whole. The same input gives the same bytes.

    Args:
        path: the file; its folder must exist. Any reader of safetensors finds the weights in it.
        model: a ResNet, VGG or MobileNetV2 of :mod:`sparing.vision` with its own layers, in float32.
        class_names: one name a class, or none.
        meta: JSON values to keep with it, for example accuracy and how it was trained.

    Raises:
        ArgumentError: another kind of model, layers that were exchanged, another number of class names than classes, or
            values that JSON cannot hold.
        DtypeError: weights that are not float32.
        NonFiniteError: a weight is NaN or infinite.
        MissingExtraError: safetensors is not installed.
        OSError: the disk is full, or the folder missing. An older file is unchanged.
    """
    safetensors = _safetensors()
    if not isinstance(model, Classifier):
        raise ArgumentError(
            f"model: expected a ResNet, VGG or MobileNetV2 of sparing.vision, got {type(model).__name__}"
        )
    names = json_values("class_names", {"names": list(class_names)})["names"]
    if names and len(names) != model.config.num_classes:
        raise ArgumentError(f"class_names: expected {model.config.num_classes} names or none, got {len(names)}")
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    expected = _layout(model.config)
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if given != {name: shape for name, (shape, _) in expected.items()}:
        odd = sorted(set(given.items()) ^ {(name, shape) for name, (shape, _) in expected.items()})
        raise ArgumentError(
            f"model: its weights are not those of its architecture, as exchanged layers make it: {odd[:4]}"
        )
    empty = dict(_empty(model.config).named_modules())
    for name, module in model.named_modules():
        if name not in empty or _told(module) != _told(empty[name]):
            usual = _told(empty[name]) if name in empty else "nothing"
            raise ArgumentError(
                f"model: {name or 'itself'}: expected {usual}, as its architecture has it, got {_told(module)}"
            )
    for name, tensor in tensors.items():
        if tensor.dtype != expected[name][1]:
            raise DtypeError(f"model: {name}: expected {expected[name][1]}, got {tensor.dtype}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"model: {name} holds NaN or infinity")
    document = {
        "schema_name": _SCHEMA,
        "version": _VERSION,
        "family": next(name for kind, name in _FAMILIES.items() if isinstance(model, kind)),
        "architecture": model.config.model_dump(mode="json"),
        "class_names": names,
        "meta": json_values("meta", meta or {}),
    }
    document["sha256"] = _digest(document, tensors)
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    try:
        _parsed(text, "the file")
    except FormatError as error:
        raise ArgumentError(f"class_names, meta: expected what could be read again: {error}") from None
    raw = safetensors.torch.save(tensors, metadata={_ENTRY: text})
    with replace_file(path) as file:
        file.write(raw)


def load_classifier(path: str | os.PathLike[str]) -> SavedClassifier:
    """Reads a file of :func:`save_classifier`, whatever its architecture. Nothing is allocated beyond the file's size.

    Args:
        path: the file.

    Returns:
        The model and what was saved with it.

    Raises:
        FileNotFoundError: there is no such file.
        FormatError: the file is truncated, altered or of another kind, or its weights do not fit its architecture.
        VersionError: it was written in a version that this release does not read.
        NonFiniteError: a weight is NaN or infinite.
        MissingExtraError: safetensors is not installed.
    """
    safetensors = _safetensors()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY, "null")
            description = _parsed(text, str(path))
            _check_layout(file, description.architecture, path)
            # Copies: what safetensors gives are views of the file, which may be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise FormatError(f"{path}: not a file of safetensors, or truncated: {error}") from error
    document = {key: value for key, value in json.loads(text).items() if key != "sha256"}
    if _digest(document, tensors) != description.sha256:
        raise FormatError(f"{path}: was altered: its checksum does not match; restore it from a copy")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{path}: {name} holds NaN or infinity")
    model = _empty(description.architecture)
    model.load_state_dict(tensors, assign=True)
    return SavedClassifier(model=model.eval(), class_names=description.class_names, meta=description.meta)


def _told(module: nn.Module) -> str:
    return f"{type(module).__name__}({module.extra_repr()})"


def _parsed(text: str, name: str) -> _SavedResNet | _SavedVGG | _SavedMobileNetV2:
    what = "a saved classifier"
    return parse_document(text, _Description, schema=_SCHEMA, version=_VERSION, name=name, what=what).root


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError("safetensors", extra="vision", purpose="a classifier's file") from error
    return safetensors


def _empty(config: _Config) -> Classifier:
    with torch.device("meta"):
        if isinstance(config, ResNetConfig):
            return ResNet(config)
        return VGG(config) if isinstance(config, VGGConfig) else MobileNetV2(config)


def _layout(config: _Config) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(t.shape), t.dtype) for name, t in _empty(config).state_dict().items()}


def _check_layout(file: Any, config: _Config, path: object) -> None:
    expected = _layout(config)
    names = set(file.keys())
    if names != set(expected):
        odd = sorted(names ^ set(expected))
        raise FormatError(f"{path}: its weights are not those of its architecture: {odd[:5]}")
    types = {torch.float32: "F32", torch.int64: "I64"}
    for name, (shape, dtype) in expected.items():
        entry = file.get_slice(name)
        if tuple(entry.get_shape()) != shape or entry.get_dtype() != types[dtype]:
            got = f"{entry.get_dtype()} of shape {tuple(entry.get_shape())}"
            raise FormatError(f"{path}: {name}: expected {types[dtype]} of shape {shape}, got {got}")


def _digest(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
