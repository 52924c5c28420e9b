"""Known cases that pin nothing, and drawn ones that say nothing.

    python benchmarks/vacuous.py [--op OP]… [--cases N] [--max-bytes N]

A known case is *weak* where zeros, a copy of an input, an output of which only a tile is right, or an input of which
only a tile counts passes it (`opconform.harness.judge.vacuous`). A drawn case is *vacuous* where zeros or a copied
input pass it, where every element is free, or where it has none. Exit status 1 for a weak known case.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from opconform.harness.draw.known import known_cases
from opconform.harness.judge.vacuous import vacuous, weaknesses
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.ops import op_names, ops
from opconform.harness.model.values import inputs_of
from tests.judge import Bench, drawn_cases
from tests.unit.test_known_strength import OF_NOTHING, has_empty

MOST = 0.02  #: the share of drawn cases that may say nothing


def weak(op: str, max_bytes: int) -> tuple[int, dict[str, str]]:
    """How many known cases were looked at, and the weak ones with the first reason."""
    looked, found = 0, {}
    for name, known in known_cases().items():
        case = known.case
        if case.op == op and case.nbytes <= max_bytes and not has_empty(case) and name not in OF_NOTHING:
            looked += 1
            reason = next(weaknesses(ops()[op], case, inputs_of(case, ops()[op])), None)
            if reason is not None:
                found[name] = reason
    return looked, found


def drawn(op: str, cases: int) -> Counter[str]:
    """How many drawn cases say nothing, by the reason; "" for those that say something."""
    found: Counter[str] = Counter()
    for case in drawn_cases(op, cases, 1 << 16):
        bench = Bench(case)
        found[vacuous(bench.op, case, bench.values, bench.expected(), EXACT)] += 1
    return found


@click.command()
@click.option("--op", "chosen", multiple=True, type=click.Choice(op_names()), help="default: every op")
@click.option("--cases", default=2000, show_default=True, help="drawn cases per op")
@click.option("--max-bytes", default=1 << 24, show_default=True, help="known cases above this are left out")
def main(chosen: tuple[str, ...], cases: int, max_bytes: int) -> None:
    """Print the table; exit 1 for a weak known case."""
    table = Table("op", "known cases", "weak", "drawn", "vacuous", "of them: no element", "free", "zeros", "a copy")
    all_weak: dict[str, str] = {}
    for op in chosen or op_names():
        looked, found = weak(op, max_bytes)
        all_weak |= found
        said = drawn(op, cases)
        total = max(said.total(), 1)
        kinds = [
            said["it has no element"],
            said["nothing can be demanded of any element"],
            said["an output of zeros passes too"],
            sum(count for reason, count in said.items() if reason.startswith("a copy")),
        ]
        share = sum(kinds) / total
        shares = [f"{share:.1%}{' !' if share > MOST else ''}", *(f"{kind / total:.1%}" for kind in kinds)]
        table.add_row(op, str(looked), str(len(found)), str(total), *shares)
    console = Console(width=140)
    console.print(table)
    for name, reason in all_weak.items():
        console.print(f"{name}: {reason}")
    sys.exit(1 if all_weak else 0)


if __name__ == "__main__":
    main()
