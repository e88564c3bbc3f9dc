"""`sparing nas cost`: parameters and multiply-accumulates of a genotype's network, or of one to compare with."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from sparing.cli import render
from sparing.cli.options import add_command
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from sparing.nas import NetworkCost

__all__ = ["add_commands"]

_CHANNELS, _CELLS = 20, 8
_HAND_MADE = {"resnet20": "resnet20", "resnet18": "resnet18", "mobilenetv2": "mobilenet_v2"}


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "cost", _cost, "parameters and multiply-accumulates of a network")
    parser.add_argument(
        "network",
        metavar="NAME|GENOTYPE.json",
        help=f"w-ftt-net, a file with a genotype, or {', '.join(_HAND_MADE)} for small images",
    )
    parser.add_argument("--channels", type=int, metavar="C", help=f"of a genotype's first cells (default: {_CHANNELS})")
    parser.add_argument("--max-macs", type=int, metavar="N", help="as many channels as fit into so many MACs instead")
    parser.add_argument("--max-params", type=int, metavar="N", help="as many as fit into so many parameters")
    parser.add_argument("--cells", type=int, metavar="N", help=f"of a genotype's network (default: {_CELLS})")
    parser.add_argument("--image-size", type=int, default=32, metavar="N", help="height and width (default: 32)")
    parser.add_argument("--num-classes", type=int, default=10, metavar="N", help="default: 10")


def _cost(arguments: argparse.Namespace) -> None:
    channels = None if arguments.network in _HAND_MADE else _channels(arguments)
    cost = _hand_made(arguments) if channels is None else _of_genotype(arguments, channels)
    if arguments.json:
        told = {} if channels is None else {"channels": channels}
        render.print_json({"network": arguments.network, **told, **dataclasses.asdict(cost)})
        return
    size = arguments.image_size
    render.print_pairs(
        {
            "network": arguments.network,
            **({} if channels is None else {"channels": str(channels)}),
            "parameters": f"{cost.num_parameters:,}",
            "multiply-accumulates": f"{cost.num_macs:,} for one image of {size} × {size}",
        }
    )


def _hand_made(arguments: argparse.Namespace) -> "NetworkCost":
    import torch

    from sparing import vision
    from sparing.nas import network_cost

    given = (arguments.channels, arguments.cells, arguments.max_macs, arguments.max_params)
    if any(value is not None for value in given):
        raise ArgumentError(
            f"--channels, --cells, --max-macs, --max-params: expected for a genotype only, got {arguments.network}"
        )
    stem = {} if arguments.network == "resnet20" else {"stem": "cifar"}
    with torch.device("meta"):
        model = getattr(vision, _HAND_MADE[arguments.network])(num_classes=arguments.num_classes, **stem)
    return network_cost(model, image_size=arguments.image_size)


def _channels(arguments: argparse.Namespace) -> int:
    """C as given, or the most within limits."""
    from sparing.nas import load_genotype, widest_channels

    if arguments.max_macs is None and arguments.max_params is None:
        return _CHANNELS if arguments.channels is None else int(arguments.channels)
    if arguments.channels is not None:
        raise ArgumentError("--channels: expected it or limits, got both")
    return widest_channels(
        load_genotype(arguments.network),
        max_macs=arguments.max_macs,
        max_parameters=arguments.max_params,
        image_size=arguments.image_size,
        num_cells=_cells(arguments),
        num_classes=arguments.num_classes,
    )


def _cells(arguments: argparse.Namespace) -> int:
    return _CELLS if arguments.cells is None else int(arguments.cells)


def _of_genotype(arguments: argparse.Namespace, channels: int) -> "NetworkCost":
    from sparing.nas import load_genotype, network_cost

    return network_cost(
        load_genotype(arguments.network),
        image_size=arguments.image_size,
        channels=channels,
        num_cells=_cells(arguments),
        num_classes=arguments.num_classes,
    )
