"""`make demo`: shows the systems at work on this machine, measures them, and writes a page.

Everything is made in `out/`; nothing is downloaded at run time. The second run takes the encoded vectors from there.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

# The models come from installed packages: nothing may look for them, or for anything else, on the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from frame import write_page
from terminal import console

from sparing.runs.record import run_record

OUT = Path(__file__).resolve().parent.parent / "out"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description="Shows the systems at work on this machine.")
    parser.add_argument("--only", choices=("hybrid", "var", "pim", "faults"), help="one system (default: all)")
    parser.add_argument("--model", default="cifar10", metavar="DIR", help="draw with this saved VARPipeline instead")
    chosen = parser.parse_args(arguments)
    begin, sections = time.perf_counter(), []
    OUT.mkdir(exist_ok=True)
    if chosen.only in (None, "hybrid"):
        from hybrid_demo.run import run as run_hybrid

        sections.append(run_hybrid(OUT))
    if chosen.only in (None, "var"):
        from var_demo.run import run as run_var

        sections.append(run_var(chosen.model))
    if chosen.only in (None, "pim"):
        from pim_demo.run import run as run_pim

        sections.append(run_pim())
    if chosen.only in (None, "faults"):
        from faults_demo.run import run as run_faults

        sections.append(run_faults())
    command = "make demo" if chosen.only is None else f"python examples/demo.py --only {chosen.only}"
    record = run_record(command=command, seed=0, threads=1, data="installed packages")
    write_page(OUT / "demo.html", sections, record)
    console.print(f"[bold green]done[/] in {time.perf_counter() - begin:.0f} s")
    console.print("open [bold]out/demo.html[/] in a browser")


if __name__ == "__main__":
    main()
