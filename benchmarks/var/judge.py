"""Trains the quality stage's judge: `python -m benchmarks.var.judge --data CIFAR10 --out FILE`; goes on if killed.

A ResNet-20 that takes no part in training the image model: class agreement and Fréchet distance are in its features.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.progress import Progress

from sparing.vision import ClassifierTrainingConfig, load_cifar10, resnet20, save_classifier, train_classifier_

EPOCHS, SEED = 15, 17


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10's folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/var/judge.safetensors"))
    parser.add_argument("--work", type=Path, default=Path("out/var-judge"), help="keeps checkpoints")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args(arguments)
    train, test = load_cifar10(options.data, split="train"), load_cifar10(options.data, split="test")
    model = resnet20(seed=SEED)
    config = ClassifierTrainingConfig(epochs=options.epochs, seed=SEED)
    with Progress() as bar:
        task = bar.add_task("training the judge")
        result = train_classifier_(
            model,
            train,
            config=config,
            checkpoint_folder=options.work,
            validation=test,
            progress=lambda _, done, total: bar.update(task, completed=done, total=total),
        )
    meta = {
        "name": "ResNet-20",
        "data": train.name,
        "test_accuracy": result.validation_accuracy,
        "config": config.model_dump(),
        "precision": result.precision,
    }
    save_classifier(options.out, model, class_names=train.class_names, meta=meta)
    print(f"{options.out}: accuracy {result.validation_accuracy:.4f} on the test split")
    return 0


if __name__ == "__main__":
    sys.exit(main())
