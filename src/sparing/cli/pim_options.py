"""What the commands of `sparing pim` share: naming a network and a chip, and opening them."""

import argparse
from typing import TYPE_CHECKING

from sparing.cli.options import integers
from sparing.cli.user_models import network_from_file
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from torch import nn

    from sparing.pim.hardware import Hardware
    from sparing.pim.layers import NetworkShape

__all__ = ["chip_options", "network_options", "open_hardware", "open_network"]

_FAMILIES = ("resnet", "vgg", "mobilenet")
_NUM_CLASSES = 10


def network_options(parser: argparse.ArgumentParser) -> None:
    """Adds the network and the sizes it is built for."""
    parser.add_argument(
        "network",
        metavar="NETWORK|FILE.py:FACTORY",
        help="a network of sparing.vision (resnet18, resnet50, ...), or a file of yours and the function in it that "
        "returns a torch.nn.Module; naming a file runs it",
    )
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help=f"of a named network's last layer (default: {_NUM_CLASSES})"
    )
    parser.add_argument(
        "--input",
        type=integers,
        metavar="C,H,W",
        help="size of an image (default: 3,224,224; 3,32,32 for networks made for CIFAR)",
    )


def chip_options(parser: argparse.ArgumentParser) -> None:
    """Adds the chip."""
    parser.add_argument(
        "--preset", default="mnsim", metavar="NAME|FILE.toml", help="the chip: mnsim (default), isaac, or a TOML file"
    )
    parser.add_argument(
        "--crossbar", metavar="N|RxC", help="size of a crossbar, rows by columns (default: that of the chip)"
    )


def open_hardware(arguments: argparse.Namespace) -> "Hardware":
    """Reads the chip.

    Raises:
        ConfigError, FormatError, ArgumentError: no such chip, a damaged file, or no such size of a crossbar.
    """
    from sparing.pim.crossbar import CrossbarSize
    from sparing.pim.hardware import load_hardware

    hardware = load_hardware(arguments.preset)
    return hardware.with_crossbar(CrossbarSize.parse(arguments.crossbar)) if arguments.crossbar else hardware


def open_network(arguments: argparse.Namespace) -> "NetworkShape":
    """Builds the network without memory for its weights, where it is a named one, and traces it.

    Raises:
        ArgumentError: no such network, file or function, or one that gives no module.
        ShapeError: it does not take such an input.
    """
    from sparing.pim.layers import trace_layers

    model = _from_file(arguments) if ".py:" in arguments.network else _named(arguments)
    return trace_layers(model, arguments.input or _input_of(model))


def _named(arguments: argparse.Namespace) -> "nn.Module":
    import torch

    from sparing import vision

    names = sorted(name for name in vision.__all__ if name.startswith(_FAMILIES))
    if arguments.network not in names:
        raise ArgumentError(
            f"network: expected one of {', '.join(names)}, or FILE.py:FACTORY, got {arguments.network!r}"
        )
    classes = _NUM_CLASSES if arguments.num_classes is None else arguments.num_classes
    with torch.device("meta"):
        model: nn.Module = getattr(vision, arguments.network)(num_classes=classes)
    return model


def _input_of(model: "nn.Module") -> tuple[int, int, int]:
    config = getattr(model, "config", None)
    small = "cifar" in (getattr(config, "stem", None), getattr(config, "head", None))
    return (3, 32, 32) if small else (3, 224, 224)


def _from_file(arguments: argparse.Namespace) -> "nn.Module":
    if arguments.num_classes is not None:
        raise ArgumentError("--num-classes: expected for a named network only; a factory of yours decides itself")
    return network_from_file(arguments.network)
