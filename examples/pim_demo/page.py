"""The page's section on crossbars: designs side by side, the front, where time and energy go."""

import io
from dataclasses import dataclass

from frame import Section, cards, data_url, table, text
from matplotlib.figure import Figure

from sparing.pim import HardwareReport, MatchedDesign
from sparing.pim.pictures import draw_designs, draw_report

NETWORK = "ResNet-50"
HEAD = ["", "crossbars", "fewer", "bits × epitome", "ms", "mJ", "mm²"]
_MILLI, _MICRO = 1e3, 1e6


@dataclass(frozen=True)
class Found:
    """What the demo found.

    Attributes:
        reports: of the designs, by name; all modelled.
        errors: their error proxies.
        report_s: what one report took; measured.
        matched: the search's answer.
        front: (crossbars, error proxy) of the exact front.
    """

    reports: dict[str, HardwareReport]
    errors: dict[str, float]
    report_s: float
    matched: MatchedDesign
    front: list[tuple[float, float]]

    @property
    def chip(self) -> str:
        """The chip and its crossbars."""
        one = self.reports["dense"]
        return f"{one.hardware}, crossbars of {one.crossbar}"


def rows(found: Found) -> list[list[str]]:
    """A row for each design."""
    return [
        [
            name,
            f"{report.num_crossbars:,}",
            f"{report.ratio.total:.2f}",
            f"{report.ratio.bits:.0f} × {report.ratio.epitome:.2f}",
            f"{report.design.latency_s * _MILLI:.2f}",
            f"{report.design.energy_j * _MILLI:.2f}",
            f"{report.design.area_m2 * _MICRO:.0f}",
        ]
        for name, report in found.reports.items()
    ]


def section(found: Found) -> Section:
    """Makes the section."""
    designed, uniform, matched = found.reports["designed"], found.reports["uniform epitomes"], found.matched
    ratio = designed.ratio
    numbers = {
        "times fewer crossbars than the dense network in 32 bits (counted)": f"{ratio.total:.2f}",
        f"of it by bits ({ratio.epitome:.2f} by epitomes)": f"{ratio.bits:.0f}",
        "of the uniform design's energy (modelled)": f"{designed.design.energy_j / uniform.design.energy_j:.0%}",
        "above the exact optimum: the search's error proxy": f"{matched.gap:.2%}",
        "milliseconds for a hardware report (measured)": f"{found.report_s * _MILLI:.0f}",
    }
    points = {name: (float(report.num_crossbars), found.errors[name]) for name, report in found.reports.items()}
    front = draw_designs(found.front, points, title=f"{NETWORK}: what crossbars buy (error proxy, nothing trained)")
    return Section(
        "Convolutions on fewer crossbars",
        f"""
<p>A {NETWORK} for ten classes on {text(found.chip)}. Epitomes are small stored tensors from which a convolution's
weights are gathered; the search chooses their sizes layer by layer. Everything here is counted or modelled: no network
was trained, and the error proxy is no accuracy.</p>
{cards(numbers)}
<h2>Designs: latency of an image in the pipeline, energy, area</h2>{table(HEAD, rows(found))}
<h2>What crossbars buy</h2>{_picture(front, "Crossbars against error proxy")}
<h2>Where time, energy and area go, as designed</h2>
{_picture(draw_report(designed, title=NETWORK), "Time, energy and area by component and layer")}
""",
    )


def _picture(figure: Figure, words: str) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return f"<figure><img alt='{text(words)}' src='{data_url('image/png', out.getvalue())}'></figure>"
