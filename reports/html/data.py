"""What the report shows, read from a history: the last state of each op on each device, its failures, and the past."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opconform.harness.draw.known import LARGEST
from opconform.harness.explain.failure import Failure
from opconform.harness.model.case import Case
from opconform.harness.model.findings import Finding
from opconform.harness.model.usage import UsageError
from opconform.harness.search.result import KnownBug, Result, Tally
from opconform.harness.search.settings import Settings
from opconform.reports.commands import commands
from opconform.reports.database import read_history
from opconform.reports.repro.place import bundle_of
from opconform.reports.states import Pair, RunRow, State, groups_of, pairs_of, state_of

PAST = 60  #: runs of which the trend is drawn

_OLD = "recorded by an older version, which kept the case and nothing else"


@dataclass(frozen=True)
class About:
    """What a run says of itself and of its devices beside its `RunRow`."""

    profile: str
    version: str
    devices: Mapping[str, Mapping[str, Any]]
    settings: Settings


@dataclass(frozen=True)
class Shown:
    """A failure as the report shows it: what is known of it (nothing but `message` where its run was killed), the
    commands that run it again, and the bundle's folder, "" where there is none here."""

    pair: Pair
    kind: str
    case_id: str
    message: str
    failure: Failure | None
    commands: tuple[str, ...]
    bundle: str = ""


@dataclass(frozen=True)
class Entry:
    """One op on one device, as the last run (with all of its shards) left it."""

    pair: Pair
    state: State
    group: tuple[RunRow, ...]
    results: tuple[Result, ...]
    failures: tuple[Shown, ...]

    @property
    def known(self) -> int:
        """Failing cases that were expected to fail."""
        return sum(result.tally.known for result in self.results)

    @property
    def passed(self) -> int:
        return sum(result.tally.passed for result in self.results)

    @property
    def failed(self) -> int:
        return sum(result.tally.failed for result in self.results)

    @property
    def unsupported(self) -> Counter[str]:
        """How many cases were not supported, by reason."""
        return sum((result.tally.unsupported for result in self.results), Counter())

    @property
    def bugs(self) -> tuple[KnownBug, ...]:
        return tuple(dict.fromkeys(bug for result in self.results for bug in result.known_bugs))


@dataclass(frozen=True)
class Moment:
    """One run of the past, its shards together, and what it said of each pair."""

    group: tuple[RunRow, ...]
    states: Mapping[Pair, State]

    @property
    def started(self) -> str:
        return self.group[0].started


@dataclass(frozen=True)
class Report:
    """All that is shown. `past`: the last runs that searched, the oldest first. `runs`: those that `entries` are of."""

    history: Path
    entries: Mapping[Pair, Entry]
    past: tuple[Moment, ...]
    runs: tuple[RunRow, ...]
    about: Mapping[str, About]

    @property
    def ops(self) -> list[str]:
        return list(dict.fromkeys(op for op, _ in self.entries))

    @property
    def targets(self) -> list[str]:
        return list(dict.fromkeys(target for _, target in self.entries))

    @property
    def failures(self) -> list[Shown]:
        return [shown for entry in self.entries.values() for shown in entry.failures]

    def device(self, target: str) -> Mapping[str, Any]:
        """The description and the versions of a device, as the last run has them."""
        known = (self.about[run.id].devices.get(target) for run in reversed(self.runs))
        return next((device for device in known if device), {"description": "", "versions": {}})


def report_of(path: Path, run_id: str | None = None) -> Report:
    """What the history at `path` says: the last state of each pair, or the run `run_id` (or the start of one).

    Raises `UsageError` where there is nothing to show.
    """
    with closing(read_history(path)) as db:
        db.row_factory = _as_dict
        try:
            db.execute("BEGIN")  # one state of it, even while a run is writing
            about = {row["run_id"]: _about(row) for row in db.execute("SELECT * FROM runs")}
            db.row_factory = None
            groups = groups_of(db, path, run_id)
            last = {pair: group for group in groups for pair in pairs_of(db, group)}
            entries = {pair: _entry(db, pair, group, about) for pair, group in last.items()}
            searched = groups if run_id is None else groups_of(db, path)
            past = tuple(_moment(db, group) for group in searched[-PAST:])
        except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise UsageError(f"{path}: not a history: {error}") from None
    if not entries:
        raise UsageError(f"{path}: no run in it has tested anything")
    ids = {run.id: run for entry in entries.values() for run in entry.group}
    runs = tuple(sorted(ids.values(), key=lambda run: run.started))
    return Report(path, entries, past, runs, about)


def _as_dict(cursor: sqlite3.Cursor, row: Sequence[Any]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row)}


def _about(row: Mapping[str, Any]) -> About:
    options = json.loads(row.get("options", "{}"))  # a history of version 1 has no such column
    settings = Settings(
        report_dir=str(options.get("report_dir", Settings.report_dir)),
        repro_dir=options.get("repro_dir"),
        strict=bool(options.get("strict")),
    )
    return About(row["profile"], row["opconform"], json.loads(row["devices"]), settings)


def _moment(db: sqlite3.Connection, group: Sequence[RunRow]) -> Moment:
    return Moment(tuple(group), {pair: state_of(db, group, pair) for pair in pairs_of(db, group)})


def _entry(db: sqlite3.Connection, pair: Pair, group: Sequence[RunRow], about: Mapping[str, About]) -> Entry:
    state = state_of(db, group, pair)
    cursor = db.cursor()
    cursor.row_factory = _as_dict
    rows = [
        row
        for run in group
        for row in cursor.execute("SELECT * FROM results WHERE op = ? AND target = ? AND run_id = ?", [*pair, run.id])
    ]
    results = [_result(row) for row in rows]
    failures = [
        _shown(pair, result.failure, about[row["run_id"]].settings)
        for row, result in zip(rows, results)
        if result.failure is not None
    ]
    if state.kind and not failures:
        failures = [_lost(db, pair, group, state, about)]
    once = {shown.case_id: shown for shown in failures}
    return Entry(pair, state, tuple(group), tuple(results), tuple(once.values()))


def _result(row: Mapping[str, Any]) -> Result:
    """A result with all that the history holds of it."""
    if row.get("result"):
        return Result.from_json(json.loads(row["result"]))
    tally = Tally(row["passed"], row["failed"], Counter(json.loads(row["reasons"])), seconds=row["seconds"])
    failure = None
    if row["kind"]:
        case = Case.from_json(json.loads(row["case_json"]), LARGEST)
        found = (Finding("", row["kind"], _OLD),)
        failure = Failure(case, row["target"], row["device"], (), found, None, "", "", "", "")
    bugs = tuple(KnownBug(name, "", fails) for name, fails in json.loads(row["known_bugs"]))
    known = tuple(json.loads(row["failed_known"]))
    return Result(row["op"], row["target"], row["device"], tally, failure, known, bugs)


def _shown(pair: Pair, failure: Failure, settings: Settings) -> Shown:
    bundle = bundle_of(failure, settings)
    return Shown(
        pair,
        failure.kind,
        failure.case.id,
        "",
        failure,
        tuple(commands(failure, settings)),
        "" if bundle is None else str(bundle),
    )


def _lost(
    db: sqlite3.Connection, pair: Pair, group: Sequence[RunRow], state: State, about: Mapping[str, About]
) -> Shown:
    """A failure whose run did not live to describe it: the search finds it again."""
    found = db.execute(
        "SELECT error_message FROM test_backend_ops WHERE case_id = ? AND target = ? AND supported = 1 AND passed = 0 "
        "ORDER BY rowid DESC LIMIT 1",
        [state.case_id, pair[1]],
    ).fetchone()
    message = found[0] if found else state.detail
    return Shown(pair, state.kind, state.case_id, message, None, tuple(_searches(pair, group, about)))


def _searches(pair: Pair, group: Sequence[RunRow], about: Mapping[str, About]) -> Iterator[str]:
    op, target = map(shlex.quote, pair)
    for run in group:
        shard = f" --shard {run.shard[0]}/{run.shard[1]}" if run.shard[1] > 1 else ""
        strict = " --strict-supports" if about[run.id].settings.strict else ""
        yield f"opconform test --op {op} --backend {target} --seed {run.seed}{shard}{strict}"
