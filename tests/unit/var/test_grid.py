"""Grids of drawn images, pixel by pixel, and their files."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[var]")
pytest.importorskip("safetensors", reason="needs sparing[var]")
pytest.importorskip("huggingface_hub", reason="needs sparing[var]")
pytest.importorskip("PIL", reason="needs sparing[var]")

from PIL import Image

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.var.grid import difference_grid, image_grid, save_png


def plain(*values, side=2):
    return np.stack([np.full((3, side, side), value, np.uint8) for value in values])


def test_places_by_hand():
    images = np.arange(2 * 3 * 1 * 2, dtype=np.uint8).reshape(2, 3, 1, 2)
    # Red, green and blue of the first image's two pixels are 0 2 4 and 1 3 5.
    grid = image_grid(images, 1, scale=1, gap=1)
    assert grid.tolist() == [[[0, 2, 4], [1, 3, 5]], [[255] * 3] * 2, [[6, 8, 10], [7, 9, 11]]]


def test_pixels_become_squares():
    grid = image_grid(np.array([[[[1, 2]]] * 3], np.uint8), 1, scale=2)
    assert grid[..., 0].tolist() == [[1, 1, 2, 2]] * 2


@pytest.mark.parametrize(
    ("count", "columns", "shape"), [(1, 1, (6, 6)), (5, 3, (14, 22)), (2, 4, (6, 30)), (6, 2, (22, 14))]
)
def test_size_and_rows(count, columns, shape):
    grid = image_grid(plain(*range(count)), columns, scale=3, gap=2)
    assert grid.shape == (*shape, 3)
    for place in range(count):
        top, left = place // columns * 8, place % columns * 8
        assert (grid[top : top + 6, left : left + 6] == place).all()
    white = (grid == 255).all(-1).sum()
    assert white == shape[0] * shape[1] - count * 36


def test_the_images_stay_as_they_are():
    images = plain(7)
    image_grid(images, 1, scale=1, gap=0)[:] = 0
    assert (images == 7).all()


def test_difference():
    grid = difference_grid(plain(10, 200), plain(13, 100), scale=1, gain=4)
    assert grid.shape == (10, 6, 3)
    assert [int(grid[row, column, 0]) for row in (0, 4, 8) for column in (0, 4)] == [10, 200, 13, 100, 12, 255]
    assert (difference_grid(plain(9), plain(9), scale=1)[-1] == 0).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: image_grid(np.zeros((1, 3, 2, 2)), 1), DtypeError, "images: expected uint8"),
        (lambda: image_grid(np.zeros((3, 2, 2), np.uint8), 1), ShapeError, "images: expected"),
        (lambda: image_grid(np.zeros((0, 3, 2, 2), np.uint8), 1), ShapeError, "images: expected"),
        (lambda: image_grid(plain(1), 0), ArgumentError, "columns"),
        (lambda: image_grid(plain(1), 1, scale=0), ArgumentError, "scale"),
        (lambda: image_grid(plain(1), 1, gap=-1), ArgumentError, "gap"),
        (lambda: difference_grid(plain(1), plain(1, 2)), ShapeError, "compressed: expected the shape"),
        (lambda: difference_grid(plain(1), plain(1), gain=0), ArgumentError, "gain"),
        (lambda: save_png("x.png", np.zeros((2, 2, 3))), DtypeError, "picture"),
        (lambda: save_png("x.png", np.zeros((2, 2), np.uint8)), ShapeError, "picture"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_png(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        save_png(path, picture)
    with Image.open(first) as image:
        assert np.array_equal(np.asarray(image), picture)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ShapeError):
        save_png(path, np.zeros((2, 2), np.uint8))
    with pytest.raises(FileNotFoundError):
        save_png(tmp_path / "none" / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert path.read_bytes() == b"old"
