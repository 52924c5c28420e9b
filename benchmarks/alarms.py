"""False alarms: right implementations that have nothing to do with each other, on drawn cases; none may be blamed.

    python benchmarks/alarms.py [--op OP]… [--cases N]

Each implementation is judged by the numerics that its device would declare. Where an op demands a way of computing
(substitution, token by token, sums of their own terms), those that compute in another way declare it.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import independent
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.ops import op_names
from opconform.harness.run.backend import Backend
from tests.judge import Bench, drawn_cases
from tests.kernels import attention, delta_odd, mla, odd, product_odd, recurrences, row_odd, small_odd
from tests.kernels.formula_rows import by_formula, right_kernels

_SUMS = ("cumsum", "sum_rows", "ssm_conv", "l2_norm")
MAX_BYTES = 1 << 16
PART = 500  #: cases drawn at a time


@dataclass(frozen=True)
class Implementation:
    """A right kernel for some ops, and what its device promises; a slow one computes every `each`-th case."""

    kernel: type[Backend]
    ops: tuple[str, ...]
    numerics: Numerics = EXACT
    each: int = 1

    @property
    def name(self) -> str:
        """Its module and class."""
        return f"{self.kernel.__module__.rpartition('.')[2]}.{self.kernel.__name__}"


_MLA: tuple[tuple[type[mla.Mla], Numerics], ...] = (
    (mla.Mla, EXACT),
    (mla.Blas, EXACT),
    (mla.Concatenated, EXACT),
    (mla.Pairwise, EXACT),
    (mla.Fused, EXACT),
    (mla.ScaledQuery, EXACT),
    (mla.Base2, EXACT),
    (mla.Float64, EXACT),
    (mla.Online, EXACT),
    (mla.Online32, EXACT),
    (mla.Backwards, EXACT),
    (mla.LooseExponentials, Numerics(exp_ulps_per_unit=2.0)),
    (mla.NarrowSums, Numerics(narrow_operands=True, narrow_sums=True)),
    (independent.TorchAttention, EXACT),
)

IMPLEMENTATIONS: tuple[Implementation, ...] = (
    Implementation(independent.Lapack, ("solve_tri",)),
    Implementation(independent.Blas, _SUMS),
    Implementation(independent.NumpyWays, _SUMS),
    Implementation(independent.Torch, (*_SUMS, "solve_tri", "add", "mul", "exp", "silu", "norm")),
    *(Implementation(each.kernel, each.ops, each.numerics) for each in (*odd.ODD, *small_odd.SMALL_ODD)),
    *(Implementation(each.kernel, each.ops, each.numerics) for each in row_odd.ROW_ODD),
    *(Implementation(each.kernel, each.ops, each.numerics, each.each) for each in delta_odd.ODD),
    *(Implementation(kernel, ("mla_absorbed",), numerics) for kernel, numerics in _MLA),
    *(Implementation(kernel, product_odd.OPS) for kernel in product_odd.RIGHT),
    *(Implementation(kernel, by_formula(), numerics) for kernel, numerics in right_kernels().items()),
    *(Implementation(kernel, ("soft_max", "flash_attn_ext")) for kernel in attention.RIGHT),
    *(Implementation(kernel, recurrences.OPS) for kernel in (recurrences.Recurrence, recurrences.AddsBackwards)),
)


@dataclass
class Found:
    """What came of one op. nearest: the error nearest to its bound, as a part of it, and whose it is."""

    cases: int = 0
    runs: int = 0
    alarms: Counter[str] = field(default_factory=Counter)
    nearest: float = 0.0
    whose: str = ""


def judged(op: str, cases: int) -> Found:
    """Every implementation of an op on its drawn cases."""
    chosen = [(each, each.kernel()) for each in IMPLEMENTATIONS if op in each.ops]  # type: ignore[call-arg]
    found = Found()
    for number, bench in enumerate(benches(op, cases)):
        found.cases += 1
        for each, kernel in chosen:
            if number % each.each:
                continue
            verdict = bench.verdict(kernel, each.numerics)
            found.runs += 1
            if verdict.failed:
                found.alarms[each.name] += 1
                if found.alarms[each.name] == 1:
                    print(f"{each.name}: {bench.case}: {verdict.findings[0].detail}", file=sys.stderr)
            for comparison in verdict.comparisons:
                limited = (comparison.bound > 0) & np.isfinite(comparison.bound) & np.isfinite(comparison.error)
                if limited.any():
                    part = float((comparison.error[limited] / comparison.bound[limited]).max())
                    if part > found.nearest:
                        found.nearest, found.whose = part, each.name
    return found


def benches(op: str, cases: int) -> Iterator[Bench]:
    """Drawn cases, a part at a time: `drawn_cases` keeps what it has drawn."""
    for number, start in enumerate(range(0, cases, PART)):
        for case in drawn_cases(op, min(PART, cases - start), MAX_BYTES, number):
            yield Bench(case)


@click.command()
@click.option("--op", "ops", multiple=True, type=click.Choice(op_names()), help="default: every op that somebody has")
@click.option("--cases", default=10_000, show_default=True, help="drawn cases per op")
def main(ops: tuple[str, ...], cases: int) -> None:
    """Print the table; exit 1 for an alarm."""
    table = Table("op", "implementations", "cases", "judged runs", "alarms", "nearest error / bound", "seconds")
    alarms = 0
    for op in ops or [name for name in op_names() if any(name in each.ops for each in IMPLEMENTATIONS)]:
        start = time.monotonic()
        found = judged(op, cases)
        number = len({each.name for each in IMPLEMENTATIONS if op in each.ops})
        nearest = f"{found.nearest:.3f} ({found.whose})"
        seconds = f"{time.monotonic() - start:.0f}"
        total = found.alarms.total()
        table.add_row(op, str(number), str(found.cases), str(found.runs), str(total), nearest, seconds)
        alarms += total
    Console(width=160).print(table)
    sys.exit(1 if alarms else 0)


if __name__ == "__main__":
    main()
