"""Judged cases per second for every backend and op, and where the time goes.

    python benchmarks/throughput.py [--backend X]… [--op OP]… [--ggml-lib DIR] [--cases N] [--small]

The shares are of the wall time of the search in this process and its worker together: generation (Hypothesis and the
variants), values (inputs drawn and laid out), transport (to the worker and back), backend, reference, judging. One run
gives ratios that can be compared; absolute rates are this machine's. Cases that a device is known to abort at are not
tried: each costs a process, which is no part of a rate.
"""

from __future__ import annotations

import time
from dataclasses import astuple, fields, replace

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from opconform.harness.model.op import Op
from opconform.harness.model.ops import chosen_ops
from opconform.harness.run.runner import Clock, Runner
from opconform.harness.run.target import Target
from opconform.harness.search.search import Search
from opconform.harness.search.session import targets_of
from opconform.harness.search.settings import Settings

SMALL_BYTES = 16 << 10  #: --small: tensors up to 1 KiB, where the harness's own cost shows


@click.command()
@click.option("--backend", multiple=True, metavar="X", help="a backend or device; all that are available by default")
@click.option("--op", multiple=True, metavar="OP", help="only these ops")
@click.option("--ggml-lib", metavar="DIR", help="a directory with libggml")
@click.option("--cases", type=click.IntRange(1), default=2000, show_default=True, help="cases per backend and op")
@click.option("--small", is_flag=True, help="tensors of at most 1 KiB")
def main(backend: tuple[str, ...], op: tuple[str, ...], ggml_lib: str | None, cases: int, small: bool) -> None:
    """Print the table."""
    options = {"ggml_lib": ggml_lib} if ggml_lib else {}
    settings = Settings(examples=cases, options=options, aborts=False)
    if small:
        settings = replace(settings, max_bytes=SMALL_BYTES)
    targets, missing = targets_of(backend, settings)
    for absent in missing:
        click.echo(f"{absent.spec} is not available: {absent.why}", err=True)
    stages = [field.name for field in fields(Clock)]
    table = Table("device", "op", box=SIMPLE_HEAD)
    for title in ("cases/s", "generation", *stages):
        table.add_column(title, justify="right")
    for target in targets:
        for chosen in chosen_ops(op):
            table.add_row(target.label, chosen.name, *_measure(chosen, target, settings))
    Console(width=120).print(table)


def _measure(op: Op, target: Target, settings: Settings) -> list[str]:
    """The row of one op on one device, after a warm-up that compiles its kernels."""
    with Runner(target, max_bytes=settings.max_bytes) as runner:
        Search(op, runner, replace(settings, examples=16)).run()
        runner.clock = Clock()
        start = time.perf_counter()
        result = Search(op, runner, settings).run()
        wall = time.perf_counter() - start
    judged = result.tally.executed + result.tally.vacuous  # what a case that says nothing costs counts too
    if not judged:
        return ["unsupported"]
    stages = astuple(runner.clock)
    shares = [(wall - sum(stages)) / wall, *(stage / wall for stage in stages)]
    return [f"{judged / wall:.0f}", *(f"{share:.0%}" for share in shares)]


if __name__ == "__main__":
    main()
