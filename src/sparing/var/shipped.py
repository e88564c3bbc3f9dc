"""Models that come with the package."""

from importlib.resources import files
from pathlib import Path

__all__ = ["SHIPPED", "shipped_folder"]

SHIPPED = ("cifar10",)
"""Names of the models that :meth:`~sparing.var.VARPipeline.from_pretrained` takes in place of a folder."""


def shipped_folder(name: str) -> Path | None:
    """Returns the folder of a model that comes with the package, or None for any other name."""
    return Path(str(files("sparing.var"))) / "models" / name if name in SHIPPED else None
