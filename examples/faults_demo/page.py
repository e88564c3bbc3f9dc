"""The page's section on faults: accuracy before and after fault-tolerant training, and a small search's front."""

import io
from typing import TYPE_CHECKING

from frame import Section, cards, data_url, table, text
from matplotlib.figure import Figure

from faults_demo import search as searching
from faults_demo.search import Searched
from faults_demo.training import CALIBRATION, DRAWS, EPOCHS, SEED, STUCK, Hardened
from sparing.faults import PairedDifference
from sparing.faults.statistics import share_interval
from sparing.nas.pictures import draw_genotype

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparing.faults import CampaignResult

GAIN_HEAD = ["faults", "rate", "plain", "fault-tolerant", "gain, points", "95% interval"]
FRONT_HEAD = ["architecture", "clean", "under faults", "MACs", ""]
_PERCENT = 100
_PLAIN, _TOLERANT, _QUIET = "#8a96a6", "#0b6e99", "#c3ccd6"


def gain(found: PairedDifference) -> str:
    """A gain and its interval, for people."""
    low, high = (f"{_PERCENT * end:+.1f}" for end in (found.interval.low, found.interval.high))
    return f"{_PERCENT * found.mean:+.1f} points (95% interval {low} to {high})"


def verdict(found: Hardened) -> str:
    """What fault-tolerant training brought at the highest rate, in words."""
    one = found.last
    interval = one.interval
    word = "helps" if interval.low > 0 else "harms" if interval.high < 0 else "makes no clear difference"
    return f"{word}: {gain(one)} at the highest rate"


def gain_rows(hardened: list[Hardened]) -> list[list[str]]:
    """A row for each kind of fault and rate."""
    return [
        [
            one.kind.fault.place,
            f"{one.kind.scale * plain.rate:g}{one.kind.unit}",
            f"{plain.mean:.1%}",
            f"{tolerant.mean:.1%}",
            f"{_PERCENT * each.mean:+.1f}",
            f"{_PERCENT * each.interval.low:+.1f} to {_PERCENT * each.interval.high:+.1f}"
            if each.num_draws
            else "no draws",
        ]
        for one in hardened
        for plain, tolerant, each in zip(one.plain.points, one.tolerant.points, one.gains, strict=True)
    ]


def front_rows(found: Searched) -> list[list[str]]:
    """A row for each architecture of the front."""
    return [
        [
            f"number {one.number}",
            f"{one.found.clean_accuracy:.1%}",
            f"{one.found.faulty_accuracy:.1%}",
            f"{one.macs:,}",
            "chosen" if one is found.chosen else "",
        ]
        for one in found.front
    ]


def on_test(found: Searched) -> str:
    """How the chosen network does on images and draws that chose nothing."""
    interval = share_interval(found.test.faulty_accuracies)
    return (
        f"{found.test.clean_accuracy:.1%} without faults, {found.test.faulty_accuracy:.1%} under them "
        f"(95% interval {interval.low:.1%} to {interval.high:.1%})"
    )


def section(hardened: list[Hardened], found: Searched) -> Section:
    """Makes the section."""
    numbers = {
        f"points gained by fault-tolerant training, {_at(one)}; 95% interval "
        f"{_PERCENT * one.last.interval.low:+.1f} to {_PERCENT * one.last.interval.high:+.1f}": (
            f"{_PERCENT * one.last.mean:+.1f}"
        )
        for one in hardened
    }
    numbers["points of clean accuracy for that"] = " and ".join(
        f"{_PERCENT * one.gains[0].mean:+.1f}" for one in hardened
    )
    numbers[f"architectures tried, {len(found.front)} of them on the front"] = str(len(found.candidates))
    words = "; ".join(f"{_at(one)} from {_ends(one)}, a gain of {gain(one.last)}" for one in hardened)
    first = hardened[0]
    slower = " and ".join(f"{one.step_s[1] / one.step_s[0]:.1f}" for one in hardened)
    return Section(
        "Networks that bear faults",
        f"""
<p>A small network reads handwritten digits (scikit-learn's, 8×8 pixels, ten classes; far easier than CIFAR-10) with
8-bit weights and features. The faults are simulated; accuracy is measured, on {first.plain.num_images} test images.
No device was involved.</p>
{cards(numbers)}
<h2>Accuracy under faults, before fault-tolerant training and after</h2>
{_picture(_curves(hardened), "Accuracy against the rate of faults, two networks, two kinds of faults")}
<p>Mean accuracy at {text(words)}. One plain network, and for each kind of fault another one from the same first
weights, in the same order of images and the same {EPOCHS} epochs; each of its steps adds the gradients under one draw
of faults, at the highest rate in the picture, and took {slower} times as long as a plain one (measured).</p>
<p>Recalibrated on the chip: stuck bits stay, so the means and variances of normalizations can be measured anew behind
them, on {CALIBRATION} training images without their labels and without training. That brings, at
{text(_at(first))}, {text(recalibrated(first))}.</p>
{table(GAIN_HEAD, gain_rows(hardened))}
<p>Error bars and intervals: 95% intervals of the mean over {DRAWS} draws of faults, for these test images and one
training each. Both networks meet the same draws, and the interval of the gain is that of their paired differences.
Another seed of the training gives other numbers: seeds 0, 1 and 2 gained 8 to 21 points at the highest rate of stuck
bits and 23 to 28 at that of upset multiply-adds when this page was made up; shown is seed {SEED}.</p>
<p>Stuck: a weight is stored in 14 cells of one bit, seven for each sign; each cell is stuck with the rate given,
{STUCK.share_high:.0%} of them at 1, the others at 0. A draw is a chip. Upset: each multiply-add of a convolution goes
wrong with probability p<sub>m</sub>, drawn anew for each image, which moves the output by plus or minus one to 128 of
its 8-bit steps.</p>
<h2>A tiny architecture search</h2>
{_picture(_front(found), "Clean accuracy and accuracy under faults against multiply-adds")}
<p>{len(found.candidates)} networks of {searching.CELLS} cells, bred by evolution with three aims at once: clean
accuracy, accuracy under faults ({searching.FAULT.rate:.0%} of bits stuck, {searching.DRAWS} draws) and MACs
(multiply-adds for one image; counted). Each was trained for itself, plainly and only for {searching.EPOCHS} epochs, and
judged on {found.num_held_out} training images that were held out. For work of one's own,
<code>sparing nas search --mode halving</code> trains the better ones for longer; its default trains one set of weights
for all architectures instead, which wants an accelerator. So few networks are a sample of the space: differences of a
few points may be chance.</p>
{table(FRONT_HEAD, front_rows(found))}
<p>Chosen: the best mean of both accuracies. On the test images, and under {searching.NEW_DRAWS} draws of faults that
chose nothing: {text(on_test(found))}. The best of several looks better where it was chosen than it is.</p>
<h2>The chosen cells</h2>
{_picture(draw_genotype(found.chosen.genotype), "The normal cell and the reduction cell as graphs", dpi=70)}
<p>An arrow is an operation from one node to another: sep and dil are separable and dilated convolutions, rcb a dense
one with a norm, conv1 a bare 1×1 convolution, max and avg pools, the number the kernel's side; none gives zeros.</p>
""",
    )


def _at(one: Hardened) -> str:
    kind = one.kind
    return f"{kind.scale * one.last.rate:g}{kind.unit} {kind.what}"


def recalibrated(one: Hardened) -> str:
    """What normalizations measured on the chip bring at the highest rate, in words; empty where faults do not last."""
    if not one.recalibrated:
        return ""
    plain, tolerant = (result.points[-1].mean for result in one.recalibrated)
    return f"the plain network to {plain:.1%}, and the fault-tolerant one to {tolerant:.1%}"


def _ends(one: Hardened) -> str:
    return f"{one.plain.points[-1].mean:.1%} to {one.tolerant.points[-1].mean:.1%}"


def _curves(hardened: list[Hardened]) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(hardened), sharey=True), hardened, strict=True):
        _draw(axes, one, one.plain, "plain training", _PLAIN, "s--")
        _draw(axes, one, one.tolerant, "fault-tolerant training", _TOLERANT, "o-")
        colors = (_PLAIN, _TOLERANT)
        for color, name, result in zip(colors, ("plain", "fault-tolerant"), one.recalibrated, strict=False):
            _draw(axes, one, result, f"{name}, recalibrated on the chip", color, "^:")
        axes.set(title=one.kind.title, xlabel=one.kind.axis, ylim=(0, 102))
        axes.grid(alpha=0.3)
        axes.label_outer()
        axes.legend(loc="lower left")
    figure.axes[0].set_ylabel("accuracy on test images, %")
    return figure


def _draw(axes: "Axes", one: Hardened, result: "CampaignResult", label: str, color: str, style: str) -> None:
    points = result.points
    ends = [[_PERCENT * (p.mean - p.low) for p in points], [_PERCENT * (p.high - p.mean) for p in points]]
    axes.errorbar(
        [one.kind.scale * p.rate for p in points],
        [_PERCENT * p.mean for p in points],
        yerr=ends,
        fmt=style,
        color=color,
        capsize=4,
        label=label,
    )


def _front(found: Searched) -> Figure:
    """Both accuracies against MACs: the front's architectures filled and numbered, the others pale."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, label, value in zip(
        panels,
        ("clean accuracy, %", f"accuracy under {searching.FAULT.rate:.0%} stuck bits, %"),
        (lambda one: one.found.clean_accuracy, lambda one: one.found.faulty_accuracy),
        strict=True,
    ):
        others = [one for one in found.candidates if one not in found.front]
        for group, color, name in ((others, _QUIET, "beaten by another"), (found.front, _TOLERANT, "front")):
            axes.scatter(
                [one.macs / 1e3 for one in group], [_PERCENT * value(one) for one in group], 45, color, label=name
            )
        for one in found.front:
            place = one.macs / 1e3, _PERCENT * value(one)
            axes.annotate(str(one.number), place, (5, 5), textcoords="offset points", fontsize=9)
        place = found.chosen.macs / 1e3, _PERCENT * value(found.chosen)
        axes.scatter(*place, 190, facecolors="none", edgecolors="#c4572b", linewidths=2, label="chosen")
        axes.set(xlabel="thousand MACs an image (counted)", ylabel=label)
        axes.margins(0.12)
        axes.grid(alpha=0.3)
    panels[0].legend(loc="best", fontsize=9)
    return figure


def _picture(figure: Figure, words: str, *, dpi: int = 90) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi)
    return f"<figure><img alt='{text(words)}' src='{data_url('image/png', out.getvalue())}'></figure>"
