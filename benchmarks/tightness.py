"""How tight the bounds are: bound / error of a plain float32 kernel, for each op that computes.

    python benchmarks/tightness.py [--op OP]… [--cases N]

Of each drawn case the element counts where the error comes nearest to the bound, over all outputs. A ratio below 1
would be a false alarm; a large one hides faults of that size.
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
from opconform.harness.run.backend import Backend
from tests.judge import Bench, drawn_cases
from tests.kernels.correct import Correct
from tests.kernels.delta import Delta
from tests.kernels.mla import Mla

MOVES = ("set", "tri", "diag", "pad", "cpy", "cont")  # judged to the bit
PLAIN: dict[str, type[Backend]] = {"gated_delta_net": Delta, "gated_delta_net_chunk": Delta, "mla_absorbed": Mla}
MAX_BYTES = 1 << 18


def ratios(op: str, count: int) -> Iterator[float]:
    """For each drawn case in which the plain kernel errs at all: the least bound / error of an element."""
    kernel = PLAIN.get(op, Correct)("0", {})
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
@click.option("--op", "ops", multiple=True, type=click.Choice(op_names()), help="default: every op that computes")
@click.option("--cases", default=2000, show_default=True, help="drawn cases per op")
def main(ops: tuple[str, ...], cases: int) -> None:
    """Print the table."""
    table = Table("op", "cases", "median", "1st percentile")
    for op in ops or [name for name in op_names() if name not in MOVES]:
        found = np.array(list(ratios(op, cases)))
        table.add_row(op, str(found.size), f"{np.median(found):.3g}", f"{np.percentile(found, 1):.3g}")
    Console().print(table)


if __name__ == "__main__":
    main()
