"""A folder of records: what it is, what was recorded, and what kills, full disks and other hands do to it."""

import os
import resource
import signal

import pytest
from pydantic import BaseModel

from sparing.errors import BusyError, ConfigError, FormatError, VersionError
from sparing.runs.journal import Journal, JournalKind, read_journal


class Point(BaseModel):
    x: int


KIND = JournalKind(
    what="walk",
    schema="tests.walk",
    version=2,
    header="walk.json",
    lines="points.jsonl",
    record=Point,
    records="points",
    argument="config",
)
WALK = {"seed": 3, "of": {"steps": 10}}


@pytest.fixture
def folder(tmp_path):
    """A walk of three points."""
    with Journal(tmp_path / "walk", WALK, KIND) as journal:
        for x in range(3):
            journal.append(Point(x=x))
        assert journal.records == [Point(x=0), Point(x=1), Point(x=2)]
    return tmp_path / "walk"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_recorded_comes_back(folder):
    before = contents(folder)
    with Journal(folder, WALK, KIND) as journal:
        assert [one.x for one in journal.records] == [0, 1, 2]
        assert [one.x for one in read_journal(folder, KIND)] == [0, 1, 2]
        with pytest.raises(BusyError, match="another walk is at work"):
            Journal(folder, WALK, KIND)
    assert contents(folder) == before


@pytest.mark.parametrize("torn", [b'{"x":', b'{"x":3}', b"\0\0\0\n", b'{"y":3}\n'])
def test_a_torn_last_line_is_dropped(folder, torn):
    whole = contents(folder)
    with (folder / "points.jsonl").open("ab") as file:
        file.write(torn)
    assert len(read_journal(folder, KIND)) == 3
    with Journal(folder, WALK, KIND) as journal:
        assert len(journal.records) == 3
        assert contents(folder) == whole
        journal.append(Point(x=3))
    assert [one.x for one in read_journal(folder, KIND)] == [0, 1, 2, 3]


def test_a_torn_line_is_kept_where_the_work_is_another(folder):
    with (folder / "points.jsonl").open("ab") as file:
        file.write(b'{"x":')
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"config: .*walk holds another walk: of\.steps: saved 10, now 11\. Go on"):
        Journal(folder, {**WALK, "of": {"steps": 11}}, KIND)
    assert contents(folder) == before


def test_an_altered_line_is_named(folder):
    lines = (folder / "points.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "points.jsonl").write_bytes(lines[0] + b'{"x":"one"}\n' + lines[2])
    before = contents(folder)
    for read in (lambda: read_journal(folder, KIND), lambda: Journal(folder, WALK, KIND)):
        with pytest.raises(FormatError, match=r"points\.jsonl, line 2 was altered"):
            read()
    assert contents(folder) == before


def test_records_behind_a_checkpoint_go(folder):
    with Journal(folder, WALK, KIND) as journal:
        with pytest.raises(FormatError, match="has 3 lines, but the checkpoint is from after 4"):
            journal.keep_(4)
        journal.keep_(3)
        journal.keep_(1)
        journal.append(Point(x=9))
        assert [one.x for one in journal.records] == [0, 9]
    assert [one.x for one in read_journal(folder, KIND)] == [0, 9]


def test_what_is_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FormatError, match=r"expected an empty folder or a walk's, found no walk\.json"):
        Journal(tmp_path / "other", WALK, KIND)
    with pytest.raises(FormatError, match="expected a folder for a walk, got a file"):
        Journal(tmp_path / "other" / "thesis.txt", WALK, KIND)
    with pytest.raises(FormatError, match=r"not the folder of a walk: it has no walk\.json"):
        read_journal(tmp_path / "other", KIND)
    assert os.listdir(tmp_path / "other") == ["thesis.txt"]
    header = (folder / "walk.json").read_text()
    (folder / "walk.json").write_text(header.replace('"version": 2', '"version": 3'))
    with pytest.raises(VersionError, match="a walk in version 3, expected 2"):
        Journal(folder, WALK, KIND)
    (folder / "walk.json").unlink()
    with pytest.raises(FormatError, match=r"walk\.json is missing: whose points these are is not known"):
        Journal(folder, WALK, KIND)


def test_lines_that_are_gone_are_told_of(folder):
    (folder / "points.jsonl").unlink()
    with pytest.raises(FormatError, match=r"points\.jsonl is missing; restore it from a copy, or remove walk\.json"):
        Journal(folder, WALK, KIND)
    assert os.listdir(folder) == ["walk.json"]


def test_one_that_comes_second_at_the_start_is_told_to_wait(tmp_path, monkeypatch):
    first = []

    def matches(journal, identity, whole=Journal._matches):
        found = whole(journal, identity)
        if not first:  # the other begins here
            monkeypatch.setattr(Journal, "_matches", whole)
            first.append(Journal(tmp_path / "walk", WALK, KIND))
        return found

    monkeypatch.setattr(Journal, "_matches", matches)
    with pytest.raises(BusyError, match="another walk is at work"):
        Journal(tmp_path / "walk", WALK, KIND)
    first[0].close()


def test_a_full_disk_leaves_no_half_line(folder):
    with Journal(folder, WALK, KIND) as journal:
        size = (folder / "points.jsonl").stat().st_size
        handler, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limit[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                journal.append(Point(x=10**9))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)
        assert (folder / "points.jsonl").stat().st_size == size
        assert len(journal.records) == 3
        journal.append(Point(x=3))
    assert [one.x for one in read_journal(folder, KIND)] == [0, 1, 2, 3]
