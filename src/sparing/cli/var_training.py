"""What both trainings of `sparing var` share: settings from a file and from options, Ctrl-C, records."""

import argparse
import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from sparing.cli.options import integers
from sparing.errors import ConfigError, FormatError
from sparing.runs.atomic import replace_file

if TYPE_CHECKING:
    from sparing.vision import ImageDataset

__all__ = [
    "KEPT",
    "TRAINING",
    "model_options",
    "named",
    "read_settings",
    "settings",
    "training_options",
    "write_history",
]

_C = TypeVar("_C", bound=BaseModel)

TRAINING = ("steps", "batch_size", "learning_rate", "seed", "precision")
"""Fields of the training that are options."""

KEPT = "what was trained is kept: the same command goes on from there"
"""What Ctrl-C says of a training."""

_HELP = {
    "patch_nums": "side of each scale's token map",
    "vocab_size": "number of codes",
    "z_channels": "length of a code",
    "ch": "channels of the widest level",
    "ch_mult": "multiple of ch at each level; each level but the last halves the side",
    "num_groups": "groups of each norm; ch is a multiple",
    "depth": "number of blocks",
    "embed_dim": "width",
    "num_heads": "attention heads",
}


def training_options(parser: argparse.ArgumentParser, defaults: Mapping[str, Any], tables: str) -> None:
    """Adds what and how to train. Options say None where they are not given, so that the file's settings count."""
    parser.add_argument("data", metavar="DATA", help="CIFAR-10, or a folder of pictures with one sub-folder a class")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="the folder to write; a training in it that was stopped goes on"
    )
    parser.add_argument("--config", metavar="FILE.toml", help=f"settings in tables {tables}; options come before them")
    for name, kind in (("steps", int), ("batch_size", int), ("learning_rate", float), ("seed", int)):
        text = f"default: {defaults.get(name, 0)}"
        parser.add_argument(_flag(name), type=kind, metavar="X" if kind is float else "N", help=text)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="of the arithmetic (default: bfloat16)")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, ...")


def model_options(parser: argparse.ArgumentParser, defaults: Mapping[str, Any], flags: Mapping[str, str]) -> None:
    """Adds options of the model: from field to flag."""
    for name, flag in flags.items():
        default, several = defaults[name], isinstance(defaults[name], tuple)
        shown = ",".join(map(str, default)) if several else str(default)
        parser.add_argument(
            flag,
            dest=name,
            type=integers if several else int,
            metavar="1,2,..." if several else "N",
            help=f"{_HELP[name]} (default: {shown})",
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_settings(path: str | None, tables: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Reads a TOML file of tables.

    Args:
        path: the file; None gives empty tables.
        tables: the tables that it may hold.

    Raises:
        FormatError: not TOML.
        ConfigError: another table.
        OSError: the file cannot be read.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in tables}
    if path is None:
        return found
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not TOML: {error}") from None
    for name, table in document.items():
        if name not in found or not isinstance(table, dict):
            raise ConfigError(f"{path}: expected only the tables {', '.join(f'[{t}]' for t in found)}, got {name!r}")
        found[name] = table
    return found


def settings(
    kind: type[_C],
    defaults: Mapping[str, Any],
    table: Mapping[str, Any],
    arguments: argparse.Namespace,
    names: Iterable[str],
) -> _C:
    """Makes settings: defaults, then the file's, then the options' by their names.

    Raises:
        ConfigError: a field that is unknown or out of range.
    """
    from sparing.runs.documents import validated

    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return validated(kind, {**defaults, **table, **given})


def named(dataset: "ImageDataset", *more: str) -> "ImageDataset":
    """Puts the images' fingerprint into their name, so that a resume with other images is seen and refused."""
    from sparing.var.layout import data_fingerprint

    return dataclasses.replace(dataset, name=", ".join((f"{dataset.name} ({data_fingerprint(dataset)})", *more)))


def write_history(folder: Path, history: list[dict[str, float]]) -> str:
    """Writes `history.json`, and returns its name."""
    path = folder / "history.json"
    with replace_file(path) as file:
        file.write(json.dumps(history, indent=1, allow_nan=False).encode() + b"\n")
    return str(path)
