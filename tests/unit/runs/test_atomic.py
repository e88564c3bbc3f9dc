import errno
import os
import stat

import pytest

from sparing.runs.atomic import replace_file


def test_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / ("n" * 255)
    for content in (b"one", b"two"):
        with replace_file(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_an_error_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), replace_file(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_keeps_the_mode_and_follows_links(tmp_path):
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    with replace_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_living_writer_is_left_alone_and_a_dead_one_is_cleaned_up(tmp_path):
    (tmp_path / ".sparing-00000000-dead.tmp").write_bytes(b"half")
    with replace_file(tmp_path / "a") as first:
        first.write(b"first")
        with replace_file(tmp_path / "b") as second:
            second.write(b"second")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == b"first"


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "none" / "a"):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(IsADirectoryError, match="expected a file to replace"), replace_file(tmp_path / name):
            pass
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
    assert not (tmp_path / "pipe").is_file()
