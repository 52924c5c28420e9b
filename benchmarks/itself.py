"""A build against itself, again and again: none of its cases may be called slower than it is itself.

    python benchmarks/itself.py [--ggml-lib DIR] [--device CPU] [--op OP]… [--runs N] [--minutes M]

Each run is the comparison that `opconform perf --vs-lib` makes with the folder of the build itself, on the op's
smallest known cases; how long they take does not matter here. Exit status 1 for a case that is called slower.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from opconform.harness.draw.known import known_cases
from opconform.harness.model.ops import chosen_ops
from opconform.harness.search.session import targets_of
from opconform.harness.search.settings import Settings
from opconform.harness.search.speed import Subject, compared


def smallest(op: str, count: int) -> list[Subject]:
    """The smallest known cases of an op."""
    (found,) = chosen_ops([op])
    known = sorted((each for each in known_cases().values() if each.case.op == op), key=lambda each: each.case.nbytes)
    return [Subject(each.id, found, each.case) for each in known[:count]]


@click.command()
@click.option("--ggml-lib", default=os.environ.get("OPCONFORM_GGML_LIB", ""), metavar="DIR", help="the build")
@click.option("--device", default="CPU", show_default=True)
@click.option("--op", "ops", multiple=True, default=("acc",), show_default=True)
@click.option("--cases", default=4, show_default=True, help="of each op")
@click.option("--runs", default=50, show_default=True)
@click.option("--minutes", default=60.0, show_default=True, help="begin no other run after so many")
@click.option("--seconds", default=0.05, show_default=True, help="for a case in a sitting")
def main(
    ggml_lib: str, device: str, ops: tuple[str, ...], cases: int, runs: int, minutes: float, seconds: float
) -> None:
    """Print what each run says; exit 1 for an alarm, or where nothing was compared."""
    settings = Settings(options={"ggml_lib": ggml_lib})
    (target,), _ = targets_of([f"ggml:{device}"], settings)
    subjects = [subject for op in ops for subject in smallest(op, cases)]
    table = Table("run", "seconds", "compared", "sittings", "furthest ratio", "slower")
    alarms = total = done = 0
    begun = time.monotonic()
    while done < runs and time.monotonic() - begun < 60 * minutes:
        start = time.monotonic()
        found = [each for each in compared(subjects, target, target, settings, 0.1, seconds) if each.versus]
        done, total = done + 1, total + len(found)
        slower = [each.subject.name for each in found if each.slower]
        alarms += len(slower)
        intervals = [each.versus.interval for each in found if each.versus]
        furthest = max((interval.middle for interval in intervals), default=0.0)
        sittings = max((interval.count for interval in intervals), default=0)
        took = f"{time.monotonic() - start:.1f}"
        table.add_row(
            *(str(done), took, str(len(found)), str(sittings), f"{furthest:.3f}", ", ".join(slower) or "none")
        )
    Console(width=120).print(table)
    print(
        f"{done} runs, {total} comparisons of {target.label} ({target.build.name}) with itself: {alarms} called slower"
    )
    sys.exit(1 if alarms or not total else 0)


if __name__ == "__main__":
    main()
