"""Small models, and the plain formulas that they are compared with."""

import importlib.util
from pathlib import Path

import pytest


def _beside(name):
    pytest.importorskip("torch", reason="needs sparing[vision]")
    spec = importlib.util.spec_from_file_location(f"var_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other cost far more than they bring to networks this small.

    For a module's fixtures as well: with another number of threads sums differ in their last digits.
    """
    torch = pytest.importorskip("torch", reason="needs sparing[vision]")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def plain():
    """The formulas in NumPy."""
    return _beside("plain")


@pytest.fixture(scope="session")
def tiny():
    """Makers of small models."""
    return _beside("tiny")


@pytest.fixture(scope="session")
def layouts():
    """Names and shapes of the released files."""
    return _beside("layouts")
