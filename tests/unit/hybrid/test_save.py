"""Saved indexes: round trips, damage of every kind, writers killed at any moment."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing.errors import FormatError, ReadOnlyError, VersionError
from sparing.hybrid import HybridConfig, HybridIndex
from sparing.runs import read_artifact, write_artifact

SCHEMA, VERSION = "sparing.hybrid.index", 3
OPENER = Path(__file__).with_name("open_in_children.py")


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.scores, b.scores)


def python(*arguments, **options):
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), *map(str, arguments)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, **options)


@pytest.fixture
def index(small):
    return HybridIndex.build(small.dense, small.sparse, ids=np.arange(300) * 7)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A file of 12 items, one of them deleted."""
    rng = np.random.default_rng(0)
    rows = [{int(t): 1.0 + i for t in rng.integers(0, 30, 4)} for i in range(12)]
    config = HybridConfig(degree=4, doc_terms=8, num_entries=4, seeds_per_term=2, similarity="l2")
    index = HybridIndex.build(rng.standard_normal((12, 6)).astype(np.float32), rows, config=config)
    index.delete([3])
    path = tmp_path_factory.mktemp("tiny") / "index.sparing"
    index.save(path)
    return path


CONFIGS = {
    "default": {},
    "naive": {"dense_code": "float32", "doc_terms": None},
    "cosine": {"metric": "cosine", "dense_code": "int8", "two_stage": True, "query_terms": 5, "scale": 0.5},
}


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(small, tmp_path, name, mmap):
    path = tmp_path / "index.sparing"
    index = HybridIndex.build(small.dense, small.sparse, config=HybridConfig(**CONFIGS[name]))
    index.delete([4, 5])
    index.save(path)
    HybridIndex.verify(path)
    again = HybridIndex.open(str(path), mmap=mmap)
    assert (again.config, again.alignment, again.stats) == (index.config, index.alignment, index.stats)
    queries = small.dense_queries, small.sparse_queries
    same(again.search(*queries), index.search(*queries))
    same(again.search_exact(*queries, k=300), index.search_exact(*queries, k=300))
    same(again.search(*queries, filter=np.arange(50)), index.search(*queries, filter=np.arange(50)))
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("parts", ["empty", "dense", "sparse", "one", "all deleted"])
@pytest.mark.parametrize("mmap", [False, True])
def test_round_trip_of_odd_indexes(small, tmp_path, parts, mmap):
    count = {"empty": 0, "one": 1}.get(parts, 40)
    dense = None if parts == "sparse" else small.dense[:count]
    sparse = None if parts == "dense" else small.sparse[:count]
    index = HybridIndex.build(dense, sparse)
    if parts == "all deleted":
        index.delete(np.arange(40))
    index.save(tmp_path / "index")
    HybridIndex.verify(tmp_path / "index")
    again = HybridIndex.open(tmp_path / "index", mmap=mmap)
    dense_q = None if dense is None else small.dense_queries
    sparse_q = None if sparse is None else small.sparse_queries
    same(again.search(dense_q, sparse_q, k=50), index.search(dense_q, sparse_q, k=50))
    assert len(again) == len(index)


def test_a_reopened_index_goes_on_like_the_first(small, index, tmp_path):
    index.save(tmp_path / "a")
    again = HybridIndex.open(tmp_path / "a")
    for one in (index, again):
        one.add(small.dense[:30], small.sparse[:30], ids=np.arange(5000, 5030))
        one.delete(np.arange(0, 70, 7))
        one.update(small.dense[:5], small.sparse[:5], ids=np.arange(5000, 5005))
        one.compact()
    index.save(tmp_path / "a")
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("state", ["full", "empty"])
def test_a_mapped_index_is_read_only(small, index, tmp_path, state):
    if state == "empty":
        index = HybridIndex.build(small.dense[:0], small.sparse[:0])
    index.save(tmp_path / "index")
    before = (tmp_path / "index").read_bytes()
    mapped = HybridIndex.open(tmp_path / "index", mmap=True)
    changes = [lambda: mapped.add(small.dense[:1], small.sparse[:1], ids=[9999])]
    if state == "full":
        changes.append(lambda: mapped.update(small.dense[:1], small.sparse[:1], ids=[7]))
        changes.append(lambda: mapped.delete([7]))
        changes.append(mapped.compact)
    for change in changes:
        with pytest.raises(ReadOnlyError, match="mmap=False"):
            change()
        assert len(mapped) == len(index)
    assert (tmp_path / "index").read_bytes() == before


def test_a_mapped_file_may_be_replaced_or_removed(small, index, tmp_path):
    index.save(tmp_path / "index")
    expected = index.search(small.dense_queries, small.sparse_queries)
    mapped = HybridIndex.open(tmp_path / "index", mmap=True)
    HybridIndex.build(small.dense[:9], small.sparse[:9]).save(tmp_path / "index")
    same(mapped.search(small.dense_queries, small.sparse_queries), expected)
    (tmp_path / "index").unlink()
    same(mapped.search(small.dense_queries, small.sparse_queries), expected)


def test_what_cannot_be_written_or_read(index, tmp_path):
    with pytest.raises(FileNotFoundError):
        index.save(tmp_path / "missing" / "index")
    with pytest.raises(FileNotFoundError):
        HybridIndex.open(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "nothing").write_bytes(b"")
    write_artifact(tmp_path / "other", schema="other", version=VERSION, arrays={}, meta={})
    write_artifact(tmp_path / "newer", schema=SCHEMA, version=99, arrays={}, meta={})
    write_artifact(tmp_path / "hollow", schema=SCHEMA, version=VERSION, arrays={}, meta={})
    for name in ("text", "nothing", "other", "hollow"):
        for mmap in (False, True):
            with pytest.raises(FormatError):
                HybridIndex.open(tmp_path / name, mmap=mmap)
    with pytest.raises(FormatError, match="it lacks 'config'"):
        HybridIndex.open(tmp_path / "hollow")
    with pytest.raises(VersionError, match="99"):
        HybridIndex.open(tmp_path / "newer")


def test_a_flipped_byte_anywhere_is_reported(tiny, tmp_path):
    data = tiny.read_bytes()
    used = {i for i, byte in enumerate(data) if byte}
    places = sorted(used | set(range(0, len(data), 5)))
    generator = random.Random(0)
    path = tmp_path / "flipped"
    path.write_bytes(data)
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(bytes([data[place] ^ generator.randint(1, 255)]))
            file.flush()
            with pytest.raises(FormatError):
                HybridIndex.verify(path)
            file.seek(place)
            file.write(data[place : place + 1])
            file.flush()
    HybridIndex.verify(path)


def test_truncated_and_extended_files(tiny, tmp_path):
    data = tiny.read_bytes()
    path = tmp_path / "cut"
    for length in {*range(0, len(data), 53), len(data) - 1}:
        path.write_bytes(data[:length])
        for mmap in (False, True):
            with pytest.raises(FormatError):
                HybridIndex.open(path, mmap=mmap)
    path.write_bytes(data + b"\0")
    with pytest.raises(FormatError):
        HybridIndex.open(path)


def put(array, place, value):
    array.reshape(-1)[place] = value


def config(**fields):
    return lambda arrays, meta: meta["config"].update(fields)


def alignment(**fields):
    return lambda arrays, meta: meta["alignment"].update(fields)


def meta_of(**fields):
    return lambda arrays, meta: meta.update(fields)


def array(name, place, value):
    return lambda arrays, meta: put(arrays[name], place, value)


def replaced(name, change):
    return lambda arrays, meta: arrays.update({name: change(arrays[name])})


def emptied(dim):
    """No items at all, but a dimension that asks for gigabytes."""

    def forge(arrays, meta):
        for name in arrays:
            arrays[name] = arrays[name][: 1 if name == "row_begin" else 0]
        arrays["row_begin"][:] = 0
        meta.update(dim=dim, seed_buckets=0)

    return forge


# Files with correct checksums whose contents make no sense. Each must be refused.
REFUSED = {
    "link out of range": array("links", 0, 12),
    "link far out of range": array("links", 5, 2**32 - 2),
    "entry out of range": array("entries", 0, 12),
    "entry that is a gap": array("entries", 1, 2**32 - 1),
    "seed out of range": array("seeds", 0, 1_000_000),
    "row_begin falls": array("row_begin", 3, 2**40),
    "row_begin does not start at 0": array("row_begin", 0, 1),
    "row_begin ends early": array("row_begin", -1, 3),
    "id twice": array("ids", 0, 5),
    "negative id": array("ids", 0, -1),
    "very negative id": array("ids", 0, -(2**63)),
    "heads too short": replaced("heads", lambda a: a[:-1]),
    "center too short": replaced("center", lambda a: a[:-1]),
    "nan in center": array("center", 0, np.nan),
    "tails too short": replaced("tails", lambda a: a[:-1]),
    "dense too short": replaced("dense", lambda a: a[:-1]),
    "links too short": replaced("links", lambda a: a[:-4]),
    "entries missing": replaced("entries", lambda a: a[:0]),
    "seeds too short": replaced("seeds", lambda a: a[:-1]),
    "terms too short": replaced("terms", lambda a: a[:-1]),
    "values too long": replaced("values", lambda a: np.append(a, a[:1])),
    "norms too short": replaced("norms", lambda a: a[:-1]),
    "deleted too short": replaced("deleted", lambda a: a[:-1]),
    "ids too long": replaced("ids", lambda a: np.append(a, [99])),
    "dtype of ids": replaced("ids", lambda a: a.astype(np.int32)),
    "dtype of dense": replaced("dense", lambda a: a.astype(np.float64)),
    "two axes": replaced("links", lambda a: a.reshape(12, -1)),
    "links missing": lambda arrays, meta: arrays.pop("links"),
    "buckets 0": meta_of(seed_buckets=0),
    "buckets 2**31": meta_of(seed_buckets=2**31),
    "buckets 2**40": meta_of(seed_buckets=2**40),
    "buckets negative": meta_of(seed_buckets=-64),
    "buckets of text": meta_of(seed_buckets="many"),
    "dim 0": meta_of(dim=0),
    "dim 7": meta_of(dim=7),
    "dim negative": meta_of(dim=-1),
    "dim 2**31": meta_of(dim=2**31),
    "dim 2**32 + 6": meta_of(dim=2**32 + 6),
    "dim of text": meta_of(dim="x"),
    "no items but dim 2**31": emptied(2**31),
    "no items but dim 2**32 - 1": emptied(2**32 - 1),
    "config missing": lambda arrays, meta: meta.pop("config"),
    "alignment missing": lambda arrays, meta: meta.pop("alignment"),
    "degree 2**31": config(degree=2**31),
    "degree 8": config(degree=8),
    "doc_terms 4096": config(doc_terms=4096),
    "doc_terms 2**31": config(doc_terms=2**31),
    "num_entries 2**31": config(num_entries=2**31),
    "unknown code": config(dense_code="int2"),
    "unknown field": config(surprise=1),
    "beam 2**40": config(beam=2**40),
    "scale negative": alignment(scale=-1.0),
    "scale 0": alignment(scale=0.0),
    "scale 1e300": alignment(scale=1e300),
    "scale of text": alignment(scale="wide"),
    "pairs of text": alignment(num_pairs="many"),
    "unknown alignment": alignment(surprise=1),
}

# Wrong numbers that need not be noticed when a file is mapped, but must do no harm.
TOLERATED = {
    "another code of the same size": config(dense_code="float32"),
    "nan in dense": array("dense", 0, np.nan),
    "inf in values": array("values", 0, np.inf),
    "nan in norms": array("norms", 0, np.nan),
    "nan in heads": replaced("heads", lambda a: np.full_like(a, 255)),
    "nan in tails": replaced("tails", lambda a: np.full_like(a, 255)),
    "terms out of order": replaced("terms", lambda a: a[::-1].copy()),
    "every item deleted": replaced("deleted", np.ones_like),
    "deleted is 7": array("deleted", 0, 7),
    "links to itself": replaced("links", lambda a: np.repeat(np.arange(12, dtype=np.uint32), 4)),
    "no links": replaced("links", lambda a: np.full_like(a, 2**32 - 1)),
    "a gap among the links": array("links", 1, 2**32 - 1),
    "seeds are all one": replaced("seeds", np.zeros_like),
}


def forge(source, target, change):
    artifact = read_artifact(source, schema=SCHEMA, versions={VERSION})
    arrays = {name: array.copy() for name, array in artifact.arrays.items()}
    meta = json.loads(json.dumps(artifact.meta))
    change(arrays, meta)
    write_artifact(target, schema=SCHEMA, version=VERSION, arrays=arrays, meta=meta)


def outcomes(folder):
    done = python(OPENER, folder, stderr=subprocess.PIPE)
    out, errors = done.communicate(timeout=240)
    assert done.returncode == 0, errors
    return json.loads(out)


@pytest.fixture(scope="module")
def refused(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("forged")
    for number, change in enumerate(REFUSED.values()):
        forge(tiny, folder / f"{number:03}", change)
    shutil.copy(tiny, folder / "sound")
    return outcomes(folder)


def test_the_sound_file_opens(refused):
    assert refused["sound"] == ["ok", "ok"]


@pytest.mark.parametrize("name", REFUSED)
def test_forged_files_are_refused(refused, name):
    """Checksums fit, contents do not: FormatError when read and when mapped, no crash, no gigabytes."""
    assert refused[f"{list(REFUSED).index(name):03}"] == ["FormatError", "FormatError"]


@pytest.fixture(scope="module")
def tolerated(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tolerated")
    for number, change in enumerate(TOLERATED.values()):
        forge(tiny, folder / f"{number:03}", change)
    return outcomes(folder)


@pytest.mark.parametrize("name", TOLERATED)
def test_wrong_numbers_do_no_harm(tolerated, name):
    assert set(tolerated[f"{list(TOLERATED).index(name):03}"]) <= {"ok", "FormatError"}


def test_many_nan_do_no_harm(tmp_path):
    """Sorting by NaN breaks the order that sorting relies on."""
    rng = np.random.default_rng(1)
    dense = rng.standard_normal((1500, 16)).astype(np.float32)
    rows = [{int(t): 1.0 for t in rng.integers(0, 500, 5)} for _ in range(1500)]
    index = HybridIndex.build(dense, rows, config=HybridConfig(similarity="l2"))
    index.delete([0])
    index.save(tmp_path / "sound")
    (tmp_path / "forged").mkdir()

    def spoil(arrays, meta):
        arrays["dense"][rng.integers(0, arrays["dense"].size, 1000)] = np.nan
        arrays["norms"][::3] = np.nan
        heads = arrays["heads"].view(np.float32)
        heads[rng.integers(0, heads.size, 20_000)] = np.nan

    for number in range(3):
        forge(tmp_path / "sound", tmp_path / "forged" / str(number), spoil)
    assert {both for pair in outcomes(tmp_path / "forged").values() for both in pair} <= {"ok", "FormatError"}


def test_random_damage_with_correct_checksums_never_crashes(tiny, tmp_path):
    generator = np.random.default_rng(0)
    interesting = [0, 1, 11, 12, 13, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]

    def damage(arrays, meta):
        for _ in range(generator.integers(1, 6)):
            name = generator.choice([name for name in arrays if arrays[name].size])
            raw = arrays[name].reshape(-1).view(np.uint8 if generator.random() < 0.5 else arrays[name].dtype)
            place = generator.integers(0, raw.size)
            if raw.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    raw[place] = generator.choice(np.array([np.nan, np.inf, -np.inf, 3e38, 1e-45, 0], np.float32))
            else:
                raw[place] = np.uint64(generator.choice(interesting)).astype(raw.dtype)

    for number in range(60):
        forge(tiny, tmp_path / f"{number:03}", damage)
    found = outcomes(tmp_path)
    strange = {name: both for name, both in found.items() if not set(both) <= {"ok", "FormatError"}}
    assert not strange
    assert any("FormatError" in both for both in found.values())


def test_flipped_bits_of_a_mapped_file_never_crash(tiny, tmp_path):
    """Mapped files are not read as a whole, so a flip may go unseen; it must still be harmless."""
    data = tiny.read_bytes()
    generator = random.Random(1)
    for number in range(60):
        flipped = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            flipped[generator.randrange(4096, len(data))] ^= 1 << generator.randrange(8)
        (tmp_path / f"{number:03}").write_bytes(flipped)
    for name, (read, mapped) in outcomes(tmp_path).items():
        assert read == "FormatError", name
        assert mapped in {"ok", "FormatError"}, name


SAVE_FOREVER = """
import sys
import numpy as np
from sparing.hybrid import HybridIndex

sizes = (400, 900)
made = [HybridIndex.build(np.random.default_rng(n).standard_normal((n, 32)).astype(np.float32), None) for n in sizes]
made[0].save(sys.argv[1])
print("ready", flush=True)
import os, signal, random, time
for attempt in range(25):
    child = os.fork()
    if child == 0:
        while True:
            for index in made:
                index.save(sys.argv[1])
    time.sleep(random.Random(attempt).uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    HybridIndex.verify(sys.argv[1])
    print(len(HybridIndex.open(sys.argv[1], mmap=attempt % 2 == 0)), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    done = python("-c", SAVE_FOREVER, tmp_path / "index", stderr=subprocess.PIPE)
    out, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    lines = out.split()
    assert lines[0] == "ready"
    assert len(lines) == 26
    assert set(lines[1:]) <= {"400", "900"}


def test_saving_replaces_and_leaves_nothing_behind(small, index, tmp_path):
    path = tmp_path / "index"
    index.save(path)
    other = HybridIndex.build(small.dense[:10], small.sparse[:10])
    begin = time.monotonic()
    other.save(path)
    assert len(HybridIndex.open(path)) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    assert time.monotonic() - begin < 30


def test_numbers_that_fit_16_bits_take_no_more(small, tmp_path):
    rounded = small.sparse.copy()
    rounded.data = np.round(rounded.data * 64) / 64
    halves = HybridIndex.build(small.dense.astype(np.float16), rounded, config=HybridConfig(scale=1.0))
    wide = HybridIndex.build(small.dense.astype(np.float32), small.sparse, config=HybridConfig(scale=1.0))
    nonzeros = halves.stats.num_nonzeros
    narrower = 2 * (small.dense.size + nonzeros)  # float16 for dense and values; terms take uint16 in both
    assert wide.stats.vector_bytes - halves.stats.vector_bytes == narrower

    path = tmp_path / "halves"
    halves.save(path)
    stored = read_artifact(path, schema="sparing.hybrid.index", versions={VERSION}).arrays
    assert (stored["dense"].dtype, stored["values"].dtype, stored["terms"].dtype) == (np.float16, np.float16, np.uint16)
    queries = small.dense_queries, small.sparse_queries
    before = halves.search_exact(*queries, k=10)
    for mmap in (False, True):
        after = HybridIndex.open(path, mmap=mmap).search_exact(*queries, k=10)
        np.testing.assert_array_equal(after.ids, before.ids)
        np.testing.assert_array_equal(after.scores, before.scores)

    again = HybridIndex.open(path)  # one number and one term that do not fit widen the columns and change no answer
    again.add(np.full((1, small.dense.shape[1]), -0.1, np.float32), [{70_000: 1.0}], ids=[10**6])
    assert again.stats.vector_bytes > halves.stats.vector_bytes + 2 * small.dense.size
    np.testing.assert_allclose(again.search_exact(*queries, k=5).scores, before.scores[:, :5], rtol=1e-6)
    assert again.search_exact(None, {70_000: 1.0}, k=1, weights=(0.0, 1.0)).ids.tolist() == [10**6]
