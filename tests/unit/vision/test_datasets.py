import io
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[vision]")
Image = pytest.importorskip("PIL.Image", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, DtypeError, FormatError, ShapeError  # noqa: E402
from sparing.vision import ImageDataset, datasets, load_cifar10, load_image_folder  # noqa: E402

IMAGES = np.zeros((4, 3, 5, 6), np.uint8)
LABELS = np.array([0, 1, 1, 0])


def dataset(images=IMAGES, labels=LABELS, class_names=("a", "b"), name="demo"):
    return ImageDataset(images, labels, class_names=class_names, name=name)


# --- ImageDataset


def test_length_classes_and_subset():
    images = np.arange(4 * 3 * 2 * 2, dtype=np.uint8).reshape(4, 3, 2, 2)
    whole = dataset(images)
    part = whole.subset([3, 1, 1])
    assert (len(whole), whole.num_classes, len(part), part.name) == (4, 2, 3, "demo")
    assert np.array_equal(part.images, images[[3, 1, 1]])
    assert part.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, DtypeError, "images: expected a NumPy array of uint8, got float32"),
        ({"images": IMAGES.tolist()}, DtypeError, "got list"),
        ({"images": IMAGES[0]}, ShapeError, r"got shape \(3, 5, 6\)"),
        ({"images": IMAGES.transpose(0, 2, 3, 1)}, ShapeError, "n × 3 × height × width"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, ShapeError, "none of them 0"),
        ({"labels": LABELS.astype(np.int32)}, DtypeError, "labels: expected a NumPy array of int64, got int32"),
        ({"labels": LABELS[:3]}, ShapeError, r"labels: expected shape \(4,\), got \(3,\)"),
        ({"labels": np.array([0, 1, 2, 9])}, ArgumentError, r"0 to 1, got 2 for image 2 \(2 such labels\)"),
        ({"labels": np.array([0, 1, -1, 0])}, ArgumentError, "got -1 for image 2"),
        ({"class_names": ()}, ArgumentError, "class_names"),
        ({"class_names": ("a", "a")}, ArgumentError, "distinct"),
        ({"class_names": ["a", "b"]}, ArgumentError, "a tuple"),
        ({"name": ""}, ArgumentError, "name"),
    ],
)
def test_bad_datasets(changes, error, message):
    with pytest.raises(error, match=message):
        dataset(**changes)


@pytest.mark.parametrize(
    ("indices", "error"),
    [
        ([], ShapeError),
        ([[0]], ShapeError),
        ([0.0], DtypeError),
        ([True, False, True, True], DtypeError),
        ([4], ArgumentError),
        ([-1], ArgumentError),
    ],
)
def test_bad_subsets(indices, error):
    with pytest.raises(error, match="indices"):
        dataset().subset(indices)


# --- CIFAR-10


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of 4 images instead of 10,000."""
    monkeypatch.setattr(datasets, "_BATCH_IMAGES", 4)


def jpeg(color, size=(32, 32)):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "JPEG")
    return out.getvalue()


COLORS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (128, 128, 128)]


def jpeg_arrays(files=None, labels=(0, 3, 9, 1)):
    files = [jpeg(color) for color in COLORS] if files is None else files
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.array(labels, np.uint8),
    }


def test_jpeg_form(tmp_path, small_batches):
    np.savez(tmp_path / "test_batch.npz", **jpeg_arrays())
    for i in range(1, 6):
        np.savez(tmp_path / f"data_batch_{i}.npz", **jpeg_arrays(labels=(i, 0, 0, 0)))
    calls = []
    test = load_cifar10(tmp_path, split="test", progress=lambda *call: calls.append(call))
    assert test.name == "CIFAR-10 (JPEG)"
    assert test.class_names[3] == "cat"
    assert test.num_classes == 10
    assert test.labels.tolist() == [0, 3, 9, 1]
    assert test.images.shape == (4, 3, 32, 32)
    for image, color in zip(test.images, COLORS, strict=True):
        assert np.abs(image.astype(int) - np.array(color)[:, None, None]).max() < 6
    assert calls == [("images", 0, 4), ("images", 4, 4)]
    train = load_cifar10(tmp_path, split="train")
    assert train.labels[::4].tolist() == [1, 2, 3, 4, 5]


def binary(labels=(0, 3, 9, 1), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 3, 32, 32), np.uint8)
    records = np.concatenate([np.array(labels, np.uint8)[:, None], pixels.reshape(4, -1)], axis=1)
    return records.tobytes(), pixels


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-bin"])
def test_binary_form_comes_first(tmp_path, small_batches, inside):
    raw, pixels = binary()
    np.savez(tmp_path / "test_batch.npz", **jpeg_arrays())
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "test_batch.bin").write_bytes(raw)
    test = load_cifar10(tmp_path, split="test")
    assert test.name == "CIFAR-10"
    assert np.array_equal(test.images, pixels)
    assert test.labels.tolist() == [0, 3, 9, 1]


def test_the_batches_are_joined_in_order(tmp_path, small_batches):
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(binary(labels=(i, 0, 0, 0), seed=i)[0])
    train = load_cifar10(tmp_path, split="train")
    assert train.labels[::4].tolist() == [1, 2, 3, 4, 5]
    assert np.array_equal(train.images[8:12], binary(seed=3)[1])
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FormatError, match=r"data_batch_3\.bin: missing"):
        load_cifar10(tmp_path, split="train")


def test_damaged_binary_files(tmp_path, small_batches):
    raw, _ = binary()
    for bad, message in [
        (raw[:-1], "expected 12292 bytes, got 12291"),
        (raw[: 3 * 3073], "got 9219"),
        (b"\x0a" + raw[1:], "image 0: expected a label of 0 to 9, got 10"),
    ]:
        (tmp_path / "test_batch.bin").write_bytes(bad)
        with pytest.raises(FormatError, match=message):
            load_cifar10(tmp_path, split="test")


def test_neither_form(tmp_path):
    with pytest.raises(ArgumentError, match=r"neither test_batch\.bin nor test_batch\.npz"):
        load_cifar10(tmp_path, split="test")
    (tmp_path / "data_batch_1").write_bytes(b"a pickle")
    with pytest.raises(ArgumentError, match="pickles"):
        load_cifar10(tmp_path, split="train")
    with pytest.raises(ArgumentError, match="split"):
        load_cifar10(tmp_path, split="valid")


def wrong(**changes):
    return {**jpeg_arrays(), **changes}


GOOD = [jpeg(color) for color in COLORS]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (wrong(jpeg=np.zeros(9, np.int16)), "jpeg: expected 1-D uint8, got int16"),
        (wrong(offsets=np.zeros(5)), "offsets: expected 5 integers"),
        (wrong(offsets=np.arange(4)), "offsets: expected 5 integers"),
        (wrong(offsets=np.array([0, 10, 5, 20, 30])), "offsets: expected to rise from 0"),
        (wrong(offsets=np.array([0, 10, 5, 20, len(b"".join(GOOD))])), "expected to rise"),
        (wrong(offsets=np.array([0, 10, 20, 2**64 - 5, len(b"".join(GOOD))], np.uint64)), "expected to rise"),
        (wrong(offsets=np.array([-5, 10, 20, 30, len(b"".join(GOOD))])), "expected to rise"),
        (wrong(labels=np.array([0, 1])), "labels: expected 4 integers"),
        (wrong(labels=np.array([0, 1, 2, 10])), "image 3: expected a label of 0 to 9, got 10"),
        (jpeg_arrays([*GOOD[:2], GOOD[2][:200], GOOD[3]]), "image 2 cannot be decoded"),
        (jpeg_arrays([*GOOD[:3], b"not a jpeg"]), "image 3 cannot be decoded"),
        (jpeg_arrays([jpeg(COLORS[0], (16, 32)), *GOOD[1:]]), r"image 0: expected 32 × 32 pixels, got \(16, 32\)"),
        ({"jpeg": jpeg_arrays()["jpeg"]}, "not an archive of jpeg, offsets and labels"),
        (wrong(jpeg=np.array([{}], object)), "not an archive"),
    ],
)
def test_damaged_jpeg_form(tmp_path, small_batches, arrays, message):
    np.savez(tmp_path / "test_batch.npz", **arrays)
    with pytest.raises(FormatError, match=message):
        load_cifar10(tmp_path, split="test")


def test_a_truncated_or_foreign_archive(tmp_path, small_batches):
    file = tmp_path / "test_batch.npz"
    np.savez(file, **jpeg_arrays())
    raw = file.read_bytes()
    for bad in (raw[: len(raw) // 2], b"", b"hello", raw[:600] + b"\x00" * 50 + raw[650:]):
        file.write_bytes(bad)
        with pytest.raises(FormatError, match=r"test_batch\.npz"):
            load_cifar10(tmp_path, split="test")
    with file.open("wb") as out:
        np.save(out, np.zeros(3))
    with pytest.raises(FormatError, match="single array"):
        load_cifar10(tmp_path, split="test")


@pytest.mark.slow
def test_the_real_data():
    folder = Path(os.environ.get("SPARING_DATA", "nowhere")) / "cifar10"
    if not folder.is_dir():
        pytest.skip("set SPARING_DATA to the folder that holds cifar10")
    test = load_cifar10(folder, split="test")
    assert len(test) == 10_000
    assert np.bincount(test.labels).tolist() == [1000] * 10


# --- folders of pictures


def picture(path, mode="RGB", color=(10, 200, 30), size=(20, 10), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)


def test_image_folder(tmp_path):
    root = tmp_path / "pets"
    picture(root / "dog" / "b.png")
    picture(root / "dog" / "a.PNG", mode="L", color=77, size=(8, 30))
    picture(root / "dog" / "deep" / "c.png", mode="RGBA", color=(1, 2, 3, 255))
    picture(root / "cat" / "x.bmp", color=(250, 0, 0))
    picture(root / ".hidden" / "y.png")
    picture(root / "cat" / ".z.png")
    (root / "cat" / "notes.txt").write_text("not a picture")
    (root / "readme.md").write_text("not a class")
    pets = load_image_folder(root, size=8)
    assert pets.class_names == ("cat", "dog")
    assert pets.labels.tolist() == [0, 1, 1, 1]
    assert pets.name == "pets"
    assert pets.images.shape == (4, 3, 8, 8)
    assert [tuple(image[:, 4, 4]) for image in pets.images] == [(250, 0, 0), (77, 77, 77), (10, 200, 30), (1, 2, 3)]
    assert np.array_equal(load_image_folder(root, size=8).images, pets.images)


def test_the_middle_is_cut_out_and_exif_is_followed(tmp_path):
    stripes = np.zeros((10, 30, 3), np.uint8)
    stripes[:, 10:20, 0] = 200
    (tmp_path / "a").mkdir()
    Image.fromarray(stripes).save(tmp_path / "a" / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    top = np.zeros((16, 16, 3), np.uint8)
    top[:, :8] = 200
    Image.fromarray(top).save(tmp_path / "a" / "2.jpg", exif=exif, quality=95)
    images = load_image_folder(tmp_path, size=10).images
    assert images[0][0].min() > 150
    assert images[1][0, :4].min() > 150 > 50 > images[1][0, 6:].max()


def test_bad_image_folders(tmp_path):
    with pytest.raises(ArgumentError, match="size"):
        load_image_folder(tmp_path, size=0)
    with pytest.raises(ArgumentError, match="folder: expected a folder"):
        load_image_folder(tmp_path / "none", size=8)
    with pytest.raises(ArgumentError, match="no sub-folders"):
        load_image_folder(tmp_path, size=8)
    (tmp_path / "cat").mkdir()
    with pytest.raises(ArgumentError, match="'cat' has no pictures"):
        load_image_folder(tmp_path, size=8)
    picture(tmp_path / "cat" / "good.jpg")
    raw = (tmp_path / "cat" / "good.jpg").read_bytes()
    for bad in (raw[:300], b"", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "cat" / "bad.jpg").write_bytes(bad)
        with pytest.raises(FormatError, match=r"bad\.jpg cannot be decoded"):
            load_image_folder(tmp_path, size=8)
    (tmp_path / "cat" / "bad.jpg").unlink()
    for mode, name in (("I;16", "deep.png"), ("F", "float.tiff")):
        picture(tmp_path / "cat" / name, mode=mode, color=300)
        with pytest.raises(FormatError, match=f"{name}: expected 8 bits a channel, got mode"):
            load_image_folder(tmp_path, size=8)
        (tmp_path / "cat" / name).unlink()
