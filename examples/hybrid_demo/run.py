"""Hybrid retrieval at work: builds an index over text that is on this machine, asks it questions, measures it."""

from pathlib import Path

from frame import Section
from rich.table import Table
from rich.text import Text
from terminal import bars, console, step

from hybrid_demo.measure import TARGET_RECALL, Curve, Vectors, compare
from hybrid_demo.page import section, short
from hybrid_demo.passages import gather
from hybrid_demo.vectors import CachedEncoder
from sparing.hybrid.text import TextIndex

NUM_DOCUMENTS, NUM_QUESTIONS = 10_000, 1_000
QUESTIONS = (
    "turn a dictionary into a json string",
    "wait until a thread has finished",
    "eigenvalues of a symmetric matrix",
    "handler for SIGCHLD",
    "how much free space is on the disk",
    "compare two pieces of text and show what changed",
)
WAYS = {"meaning only": (1.0, 0.0), "words only": (0.0, 1.0), "hybrid": (0.5, 0.5)}


def show_answers(index: TextIndex) -> dict[str, dict[str, list]]:
    """Asks the questions in three ways and shows the answers side by side."""
    answers = {q: {name: index.search(q, k=3, weights=w) for name, w in WAYS.items()} for q in QUESTIONS}
    for question, ways in answers.items():
        table = Table(title=Text(f"“{question}”", style="bold"), title_justify="left", show_lines=True, expand=True)
        for name in ways:
            table.add_column(name, ratio=1, overflow="fold", style="on grey11" if name == "hybrid" else None)
        for row in zip(*ways.values(), strict=True):
            table.add_row(*(Text.assemble((hit.key, "cyan"), "\n", (short(hit)[:90], "dim")) for hit in row))
        console.print(table)
    return answers


def show_curves(ours: Curve, naive: Curve, exact_per_s: float) -> None:
    """Shows recall and speed over the grid of beams."""
    table = Table(title="1 thread, k = 10, against the exact hybrid top 10", title_justify="left")
    for name in ("beam", "recall", "questions a second", "naive: recall", "naive: questions a second"):
        table.add_column(name, justify="right")
    for a, b in zip(ours.points, naive.points, strict=True):
        numbers = f"{a.recall:.3f}", f"{a.queries_per_s:,.0f}", f"{b.recall:.3f}", f"{b.queries_per_s:,.0f}"
        table.add_row(str(a.beam), *numbers)
    console.print(table)
    console.print(f"exact search of everything: {exact_per_s:,.0f} questions a second")


def run(out: Path) -> Section:
    """Shows the system, and returns what the page says about it.

    Args:
        out: the folder for the index and the encoded vectors.
    """
    step("reading docstrings of Python and of installed packages")
    corpus = gather(NUM_DOCUMENTS, NUM_QUESTIONS)
    console.print(f"  {len(corpus.documents):,} passages, {len(corpus.questions):,} further ones become questions")
    step("encoding (MiniLM and BM25) and building one graph")
    encoder = CachedEncoder(out / "demo-vectors")
    with bars() as progress:
        index = TextIndex.build(corpus.documents, out / "demo-index", dense=encoder, sparse="bm25", progress=progress)
    info = index.info
    console.print(
        f"  alignment: one unit of BM25 counts {info.alignment.scale:.4f} (spread of random pairs' scores: dense "
        f"{info.alignment.dense_spread:.3f}, sparse {info.alignment.sparse_spread:.3f})"
    )
    step("asking questions")
    answers = show_answers(index)
    step(f"measuring recall and speed on {len(corpus.questions):,} questions, beside the naive setting")
    sparse = index.contents.encoders.sparse
    texts = [document.text for document in corpus.documents]
    vectors = Vectors(
        encoder.encode_documents(texts),
        sparse.encode_documents(texts),
        encoder.cached_queries(corpus.questions),
        sparse.encode_queries(corpus.questions),
    )
    with bars() as progress:
        ours, naive, exact_per_s = compare(vectors, progress)
    show_curves(ours, naive, exact_per_s)
    speed, naive_speed = (curve.queries_per_s_at(TARGET_RECALL) for curve in (ours, naive))
    ratio = f"{speed / naive_speed:.1f}x" if speed and naive_speed else "not reached"
    default = min(ours.points, key=lambda point: abs(point.beam - index.hybrid.config.beam))
    numbers = {
        "passages": f"{len(index):,}",
        f"of the exact top 10 found at the default beam ({default.beam})": f"{default.recall:.1%}",
        f"questions a second at recall {TARGET_RECALL}": f"{speed:,.0f}" if speed else "not reached",
        "the speed of the naive single graph at that recall": ratio,
        "alignment: one unit of BM25 counts": f"{info.alignment.scale:.4f}",
        "bytes a passage, beside the vectors": f"{info.index.index_bytes_per_item:,.0f}",
    }
    index.close()
    console.print(f"[bold green]hybrid retrieval[/]: {ratio} the naive speed at recall {TARGET_RECALL}")
    return section(numbers, answers, (ours, naive), exact_per_s)
