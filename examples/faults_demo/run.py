"""Faults at work: what they do to a small network, what training under them brings, and a tiny architecture search."""

from frame import Section
from rich.table import Table
from terminal import bars, console, step

from faults_demo.page import FRONT_HEAD, GAIN_HEAD, front_rows, gain_rows, on_test, recalibrated, section, verdict
from faults_demo.search import CANDIDATES, search
from faults_demo.training import digits, harden


def show(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Shows rows of text."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def run() -> Section:
    """Shows the system, and returns what the page says about it."""
    step("training a small network of digits, plainly and under two kinds of simulated faults, and measuring all")
    with bars() as progress:
        train, test = digits(progress)
        hardened = harden(train, test, progress)
    show(f"accuracy on {len(test)} test images under simulated faults", GAIN_HEAD, gain_rows(hardened))
    step(f"searching: {CANDIDATES} architectures, trained shortly and judged with faults and without")
    with bars() as progress:
        found = search(train, test, progress)
    show("the front: clean accuracy, accuracy under faults, multiply-adds", FRONT_HEAD, front_rows(found))
    console.print(f"  chosen: number {found.chosen.number}; on test images {on_test(found)}")
    for one in hardened:
        console.print(f"[bold green]faults of {one.kind.fault.place}[/]: fault-tolerant training {verdict(one)}")
        if one.recalibrated:
            console.print(f"  normalizations measured anew on the chip bring {recalibrated(one)}")
    return section(hardened, found)
