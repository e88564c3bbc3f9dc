"""`sparing nas train`: trains the network of a genotype under faults, judges it and exports it."""

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render
from sparing.cli.nas_options import open_fault, open_images, preset_of, run_options
from sparing.cli.options import add_command, open_device, resumable
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from sparing.nas.derive import SearchResult
    from sparing.nas.final_training import FinalTrainingConfig
    from sparing.nas.genotype import Genotype

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "train", _train, "train a genotype's network under faults, and export it")
    parser.add_argument(
        "genotype",
        metavar="GENOTYPE",
        help="a file with a genotype, w-ftt-net, or the folder of a search, whose sizes, fault and weight limit hold "
        "unless given",
    )
    run_options(parser)
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a step (default: the preset's)")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="at its peak (default: 0.1)")
    parser.add_argument("--draws", type=int, metavar="N", help="of faults, to judge by (default: the preset's)")
    parser.add_argument("--onnx", action="store_true", help="also write network.onnx")


def _train(arguments: argparse.Namespace) -> None:
    from sparing.nas.derive import load_search_result
    from sparing.nas.final_training import train_genotype
    from sparing.nas.genotype import load_genotype

    begin, out = time.perf_counter(), Path(arguments.out)
    given = Path(arguments.genotype)
    found = load_search_result(given) if given.is_dir() else None
    genotype = load_genotype(arguments.genotype) if found is None else found.genotype
    if not arguments.resume and (out / "checkpoints").exists():
        raise ArgumentError(
            f"--out: {out} holds a training already: add --resume to go on with it, or name another folder"
        )
    config, device = _config(arguments, genotype, found), open_device(arguments.device)
    with render.progress_bars() as progress:
        train, test = open_images(arguments, config.image_size, progress)
        with resumable("the training so far is kept: the same command with --resume goes on from there"):
            trained = train_genotype(
                genotype,
                train,
                test,
                config=config,
                folder=out,
                device=device,
                onnx=arguments.onnx,
                progress=progress,
            )
    accuracies = trained.faulty_accuracies
    answer = {
        "folder": arguments.out,
        "fault": config.fault.model_dump(mode="json"),
        "loss_share": config.loss_share,
        "weight_limit": config.weight_limit,
        "num_parameters": trained.num_parameters,
        "num_macs": trained.num_macs,
        "test_images": len(test),
        "clean_accuracy": trained.clean_accuracy,
        "faulty_accuracy": trained.faulty_accuracy,
        "faulty_sd": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "faulty_accuracies": list(accuracies),
        "files": [str(out / name) for name in trained.files],
        "seconds": time.perf_counter() - begin,
    }
    if arguments.json:
        render.print_json(answer)
        return
    render.print_pairs(
        {
            "network": f"{trained.num_parameters:,} parameters, {trained.num_macs:,} MACs an image",
            "clean accuracy": f"{trained.clean_accuracy:.2%} of {len(test):,} test images, in 8 bits",
            "under faults": f"{trained.faulty_accuracy:.2%} ± {answer['faulty_sd']:.2%} over {len(accuracies)} draws",
            "files": ", ".join(trained.files),
            "time": f"{answer['seconds']:.0f} s",
        }
    )


def _config(arguments: argparse.Namespace, genotype: "Genotype", found: "SearchResult | None") -> "FinalTrainingConfig":
    """The command line's, else the search's, else the preset's."""
    from sparing.nas.final_training import final_config

    fault, sizes = None, dict[str, Any]()
    if found is not None:
        search = found.config
        sizes = {"channels": found.channels, "num_cells": found.num_cells, "image_size": search.image_size}
        sizes["weight_limit"] = search.halving.weight_limit
        fault = search.fault if arguments.fault is None and arguments.p_m is None else None
    given = {
        "channels": arguments.channels,
        "num_cells": arguments.cells,
        "image_size": arguments.image_size,
        "loss_share": arguments.loss_share,
        "weight_limit": arguments.weight_limit,
        "draws": arguments.draws,
    }
    training = {
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "flip": False if arguments.data == "digits" else None,
    }
    return final_config(
        preset_of(arguments),
        fault=open_fault(arguments, genotype.space) if fault is None else fault,
        training={
            "seed": arguments.seed,
            **{name: value for name, value in training.items() if value is not None},
        },
        **sizes | {name: value for name, value in given.items() if value is not None},
    )
