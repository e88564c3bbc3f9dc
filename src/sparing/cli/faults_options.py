"""What the commands of `sparing faults` share: naming a network, its data and its faults, and opening them."""

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli.images import load_split
from sparing.cli.options import open_device
from sparing.cli.user_models import network_from_file
from sparing.errors import ArgumentError
from sparing.runs.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparing.faults.campaign_result import CampaignConfig, CampaignResult
    from sparing.faults.models import FaultModel
    from sparing.vision import ImageDataset

__all__ = ["KEPT", "Subject", "campaign_options", "keep", "open_campaign", "open_fault", "open_subject"]

_RATES = {"bit-bias": "p_m", "bit-flip": "p", "gaussian": "sigma", "reciprocal-normal": "sigma"}
_PICTURE_TEST_SHARE = 0.5

KEPT = "draws so far are kept: the same command with --resume goes on from there"
"""What Ctrl-C says of a campaign in a folder."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What is measured.

    Attributes:
        model: on its device, in evaluation mode, fixed-point if so asked.
        batches: test images as the model takes them, and their classes.
        calibration: training images as the model takes them, in one batch.
        float_accuracy: of the model as it was given; None where it is measured as it was given.
        name: of the model, for people.
        data: of the data, for people.
    """

    model: "nn.Module"
    batches: "list[tuple[Tensor, Tensor]]"
    calibration: "Tensor"
    float_accuracy: float | None
    name: str
    data: str


def campaign_options(parser: argparse.ArgumentParser) -> None:
    """Adds the network, its data, and how much is drawn."""
    parser.add_argument(
        "model",
        metavar="MODEL|FILE.py:FACTORY",
        help="a classifier saved by sparing.vision.save_classifier, or a file of yours and the function in it that "
        "returns a torch.nn.Module of images in [-1, 1]; naming a file runs it",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR|digits",
        help="CIFAR-10, a folder of pictures with one sub-folder a class, or the digits of scikit-learn (every third "
        "image is for tests; 32×32)",
    )
    parser.add_argument("--size", type=int, default=32, metavar="N", help="side of the images in pixels (default: 32)")
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="test images (default: 1000)")
    parser.add_argument("--batch-size", type=int, default=250, metavar="N", help="images at a time (default: 250)")
    parser.add_argument(
        "--fixed-point",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="8-bit weights and features, calibrated on training images, before faults (default); --float is "
        "--no-fixed-point",
    )
    parser.add_argument("--float", dest="fixed_point", action="store_false", help=argparse.SUPPRESS)
    parser.add_argument(
        "--calibration-images", type=int, default=256, metavar="N", help="of the training images (default: 256)"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--min-draws", type=int, default=10, metavar="N", help="before a point may stop (default: 10)")
    parser.add_argument("--max-draws", type=int, default=100, metavar="N", help="of a point (default: 100)")
    parser.add_argument(
        "--half-width",
        type=float,
        default=0.01,
        metavar="X",
        help="stop when the interval of the mean accuracy is at most 2X wide; 0: always --max-draws (default: 0.01)",
    )
    parser.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of intervals (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    parser.add_argument(
        "--persistent", action="store_true", help="one fixed map of faults a draw, for features too: a given chip"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1, this one)")
    parser.add_argument("--ray", action="store_true", help="workers on Ray")
    parser.add_argument("--out", metavar="DIR", help="record each draw in this folder, and the result")
    parser.add_argument("--resume", action="store_true", help="go on with the campaign in --out, if there is one")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the result")


def open_campaign(arguments: argparse.Namespace) -> "CampaignConfig":
    """Checks what can be checked before anything is loaded.

    Raises:
        ArgumentError, ConfigError: an option out of range, or a folder that must not be used.
        MissingExtraError: a picture is wanted and matplotlib missing.
    """
    from sparing.faults.campaign_result import CampaignConfig
    from sparing.faults.pictures import check_picture_path

    for name in ("images", "batch_size", "calibration_images", "workers", "size"):
        if getattr(arguments, name) < 1:
            raise ArgumentError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(arguments, name)}")
    if arguments.plot:
        check_picture_path(arguments.plot)
    if arguments.resume and not arguments.out:
        raise ArgumentError("--resume: expected with --out, the folder of the campaign to go on with")
    if arguments.out and not arguments.resume and (Path(arguments.out) / "campaign.json").exists():
        raise ArgumentError(
            f"--out: {arguments.out} holds a campaign already: add --resume to go on with it, or name another folder"
        )
    return CampaignConfig.of(
        min_draws=arguments.min_draws,
        max_draws=arguments.max_draws,
        half_width=arguments.half_width or None,
        confidence=arguments.confidence,
        seed=arguments.seed,
        transient=False if arguments.persistent else None,
    )


def open_fault(text: str, *, any_rate: bool = False) -> "FaultModel":
    """Reads a model of faults.

    Args:
        text: as of :func:`~sparing.faults.parse_fault`.
        any_rate: the rate may be left out, because it will be replaced.

    Raises:
        ConfigError: not a model of faults.
    """
    from sparing.faults.models import parse_fault

    first, plus, others = text.partition(" + ")
    kind, _, fields = (part.strip() for part in first.partition(":"))
    name = _RATES.get(kind)
    given = {pair.partition("=")[0].strip() for pair in fields.split(",")}
    if any_rate and name and not given & {"p", "p_m", "sigma"}:
        text = f"{kind}:{name}=0{',' if fields else ''}{fields}{plus}{others}"
    return parse_fault(text)


def open_subject(arguments: argparse.Namespace, progress: Progress) -> Subject:
    """Loads the network and its images, and makes the network fixed-point.

    Raises:
        ArgumentError, FormatError, MissingExtraError, OSError: the model or the data cannot be had, or do not fit.
    """
    import torch

    from sparing.faults.fixed_point import fixed_point_, is_fixed_point
    from sparing.vision import to_float

    device = open_device(arguments.device)
    model, class_names = _open_model(arguments.model)
    test, train = _open_data(arguments, progress)
    if class_names and class_names != test.class_names:
        raise ArgumentError(
            f"--data: expected the model's classes {', '.join(class_names[:5])}, ..., got "
            f"{', '.join(test.class_names[:5])}, ..."
        )
    model = model.to(device).eval()
    accuracy = _accuracy(model, test, arguments.batch_size)
    made = bool(arguments.fixed_point) and not is_fixed_point(model)
    calibration = to_float(train.images, device)
    if made:
        fixed_point_(model, calibration)
    batches = [
        (
            to_float(test.images[start : start + arguments.batch_size], device).contiguous(
                memory_format=torch.channels_last
            ),
            torch.from_numpy(test.labels[start : start + arguments.batch_size].copy()),
        )
        for start in range(0, len(test), arguments.batch_size)
    ]
    return Subject(
        model=model.eval(),
        batches=batches,
        calibration=calibration,
        float_accuracy=accuracy if made else None,
        name=Path(arguments.model.rpartition(".py:")[0] or arguments.model).name,
        data=test.name,
    )


def keep(arguments: argparse.Namespace, result: "CampaignResult", subject: Subject) -> None:
    """Writes beside the result what ran where."""
    if not arguments.out:
        return
    import torch

    from sparing.runs import run_record, write_record

    data = {"name": subject.data, **result.identity["data"]}
    record = run_record(
        command=f"sparing faults, on {subject.name}; see campaign.json",
        seed=arguments.seed,
        threads=torch.get_num_threads(),
        data=data,
        workers=arguments.workers,
    )
    write_record(Path(arguments.out) / "record.json", record, {"clean_accuracy": result.clean_accuracy})


def _open_model(text: str) -> "tuple[nn.Module, tuple[str, ...]]":
    from sparing.vision import load_classifier

    if ".py:" in text:
        return network_from_file(text, argument="model"), ()
    saved = load_classifier(text)
    return saved.model, saved.class_names


def _open_data(arguments: argparse.Namespace, progress: Progress) -> "tuple[ImageDataset, ImageDataset]":
    """Test images, and training images to calibrate on; never the same."""
    import numpy as np

    train, test = load_split(arguments.data, size=arguments.size, test_share=_PICTURE_TEST_SHARE, progress=progress)
    rng = np.random.default_rng(0)  # which images is no matter of the draws' seed
    return (
        test.subset(rng.permutation(len(test))[: arguments.images]),
        train.subset(rng.permutation(len(train))[: arguments.calibration_images]),
    )


def _accuracy(model: Any, test: "ImageDataset", batch_size: int) -> float:
    from sparing.vision import evaluate_classifier

    try:
        return evaluate_classifier(model, test, batch_size=batch_size)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ArgumentError(f"model: does not take images of {test.images.shape[1:]}: {reason}") from error
