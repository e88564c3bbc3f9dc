"""Labelled images in memory: CIFAR-10 in two forms, and a user's own folders of pictures."""

import io
import itertools
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparing.errors import ArgumentError, DtypeError, FormatError, MissingExtraError, ShapeError
from sparing.runs import Progress

__all__ = ["ImageDataset", "load_cifar10", "load_image_folder"]

_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SIDE = 32
_RECORD_BYTES = 1 + 3 * _SIDE * _SIDE
_BATCH_IMAGES = 10_000
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_BINARY_FOLDER = "cifar-10-batches-bin"  # the name inside the official archive
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_PROGRESS_EVERY = 500


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images with one class each. The arrays are the caller's, not copied; do not change them.

    Attributes:
        images: `n × 3 × h × w` uint8, red, green, blue.
        labels: `n` int64, each in [0, number of classes).
        class_names: one distinct name a class.
        name: what to call the data wherever a number from it is shown.

    Raises:
        DtypeError: `images` is not a uint8 array, or `labels` not an int64 array.
        ShapeError: other axes, no image, or another number of labels than images.
        ArgumentError: a label out of range, no or repeated class names, or an empty name.

    Example:
        >>> images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 1, 0, 1])
        >>> len(ImageDataset(images, labels, class_names=("cat", "dog"), name="demo").subset([0, 2]))
        2
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        _check_array("images", self.images, np.uint8)
        _check_array("labels", self.labels, np.int64)
        if self.images.ndim != 4 or self.images.shape[1] != 3 or 0 in self.images.shape:
            raise ShapeError(
                f"images: expected n × 3 × height × width with none of them 0, got shape {self.images.shape}"
            )
        if self.labels.shape != (len(self.images),):
            raise ShapeError(f"labels: expected shape ({len(self.images)},), got {self.labels.shape}")
        names: object = self.class_names
        if not isinstance(names, tuple) or not names or len(set(names)) != len(names):
            raise ArgumentError(f"class_names: expected a tuple of one or more distinct names, got {names!r}")
        bad = np.flatnonzero((self.labels < 0) | (self.labels >= len(names)))
        if len(bad):
            raise ArgumentError(
                f"labels: expected 0 to {len(names) - 1}, got {self.labels[bad[0]]} for image {bad[0]} "
                f"({len(bad)} such labels)"
            )
        if not self.name:
            raise ArgumentError("name: expected what to call the data, got an empty string")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """How many classes there are, whether or not each has an image."""
        return len(self.class_names)

    def subset(self, indices: npt.ArrayLike) -> "ImageDataset":
        """Copies some of the images, in the order given; an image may be taken more than once.

        Args:
            indices: 1-D integers in [0, n), at least one.

        Returns:
            A dataset of the same classes and name.

        Raises:
            DtypeError: indices that are not integers (a mask: use ``np.flatnonzero(mask)``).
            ShapeError: not one axis, or no index.
            ArgumentError: an index out of range.
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or len(chosen) == 0:
            raise ShapeError(f"indices: expected one axis with at least one index, got shape {chosen.shape}")
        if chosen.dtype.kind not in "iu":
            raise DtypeError(f"indices: expected integers, got {chosen.dtype}; for a mask use np.flatnonzero(mask)")
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise ArgumentError(
                f"indices: expected 0 to {len(self) - 1}, got values from {chosen.min()} to {chosen.max()}"
            )
        return ImageDataset(self.images[chosen], self.labels[chosen], self.class_names, self.name)


def load_cifar10(
    folder: str | os.PathLike[str], *, split: Literal["train", "test"], progress: Progress | None = None
) -> ImageDataset:
    """Loads CIFAR-10 in the form that lies in a folder; the official binary version if both do.

    - The official *binary* version: ``data_batch_{1..5}.bin`` and ``test_batch.bin``, in the folder or in its
      ``cifar-10-batches-bin``. The result's name is ``"CIFAR-10"``.
    - The JPEG form: ``data_batch_{1..5}.npz`` and ``test_batch.npz`` with `jpeg` (all files' bytes, uint8), `offsets`
      (n + 1, int64) and `labels` (n, uint8). The images are not the originals: the name is ``"CIFAR-10 (JPEG)"``.

    The official Python version is made of pickles and is not read.

    Args:
        folder: where the files are.
        split: ``"train"`` (50,000 images) or ``"test"`` (10,000).
        progress: called with the images decoded so far.

    Returns:
        Images of 32 × 32. About 1 s for 10,000 JPEG images.

    Raises:
        ArgumentError: another split, or neither form is in the folder.
        FormatError: a file is missing, truncated or altered, or a JPEG is damaged; the message names file and image.
        MissingExtraError: the JPEG form without Pillow.

    Source:
        A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    if split not in _BATCHES:
        raise ArgumentError(f"split: expected 'train' or 'test', got {split!r}")
    root = Path(folder)
    names = _BATCHES[split]
    for place in (root, root / _BINARY_FOLDER):
        if any((place / f"{name}.bin").is_file() for name in names):
            parts = [_read_binary(place / f"{name}.bin") for name in names]
            return _joined(parts, "CIFAR-10")
    if any((root / f"{name}.npz").is_file() for name in names):
        parts = []
        for number, name in enumerate(names):
            parts.append(_read_jpegs(root / f"{name}.npz", progress, number * _BATCH_IMAGES, len(names)))
        return _joined(parts, "CIFAR-10 (JPEG)")
    hint = "; the Python version is made of pickles and is not read" if (root / names[0]).is_file() else ""
    raise ArgumentError(
        f"folder: found neither {names[0]}.bin nor {names[0]}.npz in {str(root)!r}{hint}. Give the folder "
        "with the files of the binary version of CIFAR-10 (cifar-10-binary.tar.gz, unpacked)"
    )


def load_image_folder(folder: str | os.PathLike[str], *, size: int, progress: Progress | None = None) -> ImageDataset:
    """Loads a user's pictures: one sub-folder per class, cut to a centred square and resized.

    Classes are the sub-folders in the order of their names, images of a class (also in deeper folders) in the order of
    their paths, so that the same folder always gives the same bytes. Names that start with a dot, and files that are
    not pictures by their suffix, are passed over. Pictures are turned as their EXIF data says and become RGB.

    Args:
        folder: the folder; its name becomes the dataset's.
        size: height and width of the result in pixels, 1 to 4096.
        progress: called with the images loaded so far.

    Returns:
        Images of `size` × `size`.

    Raises:
        ArgumentError: no such folder, no class, a class without pictures, or a `size` out of range.
        FormatError: a picture that cannot be decoded; the message names the file.
        MissingExtraError: Pillow is not installed.
    """
    if not 1 <= size <= 4096:
        raise ArgumentError(f"size: expected 1 to 4096 pixels, got {size}")
    root = Path(folder)
    if not root.is_dir():
        raise ArgumentError(f"folder: expected a folder with one sub-folder per class, got {str(root)!r}")
    classes = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ArgumentError(f"folder: {str(root)!r} has no sub-folders; put the pictures of each class into one")
    files: list[tuple[Path, int]] = []
    for label, entry in enumerate(classes):
        found = [(file, label) for file in sorted(entry.rglob("*")) if _is_picture(file, entry)]
        if not found:
            raise ArgumentError(f"folder: the class {entry.name!r} has no pictures ({', '.join(sorted(_SUFFIXES))})")
        files += found
    images = np.empty((len(files), 3, size, size), np.uint8)
    for index, (file, _) in enumerate(files):
        _report(progress, index, len(files))
        images[index] = _decode(file.read_bytes(), str(file), size=size)
    _report(progress, len(files), len(files))
    labels = np.array([label for _, label in files], np.int64)
    return ImageDataset(images, labels, tuple(entry.name for entry in classes), root.resolve().name or "images")


def _check_array(name: str, array: object, dtype: type[np.generic]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = str(array.dtype) if isinstance(array, np.ndarray) else type(array).__name__
        raise DtypeError(f"{name}: expected a NumPy array of {np.dtype(dtype)}, got {got}")


def _joined(parts: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]], name: str) -> ImageDataset:
    images, labels = zip(*parts, strict=True)
    return ImageDataset(np.concatenate(images), np.concatenate(labels), _CIFAR10_CLASSES, name)


def _read_binary(file: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    try:
        raw = file.read_bytes()
    except FileNotFoundError as error:
        raise FormatError(f"{file}: missing, though other files of CIFAR-10 are there") from error
    if len(raw) != _BATCH_IMAGES * _RECORD_BYTES:
        raise FormatError(f"{file}: expected {_BATCH_IMAGES * _RECORD_BYTES} bytes, got {len(raw)}: get it anew")
    records = np.frombuffer(raw, np.uint8).reshape(_BATCH_IMAGES, _RECORD_BYTES)
    return records[:, 1:].reshape(-1, 3, _SIDE, _SIDE), _checked_labels(records[:, 0], file)


def _read_jpegs(
    file: Path, progress: Progress | None, done: int, num_batches: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    jpeg, offsets, labels = _load_arrays(file)
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1:
        raise FormatError(f"{file}: jpeg: expected 1-D uint8, got {jpeg.dtype} of shape {jpeg.shape}")
    if offsets.dtype.kind not in "iu" or offsets.shape != (_BATCH_IMAGES + 1,):
        raise FormatError(
            f"{file}: offsets: expected {_BATCH_IMAGES + 1} integers, got {offsets.dtype} of shape {offsets.shape}"
        )
    bounds = [int(offset) for offset in offsets]
    # Compared as Python integers: differences of unsigned ones would wrap.
    if bounds[0] != 0 or bounds[-1] != len(jpeg) or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise FormatError(f"{file}: offsets: expected to rise from 0 to the {len(jpeg)} bytes of jpeg")
    if labels.dtype.kind not in "iu" or labels.shape != (_BATCH_IMAGES,):
        raise FormatError(
            f"{file}: labels: expected {_BATCH_IMAGES} integers, got {labels.dtype} of shape {labels.shape}"
        )
    checked = _checked_labels(labels, file)
    images = np.empty((_BATCH_IMAGES, 3, _SIDE, _SIDE), np.uint8)
    for index in range(_BATCH_IMAGES):
        _report(progress, done + index, num_batches * _BATCH_IMAGES)
        images[index] = _decode(jpeg[bounds[index] : bounds[index + 1]].tobytes(), f"{file}: image {index}", size=None)
    if done + _BATCH_IMAGES == num_batches * _BATCH_IMAGES:
        _report(progress, done + _BATCH_IMAGES, num_batches * _BATCH_IMAGES)
    return images, checked


def _load_arrays(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        # Opened here, because NumPy leaves a file that is no archive open.
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise FormatError(f"{file}: expected an .npz archive, got a single array")
            with archive:
                return archive["jpeg"], archive["offsets"], archive["labels"]
    except FileNotFoundError as error:
        raise FormatError(f"{file}: missing, though other files of CIFAR-10 are there") from error
    except FormatError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        raise FormatError(f"{file}: not an archive of jpeg, offsets and labels: {error}") from error


def _checked_labels(labels: npt.NDArray[Any], file: Path) -> npt.NDArray[np.int64]:
    bad = np.flatnonzero((labels < 0) | (labels >= len(_CIFAR10_CLASSES)))
    if len(bad):
        raise FormatError(f"{file}: image {bad[0]}: expected a label of 0 to 9, got {labels[bad[0]]}")
    return labels.astype(np.int64)


def _decode(raw: bytes, where: str, *, size: int | None) -> npt.NDArray[np.uint8]:
    """Decodes one image to 3 × h × w; without a size it must be a CIFAR-10 JPEG."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", extra="vision", purpose="reading images") from error
    try:
        with Image.open(io.BytesIO(raw), formats=["JPEG"] if size is None else None) as image:
            if size is None:
                if image.size != (_SIDE, _SIDE):
                    raise FormatError(f"{where}: expected {_SIDE} × {_SIDE} pixels, got {image.size}")
                picture = image.convert("RGB")
            else:
                if image.mode.startswith("I") or image.mode == "F":
                    raise FormatError(f"{where}: expected 8 bits a channel, got mode {image.mode}; convert it first")
                upright = ImageOps.exif_transpose(image).convert("RGB")
                picture = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    except FormatError:
        raise
    # Pillow's decoders raise what they meet in a damaged file.
    except Exception as error:
        raise FormatError(f"{where} cannot be decoded: {error}; replace or remove it") from error
    return np.asarray(picture).transpose(2, 0, 1)


def _is_picture(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in _SUFFIXES and file.is_file()


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None and (done == total or done % _PROGRESS_EVERY == 0):
        progress("images", done, total)
