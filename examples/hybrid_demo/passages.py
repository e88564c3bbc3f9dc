"""Real text that every machine has: the docstrings of Python's library and of installed packages.

The sources are parsed, never imported.
"""

import ast
import hashlib
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sparing.hybrid.records import Document

PACKAGES = ("numpy", "scipy", "pydantic", "rich", "matplotlib", "sklearn", "networkx", "torch")
SKIPPED_FOLDERS = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
MIN_CHARS, MAX_CHARS = 60, 360


@dataclass(frozen=True)
class Corpus:
    """What is indexed, and questions about other passages."""

    documents: list[Document]
    questions: list[str]


def gather(num_documents: int, num_questions: int) -> Corpus:
    """Collects distinct docstrings until there are enough; the same machine gives the same ones."""
    documents: dict[str, Document] = {}
    keys: set[str] = set()
    wanted = num_documents + num_questions
    for package, file, module in _sources():
        for document in _docstrings(package, file, module):
            if document.text not in documents and document.key not in keys:
                documents[document.text] = document
                keys.add(document.key)
        if package != "python" and len(documents) >= wanted:
            break
    # A fixed shuffle, so that the questions come from all over the sources.
    shuffled = sorted(documents.values(), key=lambda d: hashlib.sha256(d.text.encode()).digest())
    num_questions = min(num_questions, len(shuffled) // 5)
    questions = [_summary(document) for document in shuffled[:num_questions]]
    # Python's own first: the demo's questions are about them.
    rest = sorted(shuffled[num_questions:], key=lambda d: d.metadata["package"] != "python")
    return Corpus(rest[:num_documents], questions)


def _sources() -> Iterator[tuple[str, Path, str]]:
    roots = [("python", Path(sysconfig.get_path("stdlib")), "")]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots.append((package, Path(spec.submodule_search_locations[0]), package))
    for package, root, prefix in roots:
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if not SKIPPED_FOLDERS.intersection(parts):
                names = [name for name in (prefix, *parts) if name and name != "__init__"]
                yield package, file, ".".join(names) or package


def _docstrings(package: str, file: Path, module: str) -> Iterator[Document]:
    try:
        with warnings.catch_warnings(action="ignore"):  # what old sources make the parser say is not ours to show
            tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError, ValueError):
        return
    stack: list[tuple[ast.AST, str]] = [(tree, module)]
    while stack:
        node, name = stack.pop()
        children = (c for c in ast.iter_child_nodes(node) if isinstance(c, _FUNCTIONS | ast.ClassDef))
        stack.extend((child, f"{name}.{child.name}") for child in children)
        text = (
            ast.get_docstring(node, clean=False) if isinstance(node, ast.Module | ast.ClassDef | _FUNCTIONS) else None
        )
        text = inspect.cleandoc(text).encode("utf-8", "ignore").decode() if text else ""
        if len(text) >= MIN_CHARS and "\0" not in text:
            kind = {ast.Module: "module", ast.ClassDef: "class"}.get(type(node), "function")
            shown = text[:MAX_CHARS].rsplit(" ", 1)[0] if len(text) > MAX_CHARS else text
            yield Document(name, f"{name}\n{shown}", {"package": package, "kind": kind})


_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def _summary(document: Document) -> str:
    paragraph = document.text.split("\n", 1)[1].split("\n\n", 1)[0]
    return " ".join(paragraph.split())[:200]
