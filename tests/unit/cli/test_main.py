"""Exit codes of `sparing`, from real processes and from this one."""

import subprocess
import sys

import pytest

import sparing
from sparing.cli import hybrid, main


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"sparing {sparing.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "sparing: error: interrupted; nothing was changed\n"),
        (sparing.SparingError("two\nlines"), 2, "sparing: error: two lines\n"),
        (OSError(28, "No space left on device"), 2, "sparing: error: [Errno 28] No space left on device\n"),
    ],
)
def test_errors(monkeypatch, capsys, error, code, message):
    def fail(arguments):
        raise error

    monkeypatch.setattr(hybrid, "_info", fail)
    assert main.main(["hybrid", "info", "folder"]) == code
    assert capsys.readouterr().err == message


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(hybrid, "_info", fail)
    with pytest.raises(ZeroDivisionError):
        main.main(["hybrid", "info", "folder"])


def test_a_broken_pipe_is_quiet():
    code = (
        "import sys; from sparing.cli import hybrid, main\n"
        "hybrid._info = lambda arguments: [sys.stdout.write('x' * 100 + '\\n') for _ in range(100_000)]\n"
        "sys.exit(main.main(['hybrid', 'info', 'folder']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141
