"""`sparing nas search`: looks for an architecture that stands a kind of fault."""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render
from sparing.cli.images import DIGITS
from sparing.cli.nas_options import open_fault, open_images, preset_of, run_options
from sparing.cli.options import add_command, open_device, resumable
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from sparing.nas.archive import Evaluated
    from sparing.nas.derive import SearchResult
    from sparing.nas.search_config import SearchConfig
    from sparing.vision import ImageDataset

__all__ = ["add_commands"]

_FEW = 64
"""Evaluations below which starting other processes takes longer than they save."""
_MAX_WORKERS = 8
_MAX_ROWS = 12


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "search", _search, "search for an architecture that stands faults")
    run_options(parser)
    parser.add_argument(
        "--space",
        choices=("feature", "weight"),
        help="primitives to choose from (default: feature for faults of features, weight for those of weights)",
    )
    parser.add_argument(
        "--mode",
        choices=("evolution", "policy-gradient", "halving"),
        default="evolution",
        help="evolution on a trained supernet (default), the paper's policy gradient, or successive halving: networks "
        "trained alone, ever fewer for ever longer, each as wide as the limits allow",
    )
    parser.add_argument(
        "--rounds",
        type=_rounds,
        metavar="N:EPOCHS,...",
        help="of --mode halving, how many networks for how long, such as 24:.25,8:1,2:3 (default: the preset's)",
    )
    parser.add_argument("--max-macs", type=int, metavar="N", help="multiply-accumulates of the network, at most")
    parser.add_argument("--max-params", type=int, metavar="N", help="parameters of the network, at most")
    parser.add_argument("--evaluations", type=int, metavar="N", help="architectures to judge (default: the preset's)")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that judge architectures (default: one a core, on the CPU)"
    )
    parser.add_argument("--optuna", action="store_true", help="also keep trials.journal, for Optuna's dashboard")
    parser.add_argument("--plot", metavar="FILE.png|svg", help="draw the found cells")


def _rounds(text: str) -> dict[str, tuple[float, ...]]:
    """Reads the rounds of a halving."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return {"candidates": tuple(int(n) for n, _ in pairs), "epochs": tuple(float(epochs) for _, epochs in pairs)}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected rounds such as 24:.25,8:1,2:3, got {text!r}") from None


def _search(arguments: argparse.Namespace) -> None:
    from sparing.faults.pictures import check_picture_path
    from sparing.nas.archive import read_archive
    from sparing.nas.pictures import ENDINGS, save_genotype_figure
    from sparing.nas.search import run_search

    begin, out = time.perf_counter(), Path(arguments.out)
    if arguments.workers is not None and arguments.workers < 1:
        raise ArgumentError(f"--workers: expected at least 1, got {arguments.workers}")
    if not arguments.resume and (out / "search.json").exists():
        raise ArgumentError(
            f"--out: {out} holds a search already: add --resume to go on with it, or name another folder"
        )
    config, device = _config(arguments), open_device(arguments.device)
    if arguments.plot:
        check_picture_path(arguments.plot, endings=ENDINGS)
    with render.progress_bars() as progress:
        train, _ = open_images(arguments, config.image_size, progress)
        with resumable("the search so far is kept: the same command with --resume goes on from there"):
            result = run_search(
                train,
                config=config,
                folder=out,
                workers=_workers(arguments, config, device.type),
                device=device,
                trials=arguments.optuna,
                progress=progress,
            )
    if arguments.plot:
        save_genotype_figure(arguments.plot, result.genotype)
    seconds = time.perf_counter() - begin
    records = read_archive(out)
    _record(out, arguments, train, seconds)
    if arguments.json:
        render.print_json(_answer(arguments, config, result, records, seconds))
    else:
        _print(result, records, out, seconds)


def _config(arguments: argparse.Namespace) -> "SearchConfig":
    from sparing.nas.search_config import preset_config

    space = arguments.space
    fault = open_fault(arguments, space)
    if space is None:
        space = "feature" if any(part.place == "features" for part in fault.parts) else "weight"
    halves, rounds = arguments.mode == "halving", arguments.rounds
    for name in ("epochs", "evaluations") if halves else ("rounds", "weight_limit"):
        if getattr(arguments, name) is not None:
            option = name.replace("_", "-")
            raise ArgumentError(f"--{option}: --mode {arguments.mode} does not take it; see --help for what it does")
    if halves and arguments.channels is not None and (arguments.max_macs or arguments.max_params):
        raise ArgumentError("--channels: --mode halving makes networks as wide as the limits allow; expected either")
    supernet = {"epochs": arguments.epochs, "loss_share": arguments.loss_share}
    halving = {"loss_share": arguments.loss_share, "weight_limit": arguments.weight_limit, **(rounds or {})}
    if arguments.data == "digits":
        supernet["flip"], halving["training"] = False, {"flip": False}
    given = {
        "channels": arguments.channels,
        "num_cells": arguments.cells,
        "image_size": arguments.image_size,
        "evaluations": arguments.evaluations,
        "max_macs": arguments.max_macs,
        "max_parameters": arguments.max_params,
    }
    return preset_config(
        preset_of(arguments),
        space=space,
        fault=fault,
        mode=arguments.mode,
        seed=arguments.seed,
        supernet={name: value for name, value in supernet.items() if value is not None},
        halving={name: value for name, value in halving.items() if value is not None},
        **{name: value for name, value in given.items() if value is not None},
    )


def _workers(arguments: argparse.Namespace, config: "SearchConfig", device: str) -> int:
    if arguments.workers is not None:
        return int(arguments.workers)
    counts = {"evolution": config.evaluations, "policy-gradient": config.controller.samples}
    # A training is worth a process of its own; a glance is not.
    few = counts.get(config.mode, _FEW) < _FEW or arguments.data == DIGITS
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device != "cpu" or few else min(cores, _MAX_WORKERS)


def _record(out: Path, arguments: argparse.Namespace, train: "ImageDataset", seconds: float) -> None:
    """Writes beside the result what ran where, and how long this session took."""
    import torch

    from sparing.nas.images import data_identity
    from sparing.runs import run_record, write_record

    record = run_record(
        command="sparing nas search; settings in search.json",
        seed=arguments.seed,
        threads=torch.get_num_threads(),
        data=data_identity(train),
    )
    write_record(out / "record.json", record, {"seconds": seconds})


def _row(record: "Evaluated") -> dict[str, Any]:
    return {
        "number": record.number,
        "clean_accuracy": record.clean_accuracy,
        "faulty_accuracy": record.faulty_accuracy,
        "reward": record.reward,
        "num_cells": record.num_cells,
        "channels": record.channels,
        "num_macs": record.num_macs,
        "num_parameters": record.num_parameters,
    }


def _answer(
    arguments: argparse.Namespace,
    config: "SearchConfig",
    result: "SearchResult",
    records: "list[Evaluated]",
    seconds: float,
) -> dict[str, Any]:
    return {
        "folder": arguments.out,
        "settings": config.model_dump(mode="json"),
        "genotype": result.genotype.model_dump(mode="json"),
        "chosen": _row(records[result.chosen]),
        "finalists": [one.model_dump(mode="json") for one in result.finalists],
        "front": [_row(records[number]) for number in result.front],
        "num_evaluated": result.num_evaluated,
        "supernet_steps": result.supernet_steps,
        "seconds": seconds,
    }


def _print(result: "SearchResult", records: "list[Evaluated]", out: Path, seconds: float) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title="the front; the best reward first", box=SIMPLE_HEAD)
    for name in ("no.", "clean", "faulty", "reward", "cells × C", "MACs", "parameters"):
        table.add_column(name, justify="right", no_wrap=True)
    for number in result.front[:_MAX_ROWS]:
        one = records[number]
        accuracies = (f"{x:.2%}" for x in (one.clean_accuracy, one.faulty_accuracy, one.reward))
        name = f"{number}{' *' if number == result.chosen else ''}"
        table.add_row(
            name, *accuracies, f"{one.num_cells} × {one.channels}", f"{one.num_macs:,}", f"{one.num_parameters:,}"
        )
    Console().print(table)
    more = len(result.front) - _MAX_ROWS
    render.print_pairs(
        {
            "judged": f"{result.num_evaluated:,} architectures, "
            + (f"after {result.supernet_steps:,} steps of the supernet" if result.supernet_steps else "trained alone"),
            **({"not shown": f"{more} more of the front: archive.jsonl"} if more > 0 else {}),
            "chosen": f"{result.chosen}: {result.num_cells} cells of {result.channels} channels, "
            f"{result.num_parameters:,} parameters, {result.num_macs:,} MACs",
            "time": f"{seconds:.0f} s",
            "next": f"sparing nas train {out} --data ... --out ...",
        }
    )
