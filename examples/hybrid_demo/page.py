"""The page's section on hybrid retrieval: the questions and their answers, and recall against speed."""

import io
from collections.abc import Mapping, Sequence

from frame import Section, cards, data_url, table, text

from hybrid_demo.measure import TARGET_RECALL, Curve
from sparing.hybrid.text_search import Hit

ANSWER_CHARS = 150


def picture(curves: Sequence[Curve], exact_per_s: float) -> str:
    """Draws recall against questions a second; returns a data URL of an SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "sparing", "font.size": 11})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, axes = plt.subplots(figsize=(8.6, 4.4), layout="constrained")
    for curve, colour, marker in zip(curves, ("#0b6e99", "#c96a2b"), ("o", "s"), strict=True):
        recall, speed = [p.recall for p in curve.points], [p.queries_per_s for p in curve.points]
        axes.plot(recall, speed, color=colour, marker=marker, ms=5, lw=2, label=curve.name)
    axes.axhline(exact_per_s, color="#8895a5", lw=1.2, ls="--", label="exact search of everything")
    axes.axvline(TARGET_RECALL, color="#dfe5ec", lw=1.2, zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("share of the exact top 10 that is found")
    axes.set_ylabel("questions a second, 1 thread")
    axes.grid(color="#eef2f6", which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    return data_url("image/svg+xml", out.getvalue())


def section(
    numbers: Mapping[str, str],
    answers: Mapping[str, Mapping[str, Sequence[Hit]]],
    curves: Sequence[Curve],
    exact_per_s: float,
) -> Section:
    """Makes the section.

    Args:
        numbers: what it is -> number.
        answers: question -> way of searching -> hits.
        curves: the index and the naive one.
        exact_per_s: questions a second of exact search.
    """
    return Section(
        "Hybrid retrieval, one graph",
        f"""
<p>The docstrings of Python and of installed packages, searched by meaning (MiniLM vectors) and by words (BM25) at once.
All numbers were measured on this machine, in this run.</p>
{cards(numbers)}
<h2>Recall against speed</h2>
<figure><img alt="Recall against questions a second" src="{picture(curves, exact_per_s)}">
<figcaption>Up and to the right is better. Each point is one beam width; median of the repeats, encoding not included.
Naive: the same graph code with float32 vectors, all terms and no stages.</figcaption></figure>
<h2>The same numbers</h2>{_curve_table(curves)}
<h2>Questions and answers</h2>{"".join(_question(q, ways) for q, ways in answers.items())}
""",
    )


def _curve_table(curves: Sequence[Curve]) -> str:
    head = ["beam", *(name for curve in curves for name in (f"{curve.name}: recall", "a second"))]
    rows = (
        [str(points[0].beam), *(cell for p in points for cell in (f"{p.recall:.3f}", f"{p.queries_per_s:,.0f}"))]
        for points in zip(*(curve.points for curve in curves), strict=True)
    )
    return table(head, rows)


def _question(question: str, ways: Mapping[str, Sequence[Hit]]) -> str:
    columns = "".join(
        f"<div class='{'hybrid' if name == 'hybrid' else 'part'}'><h4>{text(name)}</h4><ol>"
        + "".join(
            f"<li><code>{text(hit.key)}</code> {hit.score:.2f}<small>{text(short(hit))}</small></li>" for hit in hits
        )
        + "</ol></div>"
        for name, hits in ways.items()
    )
    return f"<div class='question'><h3>{text(question)}</h3><div class='columns'>{columns}</div></div>"


def short(hit: Hit) -> str:
    """The first words of an answer, without the name that it starts with."""
    words = " ".join(hit.text.split("\n", 1)[-1].split())
    return words if len(words) <= ANSWER_CHARS else words[:ANSWER_CHARS].rsplit(" ", 1)[0] + " ..."
