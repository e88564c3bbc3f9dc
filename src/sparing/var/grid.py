"""Drawn images as one picture: grids, two pipelines side by side on the same seeds, and PNG files."""

import os
from io import BytesIO

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError, DtypeError, MissingExtraError, ShapeError
from sparing.runs.atomic import replace_file

__all__ = ["difference_grid", "image_grid", "save_png"]

Images = npt.NDArray[np.uint8]

_BACKGROUND = 255
_MAX_GAIN = 255


def image_grid(images: Images, columns: int, *, scale: int = 3, gap: int = 2) -> Images:
    """Lays images out row by row.

    Args:
        images: (n, 3, h, w) uint8, n ≥ 1.
        columns: images a row; places left over in the last row stay white.
        scale: pixels that each pixel becomes, along one side.
        gap: white pixels between neighbours, not scaled; none around the picture.

    Returns:
        (height, width, 3) uint8: `rows`·h·scale + (`rows` − 1)·gap high, and likewise wide.

    Raises:
        DtypeError: images that are not uint8.
        ShapeError: other axes, or no image.
        ArgumentError: `columns` or `scale` below 1, or `gap` below 0.

    Example:
        >>> image_grid(np.zeros((3, 3, 4, 4), np.uint8), 2, scale=1, gap=1).shape
        (9, 9, 3)
    """
    _check("images", images)
    if columns < 1 or scale < 1 or gap < 0:
        raise ArgumentError(f"columns, scale, gap: expected at least 1, 1 and 0, got {columns}, {scale} and {gap}")
    height, width = (side * scale + gap for side in images.shape[2:])
    rows = -(-len(images) // columns)
    grid = np.full((rows * height, columns * width, 3), _BACKGROUND, np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * height, place % columns * width
        cell = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        grid[top : top + height - gap, left : left + width - gap] = cell
    return grid[: rows * height - gap, : columns * width - gap].copy()


def difference_grid(baseline: Images, compressed: Images, *, scale: int = 3, gain: int = 4) -> Images:
    """Shows what compression changes: a row of images without it, the same with it, and how far they are apart.

    Args:
        baseline: (n, 3, h, w) uint8.
        compressed: the same shape, drawn with the same labels and seeds.
        scale: as in :func:`image_grid`.
        gain: the third row is |baseline − compressed| times this, at most 255; black where nothing changed.

    Returns:
        (height, width, 3) uint8 with n columns and three rows.

    Raises:
        DtypeError: images that are not uint8.
        ShapeError: other axes, or two sets of different shape.
        ArgumentError: a gain below 1 or above 255, or a `scale` below 1.
    """
    _check("baseline", baseline)
    _check("compressed", compressed)
    if baseline.shape != compressed.shape:
        raise ShapeError(f"compressed: expected the shape of baseline {baseline.shape}, got {compressed.shape}")
    if not 1 <= gain <= _MAX_GAIN:
        raise ArgumentError(f"gain: expected 1 to {_MAX_GAIN}, got {gain}")
    apart = np.abs(baseline.astype(np.int32) - compressed) * gain
    rows = np.concatenate([baseline, compressed, apart.clip(0, _BACKGROUND).astype(np.uint8)])
    return image_grid(rows, len(baseline), scale=scale)


def save_png(path: str | os.PathLike[str], picture: Images) -> None:
    """Writes a picture, replacing the file as a whole. The same picture gives the same bytes.

    Args:
        path: the file; its folder must exist.
        picture: (height, width, 3) uint8.

    Raises:
        DtypeError: not uint8.
        ShapeError: other axes.
        MissingExtraError: Pillow is not installed.
        OSError: the file cannot be written; an older one is unchanged.
    """
    if picture.dtype != np.uint8:
        raise DtypeError(f"picture: expected uint8, got {picture.dtype}")
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ShapeError(f"picture: expected (height, width, 3), got {picture.shape}")
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", extra="var", purpose="a picture of drawn images") from error
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG")
    with replace_file(path) as file:
        file.write(buffer.getvalue())


def _check(name: str, images: Images) -> None:
    if images.dtype != np.uint8:
        raise DtypeError(f"{name}: expected uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ShapeError(f"{name}: expected (n ≥ 1, 3, h, w), got {images.shape}")
