"""Bad luck with a text index: kill -9 and Ctrl-C in the middle of writing leave the previous index whole."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")
pytest.importorskip("bm25s", reason="needs sparing[text]")

from sparing.hybrid.text import TextIndex

WORDS = ["red", "fox", "hen", "barn", "dog", "river", "stone", "graph", "search", "vector", "prime", "matrix"]
COMPACT = "import sys; from sparing.hybrid.text import TextIndex; TextIndex.open(sys.argv[1]).compact()"


def write_documents(path, count, shift):
    with path.open("w") as file:
        for i in range(count):
            text = " ".join(WORDS[(i * (j + 3) + j * j + shift) % len(WORDS)] for j in range(12))
            file.write(json.dumps({"id": f"{shift}-{i}", "text": text, "section": i % 3}) + "\n")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder / "old.jsonl", 300, 0)
    write_documents(folder / "new.jsonl", 12_000, 1)
    return folder


@pytest.fixture
def index(tmp_path, corpus):
    run(["index", str(corpus / "old.jsonl"), "--out", str(tmp_path / "index")]).check_returncode()
    return tmp_path / "index"


def run(arguments, **options):
    command = [sys.executable, "-m", "sparing.cli", "hybrid", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


def start(command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process, condition, timeout=120):
    """Waits until the process has come to a point, or has ended."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "the process never came to the point"
        time.sleep(0.002)
    return process.poll() is None


def check_the_old_index(path, answers, count=300, *, renumbered=False):
    with TextIndex.open(path) as again:
        assert len(again) == count
        found = again.search("red fox", k=20)
        if renumbered:  # then others of equally good texts may be found
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in answers])
        else:
            assert found == answers
    TextIndex.verify(path)


# Points in the life of a writer: its folder is there, the documents are written, the vectors are being written.
POINTS = {
    "folder": lambda path: (path / "gen-000002").exists(),
    "documents": lambda path: (path / "gen-000002" / "documents.sqlite").exists(),
    "vectors": lambda path: (
        any((path / "gen-000002").glob("*index.sparing*")) or any((path / "gen-000002").glob(".sparing-*"))
    ),
}


@pytest.mark.parametrize("point", list(POINTS))
def test_kill_while_indexing(index, corpus, point):
    with TextIndex.open(index) as before:
        answers = before.search("red fox", k=20)
    arguments = ["index", str(corpus / "new.jsonl"), "--out", str(index)]
    process = start([sys.executable, "-m", "sparing.cli", "hybrid", *arguments])
    killed = wait_for(process, lambda: POINTS[point](index))
    process.kill()
    process.communicate()
    if not killed:
        pytest.skip("the machine was faster than the test")
    assert process.returncode == -signal.SIGKILL
    if (index / "CURRENT").read_text().startswith("gen-000001"):
        check_the_old_index(index, answers)
    else:  # killed after the switch: then the new one is whole
        TextIndex.verify(index)
    # The next writer removes what the killed one left.
    run(["index", str(corpus / "old.jsonl"), "--out", str(index)]).check_returncode()
    assert len(list(index.glob("gen-*"))) == 1
    check_the_old_index(index, answers)


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1])
def test_kill_while_compacting(index, delay_s):
    with TextIndex.open(index) as changed:
        changed.delete([f"0-{i}" for i in range(100)])
        answers = changed.search("red fox", k=20)
    process = start([sys.executable, "-c", COMPACT, str(index)])
    killed = wait_for(process, (index / "gen-000003").exists)
    time.sleep(delay_s)
    process.kill()
    process.communicate()
    if not killed:
        pytest.skip("the machine was faster than the test")
    check_the_old_index(index, answers, count=200, renumbered=True)  # it may have been done before the kill
    with TextIndex.open(index) as again:
        again.compact()
        assert again.info.index.num_deleted == 0
    assert len(list(index.glob("gen-*"))) == 1
    check_the_old_index(index, answers, count=200, renumbered=True)


def test_ctrl_c_while_indexing(index, corpus):
    with TextIndex.open(index) as before:
        answers = before.search("red fox", k=20)
    arguments = ["index", str(corpus / "new.jsonl"), "--out", str(index)]
    process = start([sys.executable, "-m", "sparing.cli", "hybrid", *arguments])
    alive = wait_for(process, lambda: POINTS["documents"](index))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    if not alive or process.returncode == 0:
        pytest.skip("the machine was faster than the test")
    assert process.returncode == 130
    assert err.endswith("sparing: error: interrupted; nothing was changed\n")
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(entry.name for entry in index.iterdir()) == ["CURRENT", "LOCK", "gen-000001"]
    check_the_old_index(index, answers)


def test_kill_in_a_first_build_leaves_a_folder_that_can_be_built_again(tmp_path, corpus):
    path = tmp_path / "index"
    process = start(
        [sys.executable, "-m", "sparing.cli", "hybrid", "index", str(corpus / "new.jsonl"), "--out", str(path)]
    )
    killed = wait_for(process, (path / "gen-000001" / "documents.sqlite").exists)
    process.kill()
    process.communicate()
    if not killed:
        pytest.skip("the machine was faster than the test")
    answer = run(["search", str(path), "fox"])
    assert answer.returncode == 2
    assert "nothing was saved here" in answer.stderr
    run(["index", str(corpus / "old.jsonl"), "--out", str(path)]).check_returncode()
    TextIndex.verify(path)


def test_a_second_writer_is_turned_away(index, corpus):
    arguments = ["index", str(corpus / "new.jsonl"), "--out", str(index)]
    process = start([sys.executable, "-m", "sparing.cli", "hybrid", *arguments])
    alive = wait_for(process, lambda: POINTS["folder"](index))
    second = run(["delete", str(index), "0-1"])
    still_alive = process.poll() is None
    process.kill()
    process.communicate()
    if not alive or not still_alive:
        pytest.skip("the machine was faster than the test")
    assert second.returncode == 2
    assert "another writer is at work" in second.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on file sizes")
def test_a_full_disk(index, corpus):
    import resource

    with TextIndex.open(index) as before:
        answers = before.search("red fox", k=20)

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    result = run(["index", str(corpus / "new.jsonl"), "--out", str(index)], preexec_fn=limit)
    assert result.returncode == 2
    assert result.stderr.startswith("sparing: error: ")
    assert result.stderr.count("\n") == 1
    assert len(list(index.glob("gen-*"))) == 1
    check_the_old_index(index, answers)
