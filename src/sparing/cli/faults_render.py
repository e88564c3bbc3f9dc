"""Tables of `sparing faults`."""

from typing import TYPE_CHECKING

from sparing.cli.render import print_line

if TYPE_CHECKING:
    from sparing.faults.campaign_result import CampaignResult
    from sparing.faults.statistics import PairedDifference

__all__ = ["print_differences", "print_points"]

_PERCENT = 100
_WIDTH = 150


def print_points(result: "CampaignResult", *, title: str, first: str) -> None:
    """Shows one line a rate, site or bit.

    Args:
        result: of a campaign.
        title: above it.
        first: name of the first column.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    clean = result.clean_accuracy
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    level = f"{result.config.confidence:.0%}"
    columns = (
        "accuracy %",
        f"mean within ({level})",
        "lost",
        "SD",
        "5 % quantile",
        "SDC %",
        f"within ({level})",
        "hits",
    )
    for name in (*columns, "draws"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in result.points:
        table.add_row(
            point.label,
            f"{_PERCENT * point.mean:.2f}",
            f"{_PERCENT * point.low:.2f} – {_PERCENT * point.high:.2f}",
            f"{_PERCENT * (clean - point.mean):.2f}",
            f"{_PERCENT * point.sd:.2f}",
            f"{_PERCENT * point.quantile_05:.2f}",
            f"{_PERCENT * point.sdc:.2f}",
            f"{_PERCENT * point.sdc_low:.2f} – {_PERCENT * point.sdc_high:.2f}",
            f"{point.mean_hits:,.0f}",
            str(point.num_draws),
        )
    Console(width=max(Console().width, _WIDTH)).print(table)
    chosen = {"only": result.include, "without": result.exclude}
    sites = "".join(f"; {word} {', '.join(names)}" for word, names in chosen.items() if names)
    print_line(
        f"{result.num_images:,} images{sites}; {_PERCENT * clean:.2f} % without faults; intervals are of the mean over "
        "draws, for these images"
    )


def print_differences(rows: "tuple[PairedDifference, ...]", *, title: str, confidence: float) -> None:
    """Shows by how much one network is better than another, one line a rate."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD)
    for name in ("rate", "difference, points", f"within ({confidence:.0%})", "SD", "correlation", "common draws"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.rate:.12g}",
            f"{_PERCENT * row.mean:+.2f}",
            f"{_PERCENT * row.interval.low:+.2f} – {_PERCENT * row.interval.high:+.2f}",
            f"{_PERCENT * row.sd:.2f}",
            "" if row.correlation is None else f"{row.correlation:.2f}",
            str(row.num_draws) if row.num_draws else "none needed",
        )
    Console(width=max(Console().width, _WIDTH)).print(table)
