"""Known cases that pin nothing, and drawn ones that say nothing.

    python benchmarks/vacuous.py [--op OP]… [--cases N] [--max-bytes N]

A known case is *weak* where zeros, a copy of an input, an output of which only a tile is right, or an input of which
only a tile counts passes it (`opconform.harness.judge.vacuous`). A drawn case is *vacuous* where zeros or a copied
input pass it, where every element is free, or where it has none. The search gives such a case other values before it
runs: the table has how many are vacuous as they are first drawn, and how many of those that the search runs. Exit
status 1 for a weak known case, and for an op of which more than `MOST` of what is run is vacuous.
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
from opconform.harness.run.process import devices_of
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.result import Tally
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.judge import Bench, drawn_cases
from tests.unit.test_known_strength import OF_NOTHING, has_empty

MOST = 0.02  #: the share of cases that the search runs that may say nothing
MAX_BYTES = 1 << 16  #: of a drawn case
RIGHT = f"{Path(__file__).parent / 'right.py'}:Right"


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
    """How many cases say nothing as they are first drawn, by the reason; "" for those that say something."""
    found: Counter[str] = Counter()
    for case in drawn_cases(op, cases, MAX_BYTES):
        bench = Bench(case)
        found[vacuous(bench.op, case, bench.values, bench.expected(), EXACT)] += 1
    return found


def searched(op: str, cases: int) -> Tally:
    """What the search counts that runs so many cases on a device that is always right."""
    target = Target(RIGHT, devices_of(RIGHT, {})[0], {})
    settings = Settings(examples=cases, max_bytes=MAX_BYTES)
    with Runner(target, max_bytes=MAX_BYTES, isolated=False) as runner:
        result = Search(ops()[op], runner, settings).run()
    if result.failure is not None:
        raise RuntimeError(f"the reference itself is blamed: {result.failure.case}")
    return result.tally


@click.command()
@click.option("--op", "chosen", multiple=True, type=click.Choice(op_names()), help="default: every op")
@click.option("--cases", default=1000, show_default=True, help="drawn cases per op")
@click.option("--max-bytes", default=1 << 24, show_default=True, help="known cases above this are left out")
def main(chosen: tuple[str, ...], cases: int, max_bytes: int) -> None:
    """Print the table; exit 1 for a weak known case and for too many vacuous ones."""
    table = Table(
        "op", "known cases", "weak", "run", "vacuous", "free elements", "at first", "empty", "free", "zeros", "a copy"
    )
    all_weak: dict[str, str] = {}
    above = False
    for op in chosen or op_names():
        looked, found = weak(op, max_bytes)
        all_weak |= found
        tally, said = searched(op, cases), drawn(op, cases)
        share = tally.vacuous / max(tally.executed + tally.vacuous, 1)
        above |= share > MOST
        kinds = [
            said["it has no element"],
            said["nothing can be demanded of any element"],
            said["an output of zeros passes too"],
            sum(count for reason, count in said.items() if reason.startswith("a copy")),
        ]
        first = [f"{count / max(said.total(), 1):.1%}" for count in (sum(kinds), *kinds)]
        mark, warning = " !" if share > MOST else "", " !" if tally.much_free else ""
        run = (str(tally.executed), f"{share:.1%}{mark}", f"{tally.free_share:.1%}{warning}")
        table.add_row(op, str(looked), str(len(found)), *run, *first)
    console = Console(width=140)
    console.print(table)
    for name, reason in all_weak.items():
        console.print(f"{name}: {reason}")
    sys.exit(1 if all_weak or above else 0)


if __name__ == "__main__":
    main()
