"""The README's example prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_example_prints_what_the_readme_shows() -> None:
    if not README.is_file():
        pytest.skip("the README is not beside the tests")
    blocks = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks is not None, "README.md has no example followed by its output"
    code, expected = blocks.groups()
    assert code.strip().count("\n") + 1 <= 12
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == expected
