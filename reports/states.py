"""What a history says of each op on each device: the last run that set out to test it, all of its shards together."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opconform.harness.model.usage import UsageError
from opconform.harness.search.known_failures import OnDevice
from opconform.harness.search.result import KnownFailure, Result
from opconform.reports.database import read_history

Pair = tuple[str, str]  #: op and target
Outcome = Literal["passed", "failed", "known", "unsupported", "not finished"]


@dataclass(frozen=True)
class RunRow:
    """A row of `runs`."""

    id: str
    started: str
    ended: str | None
    command: str
    seed: int
    shard: tuple[int, int]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class State:
    """What became of one op on one device.

    kind and case_id are the failure's; reasons say what is not supported. bugs and mended: the cases that pin known
    bugs, those that still fail and those that pass now. detail: what is missing. The outcome is "known" where all that
    fails is expected; listed: the expected failures that were looked for.
    """

    outcome: Outcome
    executed: int = 0
    seconds: float = 0.0
    kind: str = ""
    case_id: str = ""
    failed_known: frozenset[str] = frozenset()
    reasons: tuple[str, ...] = ()
    bugs: frozenset[str] = frozenset()
    mended: frozenset[str] = frozenset()
    detail: str = ""
    listed: tuple[KnownFailure, ...] = ()

    @property
    def rate(self) -> float:
        """Cases per second; 0 where nothing ran."""
        return self.executed / self.seconds if self.seconds > 0 else 0.0


def runs_of(db: sqlite3.Connection) -> list[RunRow]:
    """Every run, the oldest first."""
    columns = "run_id, started, ended, command, seed, shard, shards, pairs"
    return [
        RunRow(
            id=row[0],
            started=row[1],
            ended=row[2],
            command=row[3],
            seed=row[4],
            shard=(row[5], row[6]),
            pairs=tuple((op, target) for op, target in json.loads(row[7])),
        )
        for row in db.execute(f"SELECT {columns} FROM runs ORDER BY started, rowid")
    ]


def grouped(runs: Iterable[RunRow]) -> list[list[RunRow]]:
    """Runs (the oldest first), the shards of one run together.

    A shard belongs to the latest group of its seed, number of shards and devices, unless that has such a shard already;
    so a shard that was run again begins a new group, and is not mixed with the others' older results.
    """
    groups: list[list[RunRow]] = []
    for run in runs:
        group = next((group for group in reversed(groups) if _one_run(run, group[0])), None)
        if group is None or run.shard[1] == 1 or any(other.shard == run.shard for other in group):
            group = []
            groups.append(group)
        group.append(run)
    return groups


def _one_run(one: RunRow, other: RunRow) -> bool:
    """Whether two shards belong to the same run: the shards of several devices may start in any order."""
    same = (one.seed, one.shard[1], one.command) == (other.seed, other.shard[1], other.command)
    return same and (one.pairs == other.pairs or not set(one.pairs).isdisjoint(other.pairs))


def states_of(path: Path, run_id: str | None = None) -> dict[Pair, State]:
    """The last state of each pair in the history at `path`, or what the run `run_id` (or the start of one) says.

    Of a whole file, replays of single cases do not count. Raises `UsageError` where there is nothing to read.
    """
    with closing(read_history(path)) as db:
        try:
            groups = groups_of(db, path, run_id)
            states = {pair: state_of(db, group, pair) for group in groups for pair in pairs_of(db, group)}
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise UsageError(f"{path}: not a history: {error}") from None
    if not states:
        raise UsageError(f"{path}: no run in it has tested anything")
    return states


def groups_of(db: sqlite3.Connection, path: Path, run_id: str | None = None) -> list[list[RunRow]]:
    """The groups of `grouped`, the oldest first: all that have searched, or that of the run `run_id` (or the start of
    one). Raises `UsageError` where there is no such run."""
    runs = runs_of(db)
    if run_id is None:
        return grouped(run for run in runs if run.command == "search")
    chosen = _named(runs, run_id, path)
    return [group for group in grouped(runs) if chosen in group]


def _named(runs: Sequence[RunRow], name: str, path: Path) -> RunRow:
    found = [run for run in runs if run.id == name] or [run for run in runs if run.id.startswith(name)]
    if len(found) != 1:
        raise UsageError(f"{'several runs' if found else 'no run'} {name!r} in {path}; opconform runs lists them")
    return found[0]


def _marks(group: Sequence[RunRow]) -> tuple[str, list[str]]:
    return ", ".join("?" * len(group)), [run.id for run in group]


def pairs_of(db: sqlite3.Connection, group: Sequence[RunRow]) -> list[Pair]:
    """What a group set out to test, and what else it has results of."""
    marks, ids = _marks(group)
    done = db.execute(f"SELECT op, target FROM results WHERE run_id IN ({marks}) ORDER BY rowid", ids)
    return list(dict.fromkeys([*(pair for run in group for pair in run.pairs), *((op, target) for op, target in done)]))


def state_of(db: sqlite3.Connection, group: Sequence[RunRow], pair: Pair) -> State:
    """What a group says of a pair, all of its shards together."""
    marks, ids = _marks(group)
    columns = "run_id, passed, failed, kind, case_id, failed_known, reasons, seconds, known_bugs"
    rows = db.execute(
        f"SELECT {columns} FROM results WHERE op = ? AND target = ? AND run_id IN ({marks}) ORDER BY length(case_json)",
        [*pair, *ids],
    ).fetchall()
    results = _results(db, group, pair)
    failing = ((row[3] or "FAILED", row[4], "") for row in rows if row[3] or row[2])
    kind, case_id, detail = next(failing, ("", "", ""))
    done = {row[0] for row in rows}
    missing = _missing(group, done)
    if missing:
        detail = missing
        if not kind:
            kind, case_id = _first_failure(db, [run for run in group if run.id not in done], pair)
    bugs = [(name, fails) for row in rows for name, fails in json.loads(row[8])]
    executed = sum(row[1] + row[2] for row in rows) + sum(result.tally.known for result in results)
    outcome: Outcome = "passed"
    if kind:
        outcome = "failed"
    elif missing:
        outcome = "not finished"
    elif any(result.known for result in results):
        outcome = "known"
    elif not executed:
        outcome = "unsupported"
    return State(
        outcome,
        executed,
        sum(row[7] for row in rows),
        kind,
        case_id,
        frozenset(name for row in rows for name in json.loads(row[5])),
        tuple(dict.fromkeys(reason for row in rows for reason in json.loads(row[6]))),
        frozenset(name for name, fails in bugs if fails),
        frozenset(name for name, fails in bugs if not fails),
        detail,
        tuple(listed for result in results for listed in result.known_failures),
    )


def _results(db: sqlite3.Connection, group: Sequence[RunRow], pair: Pair) -> list[Result]:
    """The whole results of a pair; none of a history that is too old to have them."""
    if "result" not in {row[1] for row in db.execute("PRAGMA table_info(results)")}:
        return []
    marks, ids = _marks(group)
    texts = db.execute(
        f"SELECT result FROM results WHERE op = ? AND target = ? AND run_id IN ({marks}) AND result <> ''",
        [*pair, *ids],
    )
    return [Result.from_json(json.loads(text)) for (text,) in texts]


def devices_in(path: Path, run_id: str | None = None) -> dict[Pair, OnDevice]:
    """The device behind each pair that `states_of` tells of."""
    found: dict[Pair, OnDevice] = {}
    with closing(read_history(path)) as db:
        for group in groups_of(db, path, run_id):
            marks, ids = _marks(group)
            texts = db.execute(f"SELECT devices FROM runs WHERE run_id IN ({marks})", ids)
            devices = {target: about for (text,) in texts for target, about in json.loads(text).items()}
            for op, target in pairs_of(db, group):
                about = devices.get(target, {})
                found[op, target] = OnDevice(target, about.get("description", ""), about.get("versions", {}))
    return found


def _missing(group: Sequence[RunRow], done: set[str]) -> str:
    """Which shards have no result; "" where all have one."""
    count = group[0].shard[1]
    left = [str(i) for i in range(1, count + 1) if not any(run.shard[0] == i and run.id in done for run in group)]
    if not left:
        return ""
    return "did not finish" if count == 1 else f"without shard {', '.join(left)} of {count}"


def _first_failure(db: sqlite3.Connection, group: Sequence[RunRow], pair: Pair) -> tuple[str, str]:
    """The last failing case that these runs, which were killed, wrote down."""
    marks, ids = _marks(group)
    found = db.execute(
        f"SELECT kind, case_id FROM test_backend_ops WHERE op_name = ? AND target = ? AND run_id IN ({marks}) "
        "AND supported = 1 AND passed = 0 ORDER BY rowid DESC LIMIT 1",
        [pair[0].upper(), pair[1], *ids],
    ).fetchone()
    return (found[0], found[1]) if found else ("", "")
