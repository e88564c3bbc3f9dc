import hashlib
import json
import os
import threading

import pytest

from sparing.errors import ArgumentError, BusyError, FormatError
from sparing.runs import current_generation, replace_folder, verify_folder


def fill(path, text):
    with replace_folder(path) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "b.bin").write_bytes(b"\x01\x02")


def test_replace_switches_and_removes_the_old(tmp_path):
    root = tmp_path / "new" / "catalogue"
    for number, text in enumerate(["one", "two", "three"], 1):
        fill(root, text)
        generation = current_generation(root)
        assert generation.name == f"gen-{number:06d}"
        assert (generation / "a.txt").read_text() == text
        verify_folder(root)
        assert sorted(os.listdir(root)) == ["CURRENT", "LOCK", generation.name]


def test_an_error_keeps_the_old_generation(tmp_path):
    fill(tmp_path, "old")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path) as folder:
        (folder / "a.txt").write_text("new")
        raise ZeroDivisionError
    assert (current_generation(tmp_path) / "a.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["CURRENT", "LOCK", "gen-000001"]


def test_a_file_that_vanishes_while_it_is_looked_at(tmp_path, monkeypatch):
    fill(tmp_path, "old")
    (current_generation(tmp_path) / "a.txt").unlink()
    # As it was a moment before.
    monkeypatch.setattr("pathlib.Path.is_file", lambda _: True)
    with pytest.raises(FormatError, match=r"a\.txt: expected 3 bytes, got no such file"):
        current_generation(tmp_path)


@pytest.mark.parametrize("look", [current_generation, verify_folder])
def test_a_reader_beside_a_writer_sees_no_damage(tmp_path, look):
    fill(tmp_path, "0")
    done = threading.Event()

    def write():
        for number in range(60):
            fill(tmp_path, str(number))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not done.is_set():
            look(tmp_path)
    finally:
        writer.join()


def test_one_writer_at_a_time(tmp_path):
    with replace_folder(tmp_path) as folder:
        (folder / "a").touch()
        with pytest.raises(BusyError, match="another writer"), replace_folder(tmp_path):
            pass
    verify_folder(tmp_path)


def test_leftovers_of_dead_writers_are_removed(tmp_path):
    fill(tmp_path, "old")
    (tmp_path / "gen-000009").mkdir()
    (tmp_path / "gen-000009" / "half").touch()
    (tmp_path / ".sparing-0-dead.tmp").touch()
    assert (current_generation(tmp_path) / "a.txt").read_text() == "old"
    fill(tmp_path, "new")
    assert sorted(os.listdir(tmp_path)) == ["CURRENT", "LOCK", current_generation(tmp_path).name]


def test_a_reader_keeps_its_open_file(tmp_path):
    fill(tmp_path, "old")
    with (current_generation(tmp_path) / "a.txt").open() as file:
        fill(tmp_path, "new")
        assert file.read() == "old"


def test_every_flipped_byte_is_found(tmp_path):
    fill(tmp_path, "text")
    generation = current_generation(tmp_path)
    files = [tmp_path / "CURRENT", *(file for file in generation.rglob("*") if file.is_file())]
    assert len(files) == 4
    for file in files:
        raw = file.read_bytes()
        for position in range(len(raw)):
            for bit in (0x01, 0x20):
                file.write_bytes(raw[:position] + bytes([raw[position] ^ bit]) + raw[position + 1 :])
                with pytest.raises(FormatError):
                    verify_folder(tmp_path)
        file.write_bytes(raw)
    verify_folder(tmp_path)


@pytest.mark.parametrize("victim", ["CURRENT", "gen-000001/a.txt", "gen-000001/manifest.json"])
@pytest.mark.parametrize("harm", ["remove", "truncate", "extend"])
def test_missing_and_cut_files_are_found_at_opening(tmp_path, victim, harm):
    fill(tmp_path, "text")
    file = tmp_path / victim
    raw = file.read_bytes()
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(raw[:-1] if harm == "truncate" else raw + b"x")
    with pytest.raises(FormatError):
        current_generation(tmp_path)
    fill(tmp_path, "anew")
    assert (current_generation(tmp_path) / "a.txt").read_text() == "anew"


def test_a_damaged_current_costs_no_files_before_the_new_ones_are_safe(tmp_path):
    fill(tmp_path, "old")
    (tmp_path / "CURRENT").write_bytes(b"?")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path):
        raise ZeroDivisionError
    assert (tmp_path / "gen-000001" / "a.txt").read_text() == "old"


def test_extra_files_are_found(tmp_path):
    fill(tmp_path, "text")
    (current_generation(tmp_path) / "extra").touch()
    with pytest.raises(FormatError, match="extra"):
        verify_folder(tmp_path)


def test_nothing_saved(tmp_path):
    with pytest.raises(FileNotFoundError):
        current_generation(tmp_path / "none")
    with pytest.raises(FormatError, match="nothing was saved"):
        current_generation(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FormatError):
        current_generation(tmp_path / "file")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "sub/../../x", ""])
def test_a_manifest_cannot_point_outside(tmp_path, name):
    fill(tmp_path, "text")
    manifest = current_generation(tmp_path) / "manifest.json"
    raw = json.dumps({"files": {name: {"bytes": 1, "sha256": "0" * 64}}}).encode()
    manifest.write_bytes(raw)
    (tmp_path / "CURRENT").write_text(f"gen-000001 {hashlib.sha256(raw).hexdigest()}\n")
    with pytest.raises(FormatError, match="outside"):
        current_generation(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "a:b", "back\\slash"])
def test_reserved_names_are_refused(tmp_path, name):
    with pytest.raises(ArgumentError, match="reserved"), replace_folder(tmp_path) as folder:
        (folder / name).touch()
    assert sorted(os.listdir(tmp_path)) == ["LOCK"]


@pytest.mark.parametrize("target", ["/", "nowhere"])
def test_links_are_refused(tmp_path, target):
    with pytest.raises(ArgumentError, match="link"), replace_folder(tmp_path) as folder:
        (folder / "link").symlink_to(target)
