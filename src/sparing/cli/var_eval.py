"""`sparing var eval`: how good a model's images are, on the features of a classifier."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render, var_render
from sparing.cli.images import load_data
from sparing.cli.options import add_command
from sparing.cli.var_options import open_pipeline, picked, run_options, sampling_options, set_precision_, tokens_of
from sparing.cli.var_plan import plan_summary
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from sparing.var import VARPipeline
    from sparing.vision import Classifier

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "eval", _evaluate, "judge drawn images against real ones, and the model on these")
    parser.add_argument("folder", metavar="DIR", help="a saved model, or hf://OWNER/NAME")
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="CIFAR-10 (its test images), or a folder, one sub-folder a class"
    )
    parser.add_argument(
        "--classifier", required=True, metavar="FILE", help="of these classes, from sparing.vision; gives the features"
    )
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="images to draw (default: 10000)")
    parser.add_argument(
        "--num-images", type=int, default=2000, metavar="N", help="images for the cross-entropy (default: 2000)"
    )
    parser.add_argument("--batch-size", type=int, default=100, metavar="N", help="images at once (default: 100)")
    sampling_options(parser)
    run_options(parser)


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.samples < 4 or arguments.batch_size < 1:
        raise ArgumentError(
            f"--samples, --batch-size: expected at least 4 and 1, got {arguments.samples} and {arguments.batch_size}"
        )
    from sparing.var import cross_entropy, draw_samples, measure_quality
    from sparing.vision import logits_and_features, penultimate_features

    pipe = open_pipeline(arguments)
    size, config = pipe.tokenizer.config.image_size, pipe.transformer.config
    with render.progress_bars() as progress:
        judge, features = _judge(arguments.classifier, pipe)
        # In a random order: of precision and recall only the first images are taken, and folders are sorted by class.
        data = picked(load_data(arguments.data, split="test", size=size, progress=progress), None)
        taught = picked(data, arguments.num_images)
        tokens, labels = tokens_of(pipe, taught, progress)
        set_precision_(pipe, arguments.precision)
        entropy = cross_entropy(pipe, tokens, labels, batch_size=arguments.batch_size)
        drawn = draw_samples(
            pipe,
            arguments.samples,
            guidance_scale=arguments.guidance,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            progress=progress,
        )
        report = measure_quality(
            drawn,
            penultimate_features(judge, data.images),
            classify=lambda images: logits_and_features(judge, images),
            features=features,
        )
    sizes = config.scale_sizes
    answer = {
        "folder": arguments.folder,
        "data": data.name,
        "num_real": len(data),
        "quality": report,
        "cross_entropy": [float(value) for value in entropy],
        "cross_entropy_mean": float((entropy * sizes).sum() / sum(sizes)),
        "num_taught": len(labels),
        "guidance": arguments.guidance,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
        "plan": None if pipe.plan is None else plan_summary(pipe.plan),
    }
    if arguments.json:
        render.print_json(answer)
    else:
        var_render.print_quality(answer)


def _judge(path: str, pipe: "VARPipeline") -> "tuple[Classifier, str]":
    """Loads the classifier, and names its features."""
    from sparing.vision import load_classifier

    saved = load_classifier(path)
    ours, theirs = pipe.class_names, saved.class_names
    if saved.model.config.num_classes != pipe.transformer.config.num_classes or (ours and theirs and ours != theirs):
        raise ArgumentError(
            f"--classifier: expected the model's {pipe.transformer.config.num_classes} classes in their order, got "
            f"{saved.model.config.num_classes}: {', '.join(theirs[:5]) or 'without names'}"
        )
    return saved.model.to(pipe.device), f"{Path(path).stem}, penultimate layer ({saved.model.num_features})"
