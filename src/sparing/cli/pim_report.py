"""`sparing pim report`: crossbars, latency, energy and area of a network on a chip, dense or as designed."""

import argparse
from typing import TYPE_CHECKING, Any

from sparing.cli import render
from sparing.cli.options import add_command
from sparing.cli.pim_options import chip_options, network_options, open_hardware, open_network
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from sparing.pim.crossbar import CrossbarSize
    from sparing.pim.design import NetworkDesign
    from sparing.pim.evaluation import ChipCost
    from sparing.pim.layers import NetworkShape
    from sparing.pim.report import CrossbarRatio, HardwareReport

__all__ = ["add_commands"]

_MILLI, _MICRO, _KILO = 1e3, 1e6, 1024
_BITS, _ACTIVATION_BITS, _LARGE = 3, 9, 262_144
_WIDTH = 140


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "report", _report, "what a network costs on a chip; modelled, not measured")
    network_options(parser)
    chip_options(parser)
    parser.add_argument(
        "--bits", type=int, metavar="N", help=f"of the weights, 2 to 16; 32: unquantized (default: {_BITS})"
    )
    parser.add_argument(
        "--activation-bits", type=int, metavar="N", help=f"of inputs and outputs (default: {_ACTIVATION_BITS})"
    )
    parser.add_argument(
        "--epitome", metavar="RxC", help="epitomes of at most R rows and C columns for all large convolutions"
    )
    parser.add_argument(
        "--min-weights",
        type=int,
        metavar="N",
        help="with --epitome: of a large convolution, more than (default: 262144)",
    )
    parser.add_argument("--wrapped", action="store_true", help="with --epitome: compute one group of output channels")
    parser.add_argument("--design", metavar="FILE", help="a saved design, in place of --bits and --epitome")
    parser.add_argument("--plot", metavar="FILE.png", help="draw where time, energy and area go")


def _report(arguments: argparse.Namespace) -> None:
    from sparing.pim.report import hardware_report

    if arguments.plot:
        from sparing.pim.pictures import check_picture

        check_picture(arguments.plot, "--plot")
    hardware, network = open_hardware(arguments), open_network(arguments)
    report = hardware_report(network, _design(arguments, network, hardware.crossbar), hardware)
    if arguments.plot:
        from sparing.pim.pictures import save_report_figure

        save_report_figure(arguments.plot, report, title=arguments.network)
    if arguments.json:
        found = render.to_json(report)
        render.print_json({"network": arguments.network, "input_shape": network.input_shape, **found})
    else:
        _print(arguments.network, report)


def _design(arguments: argparse.Namespace, network: "NetworkShape", crossbar: "CrossbarSize") -> "NetworkDesign":
    from sparing.pim.crossbar import CrossbarSize
    from sparing.pim.design import dense_design, load_design, uniform_design

    if arguments.design:
        others = ("bits", "activation_bits", "epitome", "min_weights", "wrapped")
        given = [name for name in others if getattr(arguments, name) not in (None, False)]
        if given:
            raise ArgumentError(f"--{given[0].replace('_', '-')}: not with --design, which says so itself")
        return load_design(arguments.design)
    bits = _BITS if arguments.bits is None else arguments.bits
    activation_bits = _ACTIVATION_BITS if arguments.activation_bits is None else arguments.activation_bits
    if arguments.epitome is None:
        if arguments.wrapped or arguments.min_weights is not None:
            raise ArgumentError("--wrapped, --min-weights: only with --epitome")
        return dense_design(network, bits=bits, activation_bits=activation_bits)
    most = CrossbarSize.parse(arguments.epitome)
    large = _LARGE if arguments.min_weights is None else arguments.min_weights
    design = uniform_design(
        network,
        crossbar,
        bits=bits,
        max_rows=most.rows,
        max_cols=most.cols,
        min_weights=large,
        wrapped=arguments.wrapped,
        activation_bits=activation_bits,
    )
    if not any(layer.epitome for layer in design.layers.values()):
        raise ArgumentError(
            f"--epitome: no convolution has more than {large:,} weights (see --min-weights), more rows or columns than "
            f"{most} and room for a kernel in them, so that all would stay dense"
        )
    return design


def _print(name: str, report: "HardwareReport") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=max(Console().width, _WIDTH))  # rather lines that run over than cut names
    layers = Table(title=f"{name} on {report.hardware}, crossbars of {report.crossbar}; modelled", box=SIMPLE_HEAD)
    columns = (
        "bits",
        "epitome",
        "crossbars",
        "bits × epitome",
        "cells",
        "rounds",
        "serial ms",
        "energy µJ",
        "area mm²",
    )
    layers.add_column("layer", no_wrap=True)
    for column in columns:
        layers.add_column(column, justify="right", no_wrap=True)
    for step in report.steps:
        stored = "×".join(map(str, step.epitome or ())) + " w" * step.wrapped
        counted = step.ratio is not None
        layers.add_row(
            step.name,
            str(step.bits or ""),
            stored,
            f"{step.num_crossbars:,}" if counted else "",
            f"{step.ratio.bits:.2f} × {step.ratio.epitome:.2f}" if step.ratio else "",
            f"{step.utilization:.0%}" if counted else "",
            str(step.num_rounds) if counted else "",
            f"{step.serial_s * _MILLI:.3f}",
            f"{sum(step.energy_j.values()) * _MICRO:.1f}",
            f"{step.area_m2 * _MICRO:.1f}",
        )
    console.print(layers)
    total = Table(box=SIMPLE_HEAD)
    for number, column in enumerate(("in all", "as designed", "dense, same bits", "")):
        total.add_column(column, justify="right" if number else "left")
    for label, designed, dense, share in _totals(report.design, report.dense):
        total.add_row(label, designed, dense, share)
    console.print(total)
    floats = report.num_crossbars_float
    render.print_line(
        f"crossbars: {floats:,} dense at 32 bits → {report.num_crossbars:,}: {_split(report.ratio)} (bits × epitome)"
    )
    if any(step.kind == "sum" and not sum(step.energy_j.values()) for step in report.steps):
        render.print_line(f"sums and links take time only: {report.hardware} counts no energy for them")
    if report.off_chip:
        render.print_line(f"off the crossbars, not counted: {', '.join(report.off_chip)}")
    for layer in report.skipped:
        render.print_line(f"not mapped, not counted: {layer.name or 'the network itself'}, {layer.reason}")


def _split(ratio: "CrossbarRatio") -> str:
    return f"{ratio.total:.2f}x = {ratio.bits:.2f} × {ratio.epitome:.2f}"


def _totals(designed: "ChipCost", dense: "ChipCost") -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, float, float, str, bool]] = [
        ("crossbars (pairs)", designed.num_crossbars, dense.num_crossbars, ",.0f", True),
        ("tiles", designed.num_tiles, dense.num_tiles, ",.0f", True),
        ("cells in use, %", 100 * designed.utilization, 100 * dense.utilization, ".1f", False),
        ("rounds, thousands", designed.num_rounds / _MILLI, dense.num_rounds / _MILLI, ",.1f", True),
        ("ADC conversions, millions", designed.adc_conversions / _MICRO, dense.adc_conversions / _MICRO, ",.1f", True),
        ("latency in the pipeline, ms", designed.latency_s * _MILLI, dense.latency_s * _MILLI, ".3f", True),
        ("latency layer by layer, ms", designed.serial_s * _MILLI, dense.serial_s * _MILLI, ".2f", True),
        ("energy, µJ", designed.energy_j * _MICRO, dense.energy_j * _MICRO, ",.1f", True),
    ]
    for name, value in designed.energy_by_component_j.items():
        rows.append((f"  {name}", value * _MICRO, dense.energy_by_component_j.get(name, 0.0) * _MICRO, ",.1f", False))
    rows += [
        ("energy × latency, µJ·s", designed.energy_delay_js * _MICRO, dense.energy_delay_js * _MICRO, ".2f", True),
        ("area, mm²", designed.area_m2 * _MICRO, dense.area_m2 * _MICRO, ",.1f", True),
        ("tables, kbit", designed.table_bits / _MILLI, dense.table_bits / _MILLI, ".2f", False),
        ("input buffers, kB", designed.input_buffer_bytes / _KILO, dense.input_buffer_bytes / _KILO, ".1f", False),
        ("output buffers, kB", designed.output_buffer_bytes / _KILO, dense.output_buffer_bytes / _KILO, ".1f", False),
    ]
    return [
        (label, format(a, form), format(b, form), f"{a / b:.3f}x" if share and b else "")
        for label, a, b, form, share in rows
    ]
