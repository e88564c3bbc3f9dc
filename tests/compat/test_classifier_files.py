"""Classifiers' files of every released format version open with what was saved."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")

from sparing.vision import ResNetConfig, load_classifier  # noqa: E402

FOLDER = Path(__file__).parent


def test_version_1():
    found = load_classifier(FOLDER / "classifier-v1.safetensors")
    assert found.model.config == ResNetConfig(layers=(1, 1, 1), width=1, num_classes=2, stem="cifar")
    assert found.class_names == ("cat", "dog")
    assert found.meta == {"accuracy": 0.5}
    for name, tensor in found.model.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, torch.arange(tensor.numel()).reshape(tensor.shape) / 64), name
