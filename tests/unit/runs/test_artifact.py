import json
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparing.errors import ArgumentError, DtypeError, FormatError, VersionError
from sparing.runs import read_artifact, verify_artifact, write_artifact

DTYPES = [np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)] + [np.dtype(f"f{n}") for n in (2, 4, 8)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def write(path, arrays=None, meta=None, **overrides):
    arrays = {"codes": np.arange(7, dtype=np.uint8), "x": np.ones((2, 3), np.float32)} if arrays is None else arrays
    write_artifact(path, **{"schema": "test", "version": 1} | overrides, arrays=arrays, meta=meta or {"degree": 4})
    return path


def read(path, **options):
    return read_artifact(path, **{"schema": "test", "versions": {1}} | options)


def forge(path, change, *, header_crc=None):
    """Rewrites the header through `change` with right checksums, as an attacker or a buggy writer could."""
    raw = path.read_bytes()
    magic, version, _, length, size = struct.unpack_from("<8sIIQQ", raw)
    document = json.loads(raw[64 : 64 + length])
    change(document)
    header = json.dumps(document).encode().ljust(length)
    if len(header) != length:
        raise AssertionError("the forged header must keep its length")
    prefix = struct.pack("<8sIIQQ28x", magic, version, zlib.crc32(header), length, size)
    path.write_bytes(prefix + struct.pack("<I", zlib.crc32(prefix)) + header + raw[64 + length :])


@settings(max_examples=60, deadline=None)
@given(
    arrays=st.dictionaries(
        st.text(max_size=5),
        st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=5))),
        max_size=4,
    ),
    meta=st.dictionaries(st.text(), JSON, max_size=3),
    mmap=st.booleans(),
)
def test_round_trip(tmp_path_factory, arrays, meta, mmap):
    path = tmp_path_factory.mktemp("round") / "a.sparing"
    try:
        write_artifact(path, schema="test", version=1, arrays=arrays, meta=meta)
    except ArgumentError:
        # Half of a surrogate pair is a Python string but not a Unicode text.
        text = json.dumps([meta, list(arrays)], ensure_ascii=False)
        assert any("\ud800" <= character <= "\udfff" for character in text)
        return
    verify_artifact(path)
    back = read(path, mmap=mmap)
    assert back.meta == meta
    assert list(back.arrays) == list(arrays)
    for name, array in arrays.items():
        assert back.arrays[name].dtype == array.dtype
        assert back.arrays[name].shape == array.shape
        assert back.arrays[name].tobytes() == array.tobytes()


def test_same_input_same_bytes(tmp_path):
    one = write(tmp_path / "1", meta={"a": 1, "b": 2}).read_bytes()
    assert one == write(tmp_path / "2", meta={"b": 2, "a": 1}).read_bytes()


def test_byte_order_and_strides_are_normalised(tmp_path):
    big = np.arange(12, dtype=">i4").reshape(3, 4)
    back = read(write(tmp_path / "a", {"big": big, "column": big[:, 1], "t": big.T})).arrays
    assert back["big"].dtype == np.dtype("<i4")
    np.testing.assert_array_equal(back["big"], big)
    np.testing.assert_array_equal(back["column"], big[:, 1])
    np.testing.assert_array_equal(back["t"], big.T)


def test_sections_are_aligned_and_mapped_read_only(tmp_path):
    path = write(tmp_path / "a", {"one": np.ones(3, np.int8), "two": np.ones(5, np.float64)})
    arrays = read(path, mmap=True).arrays
    assert arrays["one"].ctypes.data % 4096 == 0
    assert arrays["two"].ctypes.data % 64 == 0
    assert not arrays["two"].flags.writeable
    assert read(path).arrays["two"].flags.writeable


def test_mapped_arrays_outlive_a_replacement(tmp_path):
    path = write(tmp_path / "a", {"x": np.full(5000, 1, np.int32)})
    mapped = read(path, mmap=True).arrays["x"]
    write(path, {"x": np.full(5000, 2, np.int32)})
    assert set(mapped) == {1}
    assert set(read(path).arrays["x"]) == {2}


def test_every_flipped_byte_is_found(tmp_path):
    path = write(tmp_path / "a")
    raw = path.read_bytes()
    payload_start = raw.find(bytes(range(7)), 4096)
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 0x10]) + raw[position + 1 :])
        with pytest.raises(FormatError):
            verify_artifact(path)
        with pytest.raises(FormatError):
            read(path)
        if position < payload_start and raw[position]:
            with pytest.raises(FormatError):
                read(path, mmap=True)


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_the_header_is_found_without_reading_the_arrays(tmp_path, bit):
    path = write(tmp_path / "a")
    raw = path.read_bytes()
    head = 64 + struct.unpack_from("<Q", raw, 16)[0]
    for position in range(head):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ (1 << bit)]) + raw[position + 1 :])
        with pytest.raises(FormatError):
            read(path, verify=False)


@pytest.mark.parametrize("mmap", [False, True])
def test_every_truncation_is_found(tmp_path, mmap):
    path = write(tmp_path / "a")
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(FormatError):
            read(path, mmap=mmap, verify=False)


def test_trailing_bytes_are_found(tmp_path):
    path = write(tmp_path / "a")
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FormatError, match="extended"):
        read(path, verify=False)


def test_an_altered_section_is_named(tmp_path):
    path = write(tmp_path / "a")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FormatError, match="section 'x' was altered"):
        verify_artifact(path)
    with pytest.raises(FormatError, match="section 'x' was altered"):
        read(path, mmap=True, verify=True)
    read(path, mmap=True)


def test_without_arrays(tmp_path):
    path = write(tmp_path / "a", {})
    verify_artifact(path)
    for mmap in (False, True):
        assert read(path, mmap=mmap).arrays == {}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shape", [1 << 61], "too large|do not fit"),
        ("shape", [1 << 40, 1 << 40], "too large|do not fit"),
        ("shape", [0, 1 << 61, 4], "too large|do not fit"),
        ("shape", [-1], "does not describe"),
        ("nbytes", 1 << 50, "do not fit"),
        ("offset", 64, "starts at"),
        ("offset", 1 << 40, "starts at"),
        ("dtype", "object", "unknown dtype"),
        ("dtype", "O", "unknown dtype"),
    ],
)
def test_forged_counts_ask_for_no_memory(tmp_path, field, value, message):
    path = write(tmp_path / "a", {"x": np.ones((2, 3), np.float32)}, {"room": "-" * 80})

    def change(document):
        document["sections"][0][field] = value
        document["meta"] = {}

    forge(path, change)
    for mmap in (False, True):
        with pytest.raises(FormatError, match=message):
            read(path, mmap=mmap, verify=False)


def test_forged_names_and_fields_are_refused(tmp_path):
    room = {"room": "-" * 80}
    path = write(tmp_path / "a", {"x": np.ones(0), "y": np.ones(0)}, room)
    forge(path, lambda document: document["sections"][1].update(name="x") or document.update(meta={}))
    with pytest.raises(FormatError, match="one name"):
        read(path)
    write(path, meta=room)
    forge(path, lambda document: document.update(more=1, meta={}))
    with pytest.raises(FormatError, match="more"):
        read(path)


def test_schema_and_version_are_checked(tmp_path):
    path = write(tmp_path / "a", version=3)
    with pytest.raises(FormatError, match=r"schema 'other', got 'test'"):
        read(path, schema="other")
    with pytest.raises(VersionError, match="version 3"):
        read(path, versions=range(1, 3))
    assert read(path, versions=range(1, 4)).version == 3


def test_a_newer_container_says_so(tmp_path):
    path = write(tmp_path / "a")
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, 8, 2)
    struct.pack_into("<I", raw, 60, zlib.crc32(raw[:60]))
    path.write_bytes(raw)
    with pytest.raises(VersionError, match="newer sparing"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"{}", os.urandom(5000)])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="not an artifact"):
        read(path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        verify_artifact(tmp_path / "none")


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([None]), np.ones(2, bool), np.ones(2, complex)])
def test_other_dtypes_are_refused(tmp_path, array):
    with pytest.raises(DtypeError, match=r"arrays\['x'\]"):
        write(tmp_path / "a", {"x": array})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("meta", [{"a": (1, 2)}, {1: "a"}, {"a": float("nan")}, {"a": np.float32(1)}, {"a": b"x"}])
def test_meta_that_json_changes_is_refused(tmp_path, meta):
    with pytest.raises(ArgumentError, match="meta"):
        write(tmp_path / "a", meta=meta)
    assert not list(tmp_path.iterdir())


def test_negative_version_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="version"):
        write(tmp_path / "a", version=-1)


def test_more_axes_than_can_be_read_again_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="a: expected at most 32 axes, got 33"):
        write_artifact(tmp_path / "a", schema="x", version=1, arrays={"a": np.zeros((1,) * 33)}, meta={})
    assert not (tmp_path / "a").exists()
