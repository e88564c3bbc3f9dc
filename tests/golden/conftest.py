"""Golden outputs, and the rules behind them."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def var_fill():
    """The module with the rule that fills VAR models."""
    pytest.importorskip("torch", reason="needs sparing[vision]")
    spec = importlib.util.spec_from_file_location("golden_var_fill", Path(__file__).with_name("var") / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
