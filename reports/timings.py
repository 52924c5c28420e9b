"""What a history says of times: of each target and build what the last run that timed something there has measured."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opconform.harness.model.builds import Build
from opconform.reports.database import TIMINGS, has_timings
from opconform.reports.records import RunRow, TimingRow, timing_row
from opconform.reports.states import Pair, named, not_replaced, reading, rows_of, runs_of


@dataclass(frozen=True)
class Timing:
    """What one run has measured of one case on one device."""

    pair: Pair
    run: RunRow
    rows: tuple[TimingRow, ...]

    @property
    def case(self) -> str:
        """The case's id."""
        return self.rows[0].case

    @property
    def name(self) -> str:
        return self.rows[0].name

    @property
    def timed(self) -> bool:
        """Whether it has a time; else it failed, or is not supported."""
        return self.row("warm") is not None

    @property
    def slower(self) -> bool:
        """Whether it was called slower than on another build."""
        return self.ratio is not None and self.ratio.slower

    @property
    def ratio(self) -> TimingRow | None:
        """The comparison with another build."""
        return self.row("ratio")

    def row(self, what: str) -> TimingRow | None:
        """The last row of this kind (`TimingRow.what`)."""
        return next((row for row in reversed(self.rows) if row.what == what), None)


def timings_of(path: Path, run_id: str | None = None, compared: bool = False) -> list[Timing]:
    """The times in the history at `path`; see `timings_in`. Raises `UsageError`."""
    with reading(path) as db:
        return timings_in(db, path, run_id, compared)


def timings_in(db: sqlite3.Connection, path: Path, run_id: str | None = None, compared: bool = False) -> list[Timing]:
    """What the last run on each target and build has measured, or the run `run_id` (or the start of one).

    compared: the last run that compared it with another build. A build that another one has replaced is left out, as
    everywhere. Raises `UsageError` where there is no such run, `ValueError` for a row that cannot be.
    """
    runs = runs_of(db)
    chosen = runs if run_id is None else [named(runs, run_id, path)]
    targets: dict[str, dict[str, None]] = {}
    if has_timings(db):
        where = "WHERE versus <> ''" if compared else ""
        for run, target in db.execute(f"SELECT DISTINCT run_id, target FROM {TIMINGS} {where}"):
            targets.setdefault(run, {})[str(target)] = None
    last: dict[tuple[str, Build], RunRow] = {}
    for run in chosen:
        if run.command == "perf":
            last |= {(target, run.build(target)): run for target in targets.get(run.id, ())}
    times = {key: run.time for key, run in last.items()}
    return [
        timing
        for target, build in not_replaced(times, lambda key: key[0])
        for timing in _timings(db, last[target, build], target)
    ]


def timing_rows(db: sqlite3.Connection, condition: str = "", *values: str) -> Iterator[tuple[str, TimingRow]]:
    """The rows of `timings`, in the order in which they were written, each with its run's id. Raises `ValueError`."""
    if has_timings(db):
        for row in rows_of(db, f"SELECT * FROM {TIMINGS} {condition} ORDER BY rowid", values):
            found = timing_row(row)
            yield row["run_id"], found


def _timings(db: sqlite3.Connection, run: RunRow, target: str) -> Iterator[Timing]:
    rows: dict[str, list[TimingRow]] = {}
    for _, row in timing_rows(db, "WHERE run_id = ? AND target = ?", run.id, target):
        rows.setdefault(row.case, []).append(row)
    for found in rows.values():
        yield Timing(Pair(found[0].op, target, run.build(target)), run, tuple(found))
