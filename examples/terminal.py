"""What the demo says on the terminal while it runs."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparing.runs.progress import Progress as Callback

console = Console()


@contextlib.contextmanager
def bars() -> Iterator[Callback]:
    """Progress bars for library callbacks."""
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, int] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield show


def step(text: str) -> None:
    """Says what is done next."""
    console.print(f"[bold cyan]»[/] {text}")
