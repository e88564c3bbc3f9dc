"""Writes the classifier's file that every later release must open.

Run it once a format version, before the release that brings the version; never change a file of a released version::

    python tests/compat/make_classifier_v1.py
"""

from pathlib import Path

import torch

from sparing.vision import resnet8, save_classifier


def main():
    model = resnet8(num_classes=2, width=1)
    filled = {
        name: torch.arange(tensor.numel()).reshape(tensor.shape) / 64 if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(filled)
    path = Path(__file__).parent / "classifier-v1.safetensors"
    save_classifier(path, model, class_names=("cat", "dog"), meta={"accuracy": 0.5})


if __name__ == "__main__":
    main()
