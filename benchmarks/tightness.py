"""How tight the bounds are: bound / error of a plain float32 kernel, for each op that computes.

    python benchmarks/tightness.py [--op OP]… [--cases N]

Of each drawn case the element counts where the error comes nearest to the bound, over all outputs. A ratio below 1
would be a false alarm; a large one hides faults of that size. Exit status 1 where the median of an op is above `MOST`.
The ops in which the kernel never errs are listed below the table: they are judged to the bit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from opconform.harness.model.ops import op_names
from tests.judge import Bench, drawn_cases
from tests.kernels.plain import plain

MOST = 30.0
MAX_BYTES = 1 << 18


def ratios(op: str, count: int) -> Iterator[float]:
    """For each drawn case in which the plain kernel errs at all: the least bound / error of an element."""
    kernel = plain(op)("0", {})
    for case in drawn_cases(op, count, MAX_BYTES):
        verdict = Bench(replace(case, keep=None)).verdict(kernel)
        least = [
            float((comparison.bound[judged] / comparison.error[judged]).min())
            for comparison in verdict.comparisons
            for judged in [(comparison.error > 0) & np.isfinite(comparison.bound) & np.isfinite(comparison.got)]
            if judged.any()
        ]
        if least:
            yield min(least)


@click.command()
@click.option("--op", "ops", multiple=True, type=click.Choice(op_names()), help="default: every op")
@click.option("--cases", default=2000, show_default=True, help="drawn cases per op")
def main(ops: tuple[str, ...], cases: int) -> None:
    """Print the table; exit 1 for a median above the limit."""
    table = Table("op", "cases", "median", "1st percentile")
    exact, loose = [], False
    for op in ops or op_names():
        found = np.array(list(ratios(op, cases)))
        if not found.size:
            exact.append(op)
            continue
        median = float(np.median(found))
        loose |= median > MOST
        mark = " !" if median > MOST else ""
        table.add_row(op, str(found.size), f"{median:.3g}{mark}", f"{np.percentile(found, 1):.3g}")
    Console().print(table)
    if exact:
        print(f"judged to the bit: {', '.join(exact)}")
    sys.exit(1 if loose else 0)


if __name__ == "__main__":
    main()
