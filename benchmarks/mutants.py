"""How many faults in the kernels are found: by the search, and in two other ways.

    python benchmarks/mutants.py [--backend opencl|cuda-host] [--op OP]… [--sample N --seed S] [-n PROCESSES]
                                 [--json FILE] [--minutes M] [--list] [--table]

Faults (`faults.py`) are put into the kernels one at a time. Each mutant is judged in four ways: by the cases that the
search draws at the profiles quick and default (known cases are off, and nothing is kept from run to run), and in two
other ways (`peers.py`). A mutant that does not compile is not counted. Its process is its own: a crash and a hang are
kills, as they are in a run.

The search draws the same cases whatever the kernel does, until one fails. So they are recorded once with the right
kernel, which must pass them all, and run again with each mutant.

What has been judged stands in FILE, a line for each mutant, and is not judged again: a run can be stopped, and split.
Mutants that no test can tell from the right kernel stand in equivalents.toml, each with the reason.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.mutation.judging import Bench
from benchmarks.mutation.listing import BACKENDS, all_mutants, equivalents, sample
from benchmarks.mutation.processes import run
from benchmarks.mutation.tables import counted, key_of, read, show
from opconform.backends.kernels.table import KERNELS


@click.command()
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="opencl", show_default=True)
@click.option("--op", "chosen", multiple=True, type=click.Choice(list(KERNELS)), help="default: every op with kernels")
@click.option("--sample", "count", type=click.IntRange(1), metavar="N", help="only N mutants of each op")
@click.option("--seed", default=0, show_default=True, help="of the sample")
@click.option("-n", "processes", type=click.IntRange(1), default=1, show_default=True, help="mutants at a time")
@click.option("--json", "file", type=click.Path(path_type=Path), metavar="FILE", help="where the judged ones stand")
@click.option("--minutes", type=float, help="stop after this time")
@click.option("--list", "only_list", is_flag=True, help="list the mutants, and run nothing")
@click.option("--table", "only_table", is_flag=True, help="the tables of FILE, and run nothing")
def main(
    backend: str,
    chosen: tuple[str, ...],
    count: int | None,
    seed: int,
    processes: int,
    file: Path | None,
    minutes: float | None,
    only_list: bool,
    only_table: bool,
) -> None:
    """Judge mutants of the kernels, and print how many each way kills."""
    until = time.monotonic() + 60 * (minutes if minutes is not None else 60 * 24 * 365)
    records = read(file)
    if only_table:
        show(counted(records), len(records))
        return
    listed, done = equivalents(), {key_of(record) for record in records}
    for op in chosen or KERNELS:
        mutants = sample(all_mutants(op, backend), count, seed)
        if only_list:
            for mutant in mutants:
                why = next((each.why for each in listed if each.covers(backend, asdict(mutant))), "")
                place = f"{mutant.file}:{mutant.number + 1}" if mutant.file else "the host"
                click.echo(f"{op} {place} [{mutant.fault}]{f' equivalent: {why}' if why else ''}")
                click.echo(f"    {mutant.line}\n    {mutant.becomes}")
            continue
        mutants = [mutant for mutant in mutants if (backend, mutant.key) not in done]
        mutants = [mutant for mutant in mutants if not any(each.covers(backend, asdict(mutant)) for each in listed)]
        if not mutants or time.monotonic() > until:
            continue
        bench = Bench.of(op, backend)
        for number, record in enumerate(run(bench, mutants, processes, until), start=1):
            records.append(record)
            if file is not None:
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(f"{json.dumps(record)}\n")
            state = record["default"].split(":")[0] or "SURVIVED"
            click.echo(
                f"{op} {number} of {len(mutants)}: {state} [{record['fault']}] {record['becomes'][:90]}", err=True
            )
    if not only_list:
        show(counted(records), len(records))


if __name__ == "__main__":
    main()
