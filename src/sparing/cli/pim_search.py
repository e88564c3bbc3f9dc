"""`sparing pim search`: designs of a network within a budget of crossbars, beside the published uniform one."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparing.cli import render
from sparing.cli.options import add_command, integers, seed
from sparing.cli.pim_options import chip_options, network_options, open_hardware, open_network
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from sparing.pim.crossbar import CrossbarSize
    from sparing.pim.design import NetworkDesign
    from sparing.pim.evaluation import ChipCost
    from sparing.pim.hardware import Hardware
    from sparing.pim.layers import NetworkShape

__all__ = ["add_commands"]

_RATIO = 30.65
"""Times fewer crossbars than dense unquantized ones: what was published for a ResNet-50 of 3 bits."""
_ROWS_OF_CROSSBARS = 4
_MILLI = 1e3
_WIDTH = 160


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands, "search", _search, "find a design within a budget of crossbars; modelled, nothing is trained"
    )
    network_options(parser)
    chip_options(parser)
    parser.add_argument(
        "--max-crossbars", type=int, metavar="N", help=f"the budget (default: {_RATIO} times fewer than dense floats)"
    )
    parser.add_argument(
        "--bits", type=integers, default=(3,), metavar="3,5,...", help="choices for weights (default: 3)"
    )
    parser.add_argument(
        "--activation-bits", type=int, default=9, metavar="N", help="of inputs and outputs (default: 9)"
    )
    parser.add_argument(
        "--no-worse-than",
        choices=("uniform", "dense"),
        default="uniform",
        help="no slower and no hungrier than uniform epitomes (default) or the dense network, at the first of the bits",
    )
    parser.add_argument("--no-wrapped", action="store_true", help="no epitomes whose output channels are copies")
    parser.add_argument(
        "--evaluations", type=int, default=300_000, metavar="N", help="designs to try (default: 300000)"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the search (default: 0)")
    parser.add_argument("--out", metavar="DESIGN.json", help="save the design")
    parser.add_argument("--plot", metavar="FILE.png", help="draw crossbars against error, with what was found")


def _search(arguments: argparse.Namespace) -> None:
    from sparing.pim.design import dense_design, num_crossbars
    from sparing.pim.matching import chip_cost, design_error, match_design
    from sparing.pim.pictures import check_picture

    for file in (arguments.out, arguments.plot):
        if file and not Path(file).parent.is_dir():
            raise ArgumentError(f"--out, --plot: the folder {str(Path(file).parent)!r} does not exist")
        if file and Path(file).is_dir():
            raise ArgumentError(f"--out, --plot: expected a file, got the folder {file!r}")
    if arguments.plot:
        check_picture(arguments.plot, "--plot")
    hardware, network = open_hardware(arguments), open_network(arguments)
    if arguments.evaluations < 1:
        raise ArgumentError(f"--evaluations: expected at least 1, got {arguments.evaluations}")
    floats = num_crossbars(network, dense_design(network), hardware.crossbar)
    budget = math.floor(floats / _RATIO) if arguments.max_crossbars is None else arguments.max_crossbars
    others = _references(network, hardware.crossbar, arguments)
    reference = others["dense" if arguments.no_worse_than == "dense" else "uniform"]
    with render.progress_bars() as progress:
        found = match_design(
            network,
            hardware,
            max_crossbars=budget,
            reference=reference,
            bits=arguments.bits,
            wrapped=not arguments.no_wrapped,
            seed=arguments.seed,
            evaluations=arguments.evaluations,
            progress=progress,
        )
    if arguments.out:
        found.design.save(arguments.out)
    rows = {name: (chip_cost(network, d, hardware), design_error(network, d)) for name, d in others.items()}
    rows["found"] = (found.cost, found.error)
    if arguments.plot:
        _plot(arguments, network, hardware, reference, rows)
    designs = {**others, "found": found.design}
    answer = {
        "network": arguments.network,
        "hardware": hardware.name,
        "crossbar": str(hardware.crossbar),
        "max_crossbars": budget,
        "num_crossbars_float": floats,
        "no_worse_than": arguments.no_worse_than,
        "keeps": found.keeps,
        "designs": {name: _row(floats, network, hardware, designs[name], *row) for name, row in rows.items()},
        "evolution": {"evaluations": found.evaluations, "error": found.found_error, "seed": arguments.seed},
        "exact": {"least_error": found.bound, "gap": found.gap},
        "design": found.design.model_dump(mode="json", exclude_none=True),
    }
    if arguments.json:
        render.print_json(answer)
    else:
        _print(answer)


def _references(
    network: "NetworkShape", crossbar: "CrossbarSize", arguments: argparse.Namespace
) -> "dict[str, NetworkDesign]":
    from sparing.pim.design import dense_design, uniform_design

    bits, activation_bits = arguments.bits[0], arguments.activation_bits
    rows = _ROWS_OF_CROSSBARS * crossbar.rows

    def uniform(*, wrapped: bool) -> "NetworkDesign":
        return uniform_design(
            network,
            crossbar,
            bits=bits,
            max_rows=rows,
            max_cols=crossbar.cols,
            min_weights=rows * crossbar.cols,
            wrapped=wrapped,
            activation_bits=activation_bits,
        )

    return {
        "dense": dense_design(network, bits=bits, activation_bits=activation_bits),
        "uniform": uniform(wrapped=False),
        "uniform, wrapped": uniform(wrapped=True),
    }


def _row(
    floats: int,
    network: "NetworkShape",
    hardware: "Hardware",
    design: "NetworkDesign",
    cost: "ChipCost",
    error: float,
) -> dict[str, Any]:
    from sparing.pim.design import LayerDesign, num_crossbars

    plain = {name: LayerDesign(bits=layer.bits) for name, layer in design.layers.items()}
    dense = num_crossbars(network, design.model_copy(update={"layers": plain}), hardware.crossbar)
    shapes = [layer.epitome for layer in design.layers.values() if layer.epitome is not None]
    return {
        "num_crossbars": cost.num_crossbars,
        "ratio": floats / cost.num_crossbars,
        "ratio_bits": floats / dense,
        "ratio_epitome": dense / cost.num_crossbars,
        "num_epitomes": len(shapes),
        "num_wrapped": sum(shape.wrapped for shape in shapes),
        "latency_s": cost.latency_s,
        "serial_s": cost.serial_s,
        "energy_j": cost.energy_j,
        "area_m2": cost.area_m2,
        "table_bits": cost.table_bits,
        "error": error,
    }


def _plot(
    arguments: argparse.Namespace,
    network: "NetworkShape",
    hardware: "Hardware",
    reference: "NetworkDesign",
    rows: "dict[str, tuple[ChipCost, float]]",
) -> None:
    from sparing.pim.exact_search import exact_front
    from sparing.pim.matching import matching_tables
    from sparing.pim.pictures import save_designs_figure

    tables = matching_tables(network, hardware, reference, bits=arguments.bits, wrapped=not arguments.no_wrapped)
    front = exact_front(tables, objectives=("crossbars", "error"))
    curve = [(one.costs["crossbars"], one.costs["error"]) for one in front.designs]
    points = {name: (float(cost.num_crossbars), error) for name, (cost, error) in rows.items()}
    save_designs_figure(arguments.plot, curve, points, title=f"{arguments.network} on {hardware.name}")


def _print(answer: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = f"{answer['network']} on {answer['hardware']}, crossbars of {answer['crossbar']}; modelled"
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("design", no_wrap=True)
    columns = ("crossbars", "ratio = bits × epitome", "latency ms", "in turn ms", "energy mJ", "tables kbit")
    for name in (*columns, "epitomes (wrapped)", "error proxy"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in answer["designs"].items():
        table.add_row(
            name,
            f"{row['num_crossbars']:,}",
            f"{row['ratio']:.2f} = {row['ratio_bits']:.2f} × {row['ratio_epitome']:.3f}",
            f"{row['latency_s'] * _MILLI:.2f}",
            f"{row['serial_s'] * _MILLI:.1f}",
            f"{row['energy_j'] * _MILLI:.2f}",
            f"{row['table_bits'] / _MILLI:.2f}",
            f"{row['num_epitomes']} ({row['num_wrapped']})",
            f"{row['error']:.4g}",
        )
    Console(width=max(Console().width, _WIDTH)).print(table)
    budget, floats = answer["max_crossbars"], answer["num_crossbars_float"]
    render.print_line(f"budget: {budget:,} crossbars of {floats:,} ({floats / budget:.2f} times fewer)")
    promise = "keeps" if answer["keeps"] else "does NOT keep"
    render.print_line(
        f"found {promise}: no slower (in the pipeline, in turn) and no more energy than {answer['no_worse_than']}"
    )
    exact, evolution = answer["exact"], answer["evolution"]
    best = f"the exact optimum {exact['least_error']:.5g} within the same limits"
    found = (
        f"none keeps the limits; error proxy of {best}"
        if exact["gap"] is None
        else f"least error proxy {evolution['error']:.5g}, {exact['gap']:.2%} above {best}"
    )
    render.print_line(f"search: {evolution['evaluations']:,} designs tried; {found}")
