"""What a history says of each op on each device: the last run that set out to test it, all of its shards together."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from opconform.harness.model.builds import Build, names_apart
from opconform.harness.model.usage import UsageError
from opconform.harness.search.known_failures import OnDevice
from opconform.harness.search.result import KnownFailure, Result
from opconform.reports.database import read_history
from opconform.reports.records import RunRow, result_row, run_row

Outcome = Literal["passed", "failed", "known", "unsupported", "not finished"]

#: Another build of a target that was tested this long before the last one is shown beside it; one that was tested
#: earlier has been replaced, as a nightly build replaces that of the night before.
BESIDE = timedelta(hours=12)

_SHARDS = 8  #: shards that are missing, by number

T = TypeVar("T")


class Pair(NamedTuple):
    """One op on one target, which is what `--backend` takes and the build that stood behind it."""

    op: str
    target: str
    build: Build = Build()


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


def build_names(pairs: Iterable[Pair]) -> dict[Pair, str]:
    """What to call the build of each pair, so that no two builds of one target have one name."""
    pairs = list(pairs)
    builds: dict[str, list[Build]] = {}
    for pair in pairs:
        builds.setdefault(pair.target, []).append(pair.build)
    names = {target: names_apart(found) for target, found in builds.items()}
    return {pair: names[pair.target][pair.build] for pair in pairs}


def target_names(pairs: Iterable[Pair]) -> dict[Pair, str]:
    """What to call each pair's target: what `--backend` takes, and the build."""
    return {pair: f"{pair.target} ({build})" if build else pair.target for pair, build in build_names(pairs).items()}


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The history at `path`, in one state of it even while a run is writing. Whatever is wrong with what stands in it
    is a `UsageError` of one line."""
    with closing(read_history(path)) as db:
        try:
            db.execute("BEGIN")
            yield db
        except (sqlite3.Error, ValueError) as error:
            raise UsageError(f"{path}: not a history: {error}") from None


def rows_of(db: sqlite3.Connection, query: str, values: Sequence[Any] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a query by the names of their columns."""
    found = db.execute(query, values)
    names = [column[0] for column in found.description]
    return (dict(zip(names, row)) for row in found)


def runs_of(db: sqlite3.Connection) -> list[RunRow]:
    """Every run, the oldest first. Raises `ValueError` for one that cannot be."""
    return [run_row(row) for row in rows_of(db, "SELECT * FROM runs ORDER BY started, rowid")]


def grouped(runs: Iterable[RunRow]) -> list[list[RunRow]]:
    """Runs (the oldest first), the shards of one run together.

    A shard belongs to the latest group of its seed and number of shards that begins with one of its pairs, unless that
    has such a shard already; so a shard that was run again begins a new group, and is not mixed with the others' older
    results. The shards of several devices may start in any order.
    """
    groups: list[list[RunRow]] = []
    taken: list[set[tuple[int, int]]] = []
    latest: dict[tuple[Any, ...], int] = {}
    for run in runs:
        keys = [(run.seed, run.shard[1], run.command, pair) for pair in run.pairs or ((),)]
        number = max((latest[key] for key in keys if key in latest), default=None)
        if number is None or run.shard[1] == 1 or run.shard in taken[number]:
            number = len(groups)
            groups.append([])
            taken.append(set())
            latest.update(dict.fromkeys(keys, number))
        groups[number].append(run)
        taken[number].add(run.shard)
    return groups


def states_of(path: Path, run_id: str | None = None, needed: bool = True) -> dict[Pair, State]:
    """The last state of each pair in the history at `path`, or what the run `run_id` (or the start of one) says.

    Of a whole file, replays of single cases do not count. Raises `UsageError` where nothing was tested, unless that is
    not needed.
    """
    with reading(path) as db:
        last = last_groups(db, groups_of(db, path, run_id))
        states = {pair: state_of(db, group, pair) for pair, group in last.items()}
    if needed and not states:
        raise UsageError(nothing_in(path))
    return states


def nothing_in(path: Path) -> str:
    """What to say of a history in which nothing is to be read."""
    return f"{path}: no run in it has tested anything"


def groups_of(db: sqlite3.Connection, path: Path, run_id: str | None = None) -> list[list[RunRow]]:
    """The groups of `grouped`, the oldest first: all that have searched, or that of the run `run_id` (or the start of
    one), none where it has only taken times. Raises `UsageError` where there is no such run."""
    runs = runs_of(db)
    if run_id is None:
        return grouped(run for run in runs if run.command == "search")
    chosen = named(runs, run_id, path)
    return [group for group in grouped(run for run in runs if run.command != "perf") if chosen in group]


def named(runs: Sequence[RunRow], name: str, path: Path) -> RunRow:
    """The run whose id is `name` or begins with it. Raises `UsageError` where that is not one."""
    found = [run for run in runs if run.id == name] or [run for run in runs if run.id.startswith(name)]
    if len(found) != 1:
        raise UsageError(f"{'several runs' if found else 'no run'} {name!r} in {path}; opconform runs lists them")
    return found[0]


def not_replaced(times: Mapping[T, datetime], target_of: Callable[[T], Any]) -> list[T]:
    """Those that are the last of their target, or were there no longer than `BESIDE` before it."""
    newest: dict[Any, datetime] = {}
    for each, time in times.items():
        newest[target_of(each)] = max(newest.get(target_of(each), time), time)
    return [each for each, time in times.items() if newest[target_of(each)] - time <= BESIDE]


def last_groups(db: sqlite3.Connection, groups: Iterable[Sequence[RunRow]]) -> dict[Pair, Sequence[RunRow]]:
    """The last group of each op on each target, and those of other builds that were tested shortly before it."""
    last: dict[Pair, Sequence[RunRow]] = {}
    for group in groups:
        last |= dict.fromkeys(pairs_of(db, group), group)
    times = {pair: group[-1].time for pair, group in last.items()}
    return {pair: last[pair] for pair in not_replaced(times, lambda pair: pair[:2])}


def pairs_of(db: sqlite3.Connection, group: Sequence[RunRow]) -> list[Pair]:
    """What a group set out to test, and what else it has results of."""
    found: dict[Pair, None] = {}
    for run in group:
        done = db.execute("SELECT op, target FROM results WHERE run_id = ? ORDER BY rowid", [run.id])
        found |= {Pair(op, target, run.build(target)): None for op, target in [*run.pairs, *done]}
    return list(found)


def state_of(db: sqlite3.Connection, group: Sequence[RunRow], pair: Pair) -> State:
    """What a group says of a pair, all of its shards together; those that tested another build only tell that they have
    finished."""
    rows = [
        (run.id, row)
        for run in group
        for row in rows_of(db, "SELECT * FROM results WHERE op = ? AND target = ? AND run_id = ?", [*pair[:2], run.id])
    ]
    mine = {run.id for run in group if run.build(pair.target) == pair.build}
    results = [(row, result_row(row)) for run_id, row in rows if run_id in mine]
    failing = [(row["kind"] or "FAILED", row["case_id"], row) for row, _ in results if row["kind"] or row["failed"]]
    kind, case_id = min(failing, key=lambda found: len(found[2]["case_json"]))[:2] if failing else ("", "")
    done = {run_id for run_id, _ in rows}
    detail = _missing(group, done)
    if detail and not kind:
        kind, case_id = _first_failure(db, [run for run in group if run.id in mine - done], pair)
    bugs = [bug for _, result in results for bug in result.known_bugs]
    executed = sum(row["passed"] + row["failed"] + result.tally.known for row, result in results)
    outcome: Outcome = "passed"
    if kind:
        outcome = "failed"
    elif detail:
        outcome = "not finished"
    elif any(result.known for _, result in results):
        outcome = "known"
    elif not executed:
        outcome = "unsupported"
    return State(
        outcome,
        executed,
        sum(row["seconds"] for row, _ in results),
        kind,
        case_id,
        frozenset(name for _, result in results for name in result.failed_known),
        tuple(dict.fromkeys(reason for _, result in results for reason in result.tally.reasons)),
        frozenset(bug.id for bug in bugs if bug.still_fails),
        frozenset(bug.id for bug in bugs if not bug.still_fails),
        detail,
        tuple(listed for _, result in results for listed in result.known_failures),
    )


def devices_in(path: Path, run_id: str | None = None) -> Mapping[Pair, OnDevice]:
    """The device behind each pair that `states_of` tells of."""
    found: dict[Pair, OnDevice] = {}
    with reading(path) as db:
        for pair, group in last_groups(db, groups_of(db, path, run_id)).items():
            run = next(run for run in reversed(group) if run.build(pair.target) == pair.build)
            about = run.devices.get(pair.target)
            description = about.description if about is not None else ""
            found[pair] = OnDevice(pair.target, description, dict(pair.build.versions))
    return found


def _missing(group: Sequence[RunRow], done: set[str]) -> str:
    """Which shards have no result; "" where all have one."""
    count = group[0].shard[1]
    finished = {run.shard[0] for run in group if run.id in done}
    left = count - len(finished)
    if not left:
        return ""
    if count == 1:
        return "did not finish"
    shown: list[int] = []
    number = 1
    while len(shown) < min(left, _SHARDS):
        if number not in finished:
            shown.append(number)
        number += 1
    more = f" and {left - len(shown):,} more" if left > len(shown) else ""
    return f"without shard {', '.join(map(str, shown))}{more} of {count}"


def _first_failure(db: sqlite3.Connection, group: Sequence[RunRow], pair: Pair) -> tuple[str, str]:
    """The last failing case that these runs, which were killed, wrote down."""
    for run in reversed(group):
        found = db.execute(
            "SELECT kind, case_id FROM test_backend_ops WHERE op_name = ? AND target = ? AND run_id = ? "
            "AND supported = 1 AND passed = 0 ORDER BY rowid DESC LIMIT 1",
            [pair.op.upper(), pair.target, run.id],
        ).fetchone()
        if found:
            return str(found[0] or "FAILED"), str(found[1] or "")
    return "", ""


def results_of(db: sqlite3.Connection, run: RunRow, pair: Pair) -> list[Result]:
    """The whole results of a pair in one run."""
    query = "SELECT * FROM results WHERE op = ? AND target = ? AND run_id = ?"
    return [result_row(row) for row in rows_of(db, query, [pair.op, pair.target, run.id])]
