"""The networks of the block tables, without weights in memory."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def network_of():
    """Gives the layers of a ResNet by its name and number of classes, at 224 × 224; each is traced once."""
    torch = pytest.importorskip("torch", reason="needs sparing[vision]")
    from sparing import vision
    from sparing.pim.layers import trace_layers

    kept = {}

    def build(name, num_classes=10):
        if (name, num_classes) not in kept:
            with torch.device("meta"):
                model = getattr(vision, name)(num_classes=num_classes)
            kept[name, num_classes] = trace_layers(model)
        return kept[name, num_classes]

    return build


@pytest.fixture(scope="session")
def mapped():
    """Layers with random codes, and the datapath in plain loops."""
    pytest.importorskip("torch", reason="needs sparing[vision]")
    spec = importlib.util.spec_from_file_location("pim_mapped", Path(__file__).with_name("mapped.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def network(mapped):
    """A small network in 3 bits: the model, its mapping, and images."""
    return mapped.quantized_network()
