"""`opconform matrix`: the jobs that this runner offers, for a workflow's matrix."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from opconform.arguments import shared
from opconform.commands_look import name_missing
from opconform.harness.model.usage import UsageError
from opconform.harness.search.session import targets_of
from opconform.options import settings_from
from opconform.reports.console import text_of


@click.command("matrix")
@shared("--backend", "--ggml-lib")
@click.option("--shards", type=int, default=1, metavar="N", help="shards of each device (default: 1)")
@click.option("--json", "as_json", is_flag=True, help='as {"include": […]}, which strategy.matrix takes by fromJSON')
def matrix(values: dict[str, Any], shards: int, as_json: bool) -> None:
    """The jobs that the devices here make: one for each device and shard.

    A job has a name (for files and artifacts), the device as --backend takes it, its shard for --shard, and more
    options for `opconform test`.
    """
    if not 1 <= shards <= 256:
        raise UsageError(f"--shards is {shards}; it must be from 1 to 256, the most that a workflow's matrix takes")
    targets, missing = targets_of(values["backend"], settings_from(values))
    name_missing(missing, err=True)
    if not targets:
        raise UsageError("no backend is available here, so there is no job")
    jobs = [job for target in targets for job in _jobs(target.label, target.options, shards)]
    if as_json:
        click.echo(json.dumps({"include": jobs}))
        return
    table = Table(*jobs[0], box=None, pad_edge=False)
    for job in jobs:
        table.add_row(*map(Text, job.values()))
    click.echo(text_of(table))


def _jobs(label: str, options: Any, shards: int) -> Iterator[dict[str, str]]:
    given = " ".join(f"--{name.replace('_', '-')} {shlex.quote(value)}" for name, value in options.items())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-")
    for shard in range(1, shards + 1):
        yield {"name": f"{name}-{shard}", "backend": label, "shard": f"{shard}/{shards}", "options": given}
