"""`opconform perf`: how fast cases are on a device, and whether one build is slower than another."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import click

from opconform import __version__
from opconform.arguments import shared
from opconform.commands_look import name_missing
from opconform.harness.draw.known import LARGEST, find_case
from opconform.harness.model.ops import chosen_ops, ops
from opconform.harness.model.usage import UsageError
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer, Observers
from opconform.harness.search.session import targets_of
from opconform.harness.search.settings import Settings, positive
from opconform.harness.search.speed import Measured, Subject, Track, compared, subjects_of
from opconform.options import NIGHTLY_KNOWN, settings_from
from opconform.reports.history import recorders
from opconform.reports.run import Run, about_devices
from opconform.reports.speed import notes_of, ratios_table, summary_of, times_table
from opconform.reports.speed_rows import CsvTable, document_of

FORMATS = ("console", "csv", "json")
LIMIT = 120.0  #: seconds that a case may take: shapes of whole models on a slow device


@click.command()
@shared(
    "--backend",
    "--op",
    "--case",
    "--max-bytes",
    "--time-limit",
    "--ggml-lib",
    "--no-isolation",
    "--report-dir",
    "--history",
)
@click.option("--vs", "versus", metavar="X", help="also compare with this device or build, in turn with it")
@click.option("--vs-lib", metavar="DIR", help="also compare with the libggml in this directory")
@click.option("--slower", type=float, default=10.0, metavar="P", help="percent from which it is slower (default: 10)")
@click.option("--seconds", type=float, default=1.0, metavar="S", help="time for each case and device (default: 1)")
@click.option("--output", type=click.Choice(FORMATS), default="console", help="what goes to stdout")
def perf(
    values: dict[str, Any], versus: str | None, vs_lib: str | None, slower: float, seconds: float, output: str
) -> None:
    """Time cases on each device, against what the device itself can do and against another build.

    Without --case these are the known cases that are shapes of real models. Exit status 1 only where a case is slower
    than on the other build by more than --slower, where one fails, or where nothing was timed.
    """
    settings = _settings(values)
    seconds, margin = positive("--seconds", seconds), positive("--slower", slower) / 100
    if versus and vs_lib:
        raise UsageError("--vs and --vs-lib both name a build to compare with; give one")
    subjects = _subjects(values, settings)
    targets, missing = targets_of(values["backend"], settings)
    others = [_other(target, versus, vs_lib, settings) for target in targets]
    pairs = [(op, target.label) for target in targets for op in dict.fromkeys(each.op.name for each in subjects)]
    run = Run(settings, "perf", about_devices(targets), pairs)
    history = Observers(recorders(run))
    stdout = sys.stdout
    quiet = contextlib.redirect_stdout(sys.stderr) if output != "console" else contextlib.nullcontext()
    with contextlib.closing(history), quiet:
        name_missing(missing)
        table = CsvTable(stdout) if output == "csv" else None
        found: list[Measured] = []
        for target, other in zip(targets, others):
            for part in _parts(target, other, subjects, settings, margin, seconds):
                done = [_kept(each, history, table) for each in part]
                found += done
                if output == "console":
                    _show(target, other, done)
    if output == "json":
        plain = {"opconform": __version__, "run": run.id, "times": document_of(found)}
        stdout.write(json.dumps(plain, indent=1) + "\n")
    _finish(found, margin)


def _kept(measured: Measured, history: Observer, table: CsvTable | None) -> Measured:
    """It is written down before the next case is timed: a run that is killed loses none."""
    history.timed(measured)
    if table is not None:
        table.add(measured)
    return measured


def _settings(values: dict[str, Any]) -> Settings:
    settings = settings_from(values)
    if values.get("time_limit") is None:
        settings = replace(settings, time_limit=LIMIT)
    return settings if values.get("max_bytes") else replace(settings, known_max_bytes=NIGHTLY_KNOWN)


def _subjects(values: dict[str, Any], settings: Settings) -> list[Subject]:
    chosen = chosen_ops(values.get("op") or ())
    if not values.get("case"):
        return subjects_of(chosen)
    cases = [find_case(name, settings.report_dir, LARGEST) for name in values["case"]]
    names = {op.name for op in chosen}
    return [Subject(name, ops()[case.op], case) for name, case in cases if case.op in names]


def _other(target: Target, versus: str | None, vs_lib: str | None, settings: Settings) -> Target | None:
    """What `target` is compared with. Raises `UsageError` for what is not one device."""
    if versus is None and vs_lib is None:
        return None
    name = versus or f"{target.spec}:{target.device.id}"
    options = settings.options if vs_lib is None else {**settings.options, "ggml_lib": vs_lib}
    found, _ = targets_of([name], replace(settings, options=options))
    if len(found) != 1:
        raise UsageError(f"--vs {name} names several devices: {', '.join(each.label for each in found)}")
    if vs_lib is not None and "ggml_lib" not in found[0].options:
        raise UsageError(f"--vs-lib is for ggml; {target.label} has no libggml")
    return found[0]


def _parts(
    target: Target, other: Target | None, subjects: Sequence[Subject], settings: Settings, margin: float, seconds: float
) -> Iterator[Iterable[Measured]]:
    """The times of a device, then its comparison; each to be taken up before the next."""
    fit = []

    def times() -> Iterator[Measured]:
        with Track(target, settings, seconds) as track:
            for subject in subjects:
                found = track.measured(subject)
                if found.warm is not None:
                    fit.append(subject)
                yield found

    yield times()
    if other is not None:
        yield compared(fit, target, other, settings, margin, seconds / 4)


def _show(target: Target, other: Target | None, part: Sequence[Measured]) -> None:
    if not part:
        return
    compares = any(each.other is not None for each in part)
    click.echo(f"{target.label}  {target.about}")
    if compares and other is not None:
        click.echo(f"against {other.label}  {other.about}")
    table = ratios_table(part) if compares else times_table(part)
    if table:
        click.echo(f"\n{table.rstrip()}")
    for line in notes_of(part):
        click.echo(line)
    click.echo()


def _finish(found: Sequence[Measured], margin: float) -> None:
    counts = summary_of(found)
    compared_with = any(each.other is not None for each in found)
    said = f"{counts['timed']} timed, {counts['failed']} failed, {counts['unsupported']} not supported"
    click.echo(f"{said}, {counts['slower']} slower by more than {margin:.0%}" if compared_with else said, err=True)
    if not counts["timed"]:
        click.echo("nothing was timed: that is a failure, not a pass", err=True)
    if not counts["timed"] or counts["slower"] or counts["failed"]:
        sys.exit(1)
