"""Histories of several machines or shards put together, run by run."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opconform.harness.model.usage import UsageError
from opconform.reports.database import CASES, TABLES, Unwritable, check_history, open_history, read_history, transaction


@dataclass(frozen=True)
class Merged:
    """What one input gave: runs that were added, runs that replaced a shorter copy, and runs that were there."""

    path: Path
    added: int
    replaced: int
    known: int


def merge(out: Path, inputs: Sequence[Path], cases: bool = True) -> list[Merged]:
    """Take every run of `inputs` into the history `out`, which is made where there is none; without the row of each
    case where `cases` is false, which makes it small enough to keep for years.

    A run that `out` has already is replaced only by a copy with more in it, so that merging again changes nothing.
    Everything is taken or, where one input cannot be read, nothing. Raises `UsageError`.
    """
    for path in inputs:
        if path.resolve() == out.resolve():
            raise UsageError(f"{path} is both an input and the output")
        read_history(path).close()
    check_history(out)
    created = not out.exists()
    db = open_history(out)
    try:
        with transaction(db):
            tables = [table for table in TABLES if cases or table != CASES]
            return [_take(db, path, tables) for path in inputs]
    except BaseException as error:
        db.close()
        if created:
            out.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise Unwritable(f"{out}: {error}") from None
        raise
    finally:
        db.close()


def _take(db: sqlite3.Connection, path: Path, tables: Sequence[str]) -> Merged:
    added = replaced = known = 0
    source = read_history(path)
    try:
        source.execute("BEGIN")  # one state of it, even while a run is writing
        for (run_id,) in source.execute("SELECT run_id FROM runs ORDER BY started, rowid").fetchall():
            theirs, ours = _weight(source, run_id, tables), _weight(db, run_id, tables)
            if ours is None:
                added += 1
            elif theirs is not None and theirs > ours:
                replaced += 1
            else:
                known += 1
                continue
            for table in tables:
                db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
                rows = source.execute(f"SELECT * FROM {table} WHERE run_id = ? ORDER BY rowid", (run_id,))
                names = [column[0] for column in rows.description]  # an older history has fewer
                marks = ", ".join("?" * len(names))
                db.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", rows)
    except sqlite3.Error as error:
        raise UsageError(f"{path}: {error}") from None
    finally:
        source.close()
    return Merged(path, added, replaced, known)


def _weight(db: sqlite3.Connection, run_id: str, tables: Sequence[str]) -> tuple[str | int, ...] | None:
    """How much there is of a run, to compare two copies of it: rows of each table, and when it ended."""
    found = db.execute("SELECT coalesce(ended, '') FROM runs WHERE run_id = ?", (run_id,)).fetchone()
    if found is None:
        return None
    counts = [db.execute(f"SELECT count(*) FROM {table} WHERE run_id = ?", (run_id,)).fetchone()[0] for table in tables]
    return *reversed(counts), found[0]
