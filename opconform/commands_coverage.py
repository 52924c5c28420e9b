"""The command `opconform coverage`: what of the ops that a backend's own library names is tested here."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import click

from opconform.arguments import shared
from opconform.commands_look import name_missing, naming_lost
from opconform.harness.draw.sample import sample
from opconform.harness.model.limits import Freedom, NothingLeftError
from opconform.harness.model.ops import ops
from opconform.harness.model.text import printable
from opconform.harness.run.backend import Named
from opconform.harness.run.target import Target
from opconform.harness.search.session import Session, targets_of
from opconform.options import settings_from

_CASES = 32  #: drawn of each op, to be asked about
_APART = ("view", "group", "callback")  #: kinds that compute nothing of their own


@click.command()
@shared("--backend", "--ggml-lib", "--no-isolation")
def coverage(values: dict[str, Any]) -> None:
    """Which of the ops that a backend's own library names are tested.

    For each of them: on which devices, or why not. The number in brackets says how many of 32 drawn cases of the op the
    device takes; nothing is computed here: `opconform test` draws such cases and runs them.
    Exit status: 1 if a device did not open, or none named its ops.
    """
    settings = settings_from(values)
    targets, missing = targets_of(values["backend"], settings)
    name_missing(missing, err=True)
    names: list[Named] = []
    taken: dict[str, dict[str, int]] = {}
    lost: list[Target] = []
    with Session(settings) as session:
        for target in targets:
            with naming_lost(target, lost):
                runner = session.runner(target)
                found = runner.names()
                if found is None:
                    click.echo(f"{target.label} names no ops of its own", err=True)
                    continue
                click.echo(f"{target.label}  {target.about}")
                names += [name for name in found if name.name not in {its.name for its in names}]
                for op in {op for name in found for op in name.ops}:
                    try:
                        cases = sample(ops()[op], Freedom(runner.limits(ops()[op]), settings.max_bytes), _CASES)
                    except NothingLeftError:
                        continue
                    count = sum(answer is None for answer in runner.supports(cases))
                    if count:
                        taken.setdefault(op, {})[target.label] = count
    if names:
        _print(names, taken)
    else:
        click.echo("nothing named its ops", err=True)
    if lost or not names:
        sys.exit(1)


def _print(names: list[Named], taken: Mapping[str, Mapping[str, int]]) -> None:
    width = max((len(name.name) for name in names), default=0)
    counted: Counter[bool] = Counter()
    for name in names:
        devices: Counter[str] = Counter()
        for op in name.ops:
            devices.update(taken.get(op, {}))
        if name.kind in _APART:
            said = f"apart: {name.why}"
        elif devices:
            where = ", ".join(f"{device} ({count})" for device, count in sorted(devices.items()))
            said = f"tested on {where}" + (f" as {', '.join(name.ops)}" if len(name.ops) > 1 else "")
        else:
            said = f"NOT TESTED: {name.why or 'no device here takes it'}"
        if name.kind not in _APART:
            counted[bool(devices)] += 1
        click.echo(printable(f"{name.name:{width}}  {name.kind:10}  {said}"))
    click.echo(
        f"in brackets: of {_CASES} drawn cases of each op, those that the device takes; `opconform test` runs them"
    )
    click.echo(f"{counted[True]} of {counted.total()} ops")
