"""`opconform repro CASE --backend X`: the bundle of one case."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from opconform.arguments import complete_case, shared
from opconform.harness.draw.known import find_case
from opconform.harness.model.ops import ops
from opconform.harness.model.text import printable
from opconform.harness.model.usage import UsageError
from opconform.harness.search.session import Session, targets_of
from opconform.harness.search.settings import OUT
from opconform.options import settings_from
from opconform.reports.repro.place import repro_dir

OPTIONS = (
    "--backend",
    "--ggml-lib",
    "--max-bytes",
    "--time-limit",
    "--also-seconds",
    "--no-isolation",
    "--strict-supports",
    "--sanitize",
    "--check",
    "--times",
    "--report-dir",
)


@click.command()
@click.argument("case", shell_complete=complete_case)
@shared(*OPTIONS)
@click.option("--out", metavar="DIR", help="where the bundle's folder goes (default: repro in --report-dir)")
def repro(values: dict[str, Any], case: str, out: str | None) -> None:
    """Write the bundle of a failing case: a script that runs alone, a C++ test case, an issue, a picture.

    CASE is a file, the id of a known case, or of a stored failure. Exit status: 0 a bundle was written, 1 the case
    does not fail.
    """
    from opconform.reports.repro.bundle import write_bundle  # it takes a while to import

    settings = settings_from(values)
    if not values["backend"]:
        raise UsageError("opconform repro needs --backend: the device that the case fails on")
    name, found = find_case(case, settings.report_dir, settings.max_bytes)
    targets, _ = targets_of(values["backend"], settings)
    written = 0
    with Session(settings) as session:
        for target in targets:
            result = session.replay(ops()[found.op], target, [(name, found)])
            if result.failure is None:
                said = next(iter(result.tally.unsupported), None)
                what = f"is unsupported: {printable(said)}" if said else "passes"
                click.echo(f"{name} {what} on {target.label}", err=True)
                continue
            folder = write_bundle(result.failure, target, out or repro_dir(settings) or Path(OUT, "repro"))
            click.echo(f"{folder}  {result.failure.kind}  {found.op} on {target.label}")
            written += 1
    sys.exit(0 if written else 1)
