"""Pictures for the walkthrough: a folder of yours, or digits drawn on the spot in the fonts that matplotlib brings."""

from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sparing.vision import ImageDataset, load_cifar10, load_image_folder

SIDE = 32
DRAWN = "drawn digits"
DIGITS = "0123456789"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBolIta",
    "cmr10",
    "cmss10",
    "cmtt10",
)
_FEWEST_PIXELS, _MOST_PIXELS, _MOST_DEGREES, _NOISE = 16, 26, 20.0, 25.0
_LEAST_CONTRAST = 75
_EVERY = 5


def open_pictures(folder: Path | None, *, num_train: int, num_test: int) -> tuple[ImageDataset, ImageDataset]:
    """Pictures to learn from, and others to test with.

    Args:
        folder: CIFAR-10's files, or one sub-folder of pictures for each class (every fifth one is for the test); None:
            drawn digits.
        num_train: pictures to learn from, at most.
        num_test: pictures to test with, at most.
    """
    if folder is None:
        return draw_digits(num_train, seed=1), draw_digits(num_test, seed=2)
    inner = folder / "cifar-10-batches-bin"
    if inner.is_dir() or any((folder / f"test_batch.{end}").is_file() for end in ("bin", "npz")):
        train, test = load_cifar10(folder, split="train"), load_cifar10(folder, split="test")
        return _picked(train, np.arange(len(train)), num_train), _picked(test, np.arange(len(test)), num_test)
    every = load_image_folder(folder, size=SIDE)
    is_test = np.arange(len(every)) % _EVERY == 0
    return _picked(every, np.flatnonzero(~is_test), num_train), _picked(every, np.flatnonzero(is_test), num_test)


def draw_digits(count: int, *, seed: int) -> ImageDataset:
    """Draws digits of random font, size, place, turn and colours, with noise; the same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    images, labels = np.empty((count, 3, SIDE, SIDE), np.uint8), np.arange(count) % len(DIGITS)
    for image, label in zip(images, labels, strict=True):
        image[:] = _digit(DIGITS[label], rng).transpose(2, 0, 1)
    return ImageDataset(images, labels.astype(np.int64), tuple(DIGITS), DRAWN)


def _digit(text: str, rng: np.random.Generator) -> np.ndarray:
    name, size = FONTS[rng.integers(len(FONTS))], int(rng.integers(_FEWEST_PIXELS, _MOST_PIXELS))
    room = (SIDE - size) // 2
    across, down = rng.integers(-room, room + 1, 2).tolist()
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).text(
        (SIDE // 2 + across, SIDE // 2 + down), text, fill=255, font=_font(name, size), anchor="mm"
    )
    turned = mask.rotate(rng.uniform(-_MOST_DEGREES, _MOST_DEGREES), Image.Resampling.BILINEAR)
    share = np.asarray(turned, np.float32)[..., None] / 255
    paper, ink = rng.integers(0, 256, (2, 3))
    while abs(int(paper.sum()) - int(ink.sum())) < 3 * _LEAST_CONTRAST:
        paper, ink = rng.integers(0, 256, (2, 3))
    shade = np.linspace(-1, 1, SIDE)[:, None, None] * rng.uniform(-30, 30, 3)  # the paper is lit from one side
    clean = (1 - share) * (paper + shade) + share * ink
    return np.clip(np.rint(clean + rng.normal(0, _NOISE, clean.shape)), 0, 255).astype(np.uint8)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _picked(dataset: ImageDataset, which: np.ndarray, count: int) -> ImageDataset:
    """At most so many of these pictures, by chance; the same ones each time."""
    chosen = np.random.default_rng(0).permutation(which)[:count]
    return ImageDataset(dataset.images[chosen], dataset.labels[chosen], dataset.class_names, dataset.name)
