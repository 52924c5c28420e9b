"""What share of the trait pairs of each op the search covers.

    python benchmarks/pairs.py [--backend X] [--ggml-lib DIR] [--op OP]… [--cases N]

Two traits of a case are a pair: a type and a layout, a shape and a recipe. The search counts those that its cases have
beside those that they could have, and draws towards the rest. By default nothing runs: the device would take every case
and be right, and only which of them say nothing has to be computed. Exit status 1 where the search covers less than
`LEAST` of the pairs of some op.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.op import Op
from opconform.harness.model.ops import op_names, ops
from opconform.harness.run.runner import Ready, Runner
from opconform.harness.search.search import Search
from opconform.harness.search.session import targets_of
from opconform.harness.search.settings import Settings

LEAST = 0.95
RIGHT = f"{Path(__file__).parent / 'right.py'}:Right"


class Unrun(Runner):
    """Answers what a device would that is right and takes every case, without one."""

    def verdicts(
        self,
        op: Op,
        cases: Iterable[Case | Ready],
        *,
        meanwhile: Callable[[], None] = lambda: None,
        **_: Any,
    ) -> list[Verdict]:
        """A pass for each case."""
        meanwhile()
        given = [(each.case, each.vacuous) if isinstance(each, Ready) else (each, "") for each in cases]
        return [Verdict(case, vacuous=said) for case, said in given]


def alone(op: Op) -> Op:
    """The op without the relations between runs, of which there are none."""
    return replace(op, composite=replace(op.composite, metamorphic=()))


@click.command()
@click.option("--backend", metavar="X", help="a device, on which the cases run; default: none")
@click.option("--ggml-lib", metavar="DIR", help="a directory with libggml")
@click.option("--op", "chosen", multiple=True, type=click.Choice(op_names()), help="default: every op")
@click.option("--cases", default=Settings().examples, show_default=True, help="cases per op: the default profile's")
def main(backend: str | None, ggml_lib: str | None, chosen: tuple[str, ...], cases: int) -> None:
    """Print the table; exit 1 for an op below the share."""
    settings = Settings(examples=cases, options={"ggml_lib": ggml_lib} if ggml_lib else {})
    targets, missing = targets_of([backend or RIGHT], settings)
    if missing:
        sys.exit(f"{missing[0].spec} is not available: {missing[0].reason}; {missing[0].remedy}")
    table = Table("device", "op", "cases", "trait pairs", "covered", "seconds")
    below = False
    for target in targets:
        for op in chosen or op_names():
            start = time.monotonic()
            with (Runner if backend else Unrun)(target, max_bytes=settings.max_bytes) as runner:
                result = Search(ops()[op] if backend else alone(ops()[op]), runner, settings).run()
            tally, covered = result.tally, result.coverage
            if not tally.executed:
                continue
            few = covered.share < LEAST
            below |= few
            share, seconds = f"{covered.share:.1%}{' !' if few else ''}", f"{time.monotonic() - start:.0f}"
            device = target.label if backend else "none"
            table.add_row(device, op, str(tally.executed), f"{covered.possible:,}", share, seconds)
    Console(width=120).print(table)
    sys.exit(1 if below else 0)


if __name__ == "__main__":
    main()
