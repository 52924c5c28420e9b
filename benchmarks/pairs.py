"""What share of the trait pairs of each op the search covers.

    python benchmarks/pairs.py [--backend X] [--ggml-lib DIR] [--op OP]… [--cases N]

Two traits of a case are a pair: a type and a layout, a shape and a recipe. The search counts those that its cases have
beside those that they could have, and draws towards the rest. By default it runs here on a device that is right by
definition and takes every case. Exit status 1 where it covers less than `LEAST` of the pairs of some op.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from opconform.harness.model.ops import op_names, ops
from opconform.harness.run.runner import Runner
from opconform.harness.search.search import Search
from opconform.harness.search.session import targets_of
from opconform.harness.search.settings import Settings

LEAST = 0.95
RIGHT = f"{Path(__file__).parent / 'right.py'}:Right"


@click.command()
@click.option("--backend", default=RIGHT, metavar="X", help="a device; default: the references themselves")
@click.option("--ggml-lib", metavar="DIR", help="a directory with libggml")
@click.option("--op", "chosen", multiple=True, type=click.Choice(op_names()), help="default: every op")
@click.option("--cases", default=Settings().examples, show_default=True, help="cases per op: the default profile's")
def main(backend: str, ggml_lib: str | None, chosen: tuple[str, ...], cases: int) -> None:
    """Print the table; exit 1 for an op below the share."""
    settings = Settings(examples=cases, options={"ggml_lib": ggml_lib} if ggml_lib else {})
    targets, missing = targets_of([backend], settings)
    if missing:
        sys.exit(f"{missing[0].spec} is not available: {missing[0].reason}; {missing[0].remedy}")
    table = Table("device", "op", "cases", "trait pairs", "covered")
    below = False
    for target in targets:
        for op in chosen or op_names():
            with Runner(target, max_bytes=settings.max_bytes) as runner:
                result = Search(ops()[op], runner, settings).run()
            tally, covered = result.tally, result.coverage
            if not tally.executed:
                continue
            few = covered.share < LEAST
            below |= few
            share = f"{covered.share:.1%}{' !' if few else ''}"
            table.add_row(target.label, op, str(tally.executed), f"{covered.possible:,}", share)
    Console(width=120).print(table)
    sys.exit(1 if below else 0)


if __name__ == "__main__":
    main()
