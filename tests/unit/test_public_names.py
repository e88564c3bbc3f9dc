"""What a module defines or gathers in public is what its `__all__` says, in order."""

import ast
import importlib
import pkgutil
import types
from pathlib import Path

import pytest

import sparing


def _modules():
    found = ["sparing"]
    walked = pkgutil.walk_packages(sparing.__path__, "sparing.", onerror=lambda name: None)
    return found + [m.name for m in walked if not any(part.startswith("_") for part in m.name.split("."))]


def _load(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs an extra: {error}")


@pytest.mark.parametrize("name", _modules())
def test_all_is_sorted_and_real(name):
    module = _load(name)
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert list(module.__all__) == sorted(set(module.__all__))
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert not missing


@pytest.mark.parametrize("name", _modules())
def test_no_public_definition_is_left_out(name):
    module = _load(name)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined <= set(module.__all__)


@pytest.mark.parametrize("name", [name for name in _modules() if name.count(".") <= 1])
def test_a_package_shows_nothing_else(name):
    module = _load(name)
    if not hasattr(module, "__path__"):
        pytest.skip("not a package")
    shown = {
        public
        for public, value in vars(module).items()
        if not public.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert shown - {"annotations"} <= set(module.__all__)
