"""`sparing faults sweep`: accuracy against the rate of faults."""

import argparse
from typing import TYPE_CHECKING, Any

from sparing.cli import render
from sparing.cli.faults_options import KEPT, Subject, campaign_options, keep, open_campaign, open_fault, open_subject
from sparing.cli.faults_render import print_points
from sparing.cli.options import add_command, numbers, resumable
from sparing.errors import ArgumentError

if TYPE_CHECKING:
    from sparing.faults.campaign_result import CampaignResult

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(commands, "sweep", _sweep, "accuracy of a classifier against the rate of faults")
    campaign_options(parser)
    parser.add_argument(
        "--fault",
        required=True,
        metavar="KIND[:FIELD=VALUE,...]",
        help="stuck-at:form=bit, bit-bias, bit-flip:where=features, gaussian, reciprocal-normal; several by ' + ', of "
        "which the first takes the rates",
    )
    parser.add_argument(
        "--rates", required=True, type=numbers, metavar="0,.02,...", help="p_m, p, rate or sigma; 0: no faults"
    )
    parser.add_argument("--include", metavar="NAME,...", help="sites that are hit, names or patterns (default: all)")
    parser.add_argument("--exclude", metavar="NAME,...", help="sites that are not")
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="measure batch normalizations anew under each draw's faults, on the calibration images, as on the chip",
    )


def _sweep(arguments: argparse.Namespace) -> None:
    from sparing.faults.campaign import sweep

    config, fault = open_campaign(arguments), open_fault(arguments.fault, any_rate=True)
    if not arguments.rates:
        raise ArgumentError("--rates: expected one or more, got none")
    for rate in arguments.rates:
        fault.with_rate(rate)
    with render.progress_bars() as progress, resumable(KEPT if arguments.out else None):
        subject = open_subject(arguments, progress)
        result = sweep(
            subject.model,
            subject.batches,
            fault,
            arguments.rates,
            config=config,
            include=_names(arguments.include),
            exclude=_names(arguments.exclude),
            recalibration=subject.calibration if arguments.recalibrate else None,
            folder=arguments.out,
            workers=arguments.workers,
            parallel="ray" if arguments.ray else "processes",
            progress=progress,
        )
    keep(arguments, result, subject)
    if arguments.plot:
        from sparing.faults.pictures import save_sweeps_figure

        save_sweeps_figure(arguments.plot, {subject.name: result})
    _show(arguments, subject, result)


def _show(arguments: argparse.Namespace, subject: Subject, result: "CampaignResult") -> None:
    if arguments.json:
        head = {"model": subject.name, "data": subject.data, "float_accuracy": subject.float_accuracy}
        render.print_json({**head, **render.to_json(result)})
        return
    print_points(result, title=f"{subject.name} on {subject.data}: {arguments.fault}", first="rate")
    if subject.float_accuracy is not None:
        render.print_line(
            f"without faults {result.clean_accuracy:.2%} in 8-bit fixed point, {subject.float_accuracy:.2%} as given"
        )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
