"""Histories of several machines or shards put together, run by run.

A copy of a run holds what the run had written when the copy was made. So two copies agree in all that both have, and
the longer one adds to the shorter; once a run has ended, nothing is added to it. Nothing that is there is ever
replaced: a file that says something else of a run of that id is refused. Inputs may come from strangers. Each row is
checked as the readers of a history check it, so that a history that can be read can still be read after a merge.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opconform.harness.model.usage import UsageError
from opconform.reports.database import (
    CASES,
    COLUMNS,
    TIMINGS,
    Unwritable,
    check_history,
    has_timings,
    open_history,
    read_history,
    transaction,
)
from opconform.reports.records import check_types, result_row, run_row, timing_row
from opconform.reports.states import rows_of

#: What a run of an older version has in the columns that came later.
_DEFAULTS = {"options": "{}", "result": ""}

_OURS = {table: tuple(columns) for table, columns in COLUMNS.items()}
_INSERT = {
    table: f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    for table, names in _OURS.items()
}

_ENDED = _OURS["runs"].index("ended")

Row = tuple[Any, ...]


class _Conflict(ValueError):
    """Two files that say different things of one run."""


@dataclass(frozen=True)
class Merged:
    """What one input gave: runs that were added, runs that were completed, and runs that were there."""

    path: Path
    added: int
    replaced: int
    known: int


def merge(out: Path, inputs: Sequence[Path], cases: bool = True) -> list[Merged]:
    """Take every run of `inputs` into the history `out`, which is made where there is none; without the row of each
    case where `cases` is false, which makes it small enough to keep for years.

    A run that `out` has already is completed with what a copy of it has beyond that, so that merging again changes
    nothing. Everything is taken or, where one input cannot be read or contradicts `out`, nothing. Raises `UsageError`.
    """
    for path in inputs:
        if os.path.realpath(path) == os.path.realpath(out):
            raise UsageError(f"{path} is both an input and the output")
        read_history(path).close()
    check_history(out)
    created = not out.exists()
    db = open_history(out)
    try:
        with transaction(db):
            return [_take(db, out, path, cases) for path in inputs]
    except BaseException as error:
        db.close()
        if created:
            out.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise Unwritable(f"{out}: {error}") from None
        raise
    finally:
        db.close()


def _take(db: sqlite3.Connection, out: Path, path: Path, cases: bool) -> Merged:
    with closing(read_history(path)) as source:
        try:
            source.execute("BEGIN")  # one state of it, even while a run is writing
            theirs = {
                run_row(row).id: _row("runs", row) for row in rows_of(source, "SELECT * FROM runs ORDER BY rowid")
            }
            ours = {run_id: run for run_id in theirs if (run := _run(db, run_id)) is not None}
            ended = {run_id for run_id, run in ours.items() if run[_ENDED] is not None}
            changed = {run_id for run_id, run in theirs.items() if _take_run(db, run_id, run)}
            changed |= {run_id for run_id in theirs if _take_results(db, source, run_id, run_id in ended)}
            if has_timings(source):
                changed |= _take_list(db, source, TIMINGS, theirs, ended)
            if cases:
                changed |= _take_list(db, source, CASES, theirs, ended)
        except _Conflict as conflict:
            raise UsageError(
                f"{path} contradicts {out}: {conflict}; one of the two is no copy of that run. Nothing was merged"
            ) from None
        except (sqlite3.Error, ValueError) as error:
            raise UsageError(f"{path}: not a history: {error}") from None
    completed = len(changed & ours.keys())
    return Merged(path, len(theirs) - len(ours), completed, len(ours) - completed)


def _row(table: str, row: Mapping[str, Any]) -> Row:
    """A row in the order of our columns."""
    return tuple(row.get(name, _DEFAULTS.get(name)) for name in _OURS[table])


def _run(db: sqlite3.Connection, run_id: str) -> Row | None:
    found = db.execute(f"SELECT {', '.join(_OURS['runs'])} FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    return None if found is None else tuple(found)


def _take_run(db: sqlite3.Connection, run_id: str, theirs: Row) -> bool:
    """Add a run's own row, or the time when it ended; returns whether anything was added."""
    ours = _run(db, run_id)
    if ours is None:
        db.execute(_INSERT["runs"], theirs)
        return True
    _same(f"run {run_id} was set up in another way", _set_up(ours), _set_up(theirs))
    if theirs[_ENDED] is None or ours[_ENDED] == theirs[_ENDED]:
        return False
    if ours[_ENDED] is not None:
        raise _Conflict(f"run {run_id} ended at another time")
    db.execute("UPDATE runs SET ended = ? WHERE run_id = ?", (theirs[_ENDED], run_id))
    return True


def _set_up(run: Row) -> Row:
    """What a run says of itself when it begins."""
    return run[:_ENDED] + run[_ENDED + 1 :]


def _same(what: str, ours: Row, theirs: Row) -> None:
    if ours != theirs:
        raise _Conflict(what)


def _take_results(db: sqlite3.Connection, source: sqlite3.Connection, run_id: str, ended: bool) -> bool:
    """Add the results of a run that are not there; returns whether there were any."""
    key = slice(1, 3)  # run_id, op, target, …
    query = f"SELECT {', '.join(_OURS['results'])} FROM results WHERE run_id = ?"
    ours = {row[key]: row for row in db.execute(query, (run_id,))}
    new = []
    for row in rows_of(source, "SELECT * FROM results WHERE run_id = ? ORDER BY rowid", (run_id,)):
        result_row(row)
        theirs = _row("results", row)
        if theirs[key] in ours:
            _same(f"run {run_id} has another result of {row['op']} on {row['target']}", ours[theirs[key]], theirs)
        else:
            new.append(theirs)
    if new and ended:
        raise _Conflict(f"run {run_id} has {len(new)} more results after its end")
    db.executemany(_INSERT["results"], new)
    return bool(new)


#: Of a table whose rows are written one after another: what they are called.
_LISTS = {CASES: "cases", TIMINGS: "times"}


def _take_list(
    db: sqlite3.Connection, source: sqlite3.Connection, table: str, runs: Mapping[str, Row], ended: set[str]
) -> set[str]:
    """Add the rows of `table` that `source` has beyond those that are there; returns the runs that have got some.

    They are written one after another, so the shorter list of the two must be the beginning of the longer one. Of a run
    that has ended all are there; of cases, none where they were left out.
    """
    ours, theirs = _counts(db, table), _counts(source, table)
    both = {run_id: min(ours[run_id], theirs[run_id]) for run_id in runs if run_id in ours and run_id in theirs}
    mine, other = _digests(db, table, both), _digests(source, table, both)
    differing = [run_id for run_id in mine if mine[run_id] != other[run_id]]
    if differing:
        raise _Conflict(f"run {differing[0]} has other {_LISTS[table]}")
    longer = {run_id: ours.get(run_id, 0) for run_id in runs if theirs.get(run_id, 0) > ours.get(run_id, 0)}
    for run_id, count in longer.items():
        if (count or table != CASES) and run_id in ended:
            raise _Conflict(f"run {run_id} has {theirs[run_id] - count} more {_LISTS[table]} after its end")
    db.executemany(_INSERT[table], _beyond(source, table, longer))
    return set(longer)


def _counts(db: sqlite3.Connection, table: str) -> dict[str, int]:
    return dict(db.execute(f"SELECT run_id, count(*) FROM {table} WHERE run_id IS NOT NULL GROUP BY run_id"))


def _listed(db: sqlite3.Connection, table: str) -> Iterator[tuple[str, Row]]:
    for row in rows_of(db, f"SELECT * FROM {table} WHERE run_id IS NOT NULL ORDER BY rowid"):
        if table == CASES:
            check_types(CASES, row)
        else:
            timing_row(row)
        yield row["run_id"], _row(table, row)


def _digests(db: sqlite3.Connection, table: str, counts: Mapping[str, int]) -> dict[str, str]:
    """A digest of the first so many rows of each run."""
    left = {run_id: count for run_id, count in counts.items() if count}
    found = {run_id: hashlib.sha256() for run_id in left}
    if left:
        for run_id, row in _listed(db, table):
            if left.get(run_id, 0):
                left[run_id] -= 1
                found[run_id].update(repr(row).encode(errors="backslashreplace"))
    return {run_id: digest.hexdigest() for run_id, digest in found.items()}


def _beyond(db: sqlite3.Connection, table: str, skipped: Mapping[str, int]) -> Iterator[Row]:
    """The rows of these runs after the first so many."""
    left = dict(skipped)
    if left:
        for run_id, row in _listed(db, table):
            if run_id not in left:
                continue
            if left[run_id]:
                left[run_id] -= 1
            else:
                yield row
