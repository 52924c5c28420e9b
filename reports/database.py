"""The SQLite file of a history: its tables, and opening it without harm to a file that is not one.

Write-ahead logging lets several processes write at once, and what is committed stays when the process is killed. Beside
the file lie FILE-wal and FILE-shm while it is open (and after a kill, until it is opened again): they belong to it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from opconform.harness.model.usage import UsageError
from opconform.reports.rows import UPSTREAM

VERSION = 3  #: of the tables below; a file with a higher one is from a newer Opconform
APPLICATION_ID = 0x4F50434F  #: "OPCO", in the file's header
BUSY_SECONDS = 30.0  #: how long to wait for another process that is writing

#: What stands in `test_backend_ops` beside upstream's columns: which run and case, the kind of failure, the values'
#: recipe and seed, and whether the case is an attempt to shrink a failure.
OURS = {
    "run_id": "TEXT",
    "target": "TEXT",
    "case_id": "TEXT",
    "kind": "TEXT",
    "recipe": "TEXT",
    "seed": "INTEGER",
    "shrinking": "INTEGER",
}

#: What stands in `timings` beside upstream's columns. Times are in microseconds, shares and confidences parts of 1;
#: what is not known is null. cache: "warm" or "cold". versus: the other build of a row that compares two; ratio: how
#: many times as long the case takes as there; slower: whether it is called slower by more than `margin`.
PERF = {
    "case_id": "TEXT",
    "case_name": "TEXT",
    "target": "TEXT",
    "build": "TEXT",
    "cache": "TEXT",
    "clock": "TEXT",
    "time_low_us": "REAL",
    "time_high_us": "REAL",
    "confidence": "REAL",
    "copy_us": "REAL",
    "share_of_copy": "REAL",
    "product_flops": "REAL",
    "share_of_product": "REAL",
    "planned_bytes": "INTEGER",
    "allocated_bytes": "INTEGER",
    "versus": "TEXT",
    "ratio": "REAL",
    "ratio_low": "REAL",
    "ratio_high": "REAL",
    "ratio_confidence": "REAL",
    "slower": "INTEGER",
    "margin": "REAL",
}

_RUNS = """CREATE TABLE runs (
  run_id TEXT PRIMARY KEY,
  started TEXT NOT NULL,
  ended TEXT,
  command TEXT NOT NULL,
  seed INTEGER NOT NULL,
  profile TEXT NOT NULL,
  examples INTEGER NOT NULL,
  shard INTEGER NOT NULL,
  shards INTEGER NOT NULL,
  opconform TEXT NOT NULL,
  devices TEXT NOT NULL,
  pairs TEXT NOT NULL
)"""

_RESULTS = """CREATE TABLE results (
  run_id TEXT NOT NULL,
  op TEXT NOT NULL,
  target TEXT NOT NULL,
  device TEXT NOT NULL,
  passed INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  unsupported INTEGER NOT NULL,
  reasons TEXT NOT NULL,
  kind TEXT NOT NULL,
  case_id TEXT NOT NULL,
  case_json TEXT NOT NULL,
  failed_known TEXT NOT NULL,
  known_bugs TEXT NOT NULL,
  seconds REAL NOT NULL,
  cases_per_second REAL,
  PRIMARY KEY (run_id, op, target)
)"""

_CASES = "CREATE TABLE test_backend_ops ({})".format(
    ", ".join(f"{name} {kind}" for name, kind in {**UPSTREAM, **OURS}.items())
)

_NEEDED = ("run_id", "test_mode", "supported", "passed", "case_id", "case_name", "target")
_TIMINGS = "CREATE TABLE timings ({})".format(
    ", ".join(
        f"{name} {kind}{' NOT NULL' if name in _NEEDED else ''}"
        for name, kind in {"run_id": "TEXT", **UPSTREAM, **PERF}.items()
    )
)

#: What makes the tables of each version from those of the one before; 0 is an empty file. New columns have defaults, so
#: that rows of an older version stay as they are. `options`: where the run's files went, and what its commands need;
#: `result`: all of the result (`Result.to_json`), but for the bytes of the failing case's inputs.
_STEPS = {
    1: (_RUNS, _RESULTS, _CASES, f"PRAGMA application_id = {APPLICATION_ID}"),
    2: (
        "ALTER TABLE runs ADD COLUMN options TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE results ADD COLUMN result TEXT NOT NULL DEFAULT ''",
    ),
    3: (_TIMINGS,),
}
_TIMED_FROM = 3

CASES, TIMINGS = "test_backend_ops", "timings"
TABLES = ("runs", "results", CASES, TIMINGS)


@cache
def _made(version: int) -> dict[str, str]:
    """The statements of our tables as SQLite keeps them, in a history of this version."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for step in range(1, version + 1):
            for statement in _STEPS[step]:
                db.execute(statement)
        return {name: _words(sql) for name, sql in db.execute("SELECT name, sql FROM sqlite_master WHERE sql <> ''")}


def _words(sql: str) -> str:
    return " ".join(sql.split())


def _columns() -> dict[str, dict[str, tuple[str, bool]]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for statements in _STEPS.values():
            for statement in statements:
                db.execute(statement)
        return {
            table: {row[1]: (row[2], not (row[3] or row[5])) for row in db.execute(f"PRAGMA table_info({table})")}
            for table in TABLES
        }


#: Of each table each column's type, and whether it may be null. Statements are made with these names, never with those
#: that a file has.
COLUMNS = _columns()


class Unwritable(UsageError):
    """A place where no history can be written."""


def open_history(path: Path) -> sqlite3.Connection:
    """The history at `path`, made where there is none, to read and to write.

    Raises `Unwritable`, or `UsageError` for a file that is no history of ours, which stays as it is.
    """
    _check_file(path)
    deadline = time.monotonic() + BUSY_SECONDS
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"{path}: the folder cannot be made: {error.strerror}") from None
    while True:
        db = None
        try:
            db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            _prepare(db, path)
            return db
        except BaseException as error:
            if db is not None:
                db.close()
            if not isinstance(error, (sqlite3.Error, UnicodeError)):
                raise
            if not ("locked" in str(error) and time.monotonic() < deadline):
                raise _explained(path, error) from None
        time.sleep(0.05)


def read_history(path: Path, empty: bool = False) -> sqlite3.Connection:
    """The history at `path`, to read only. Raises `UsageError` where there is none; a file without any table passes
    with `empty`, for another process may be making it just now."""
    if not _check_file(path):
        raise UsageError(f"{path}: no such file")
    place = path.resolve().as_uri()
    # With rights to write, closing it tidies up what a killed run has left. On a medium that cannot be written a file
    # with a log beside it must not be taken as `immutable`: that overlooks what has not reached the file yet.
    choices = [f"{place}?mode=rw", f"{place}?mode=ro", f"{place}?mode=ro&immutable=1"]
    if Path(f"{path}-wal").exists():
        choices.pop()
    for choice in choices:
        db = sqlite3.connect(choice, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            db.execute("PRAGMA query_only = ON")
            db.execute("PRAGMA trusted_schema = OFF")
            if _version(db, path):
                _check_pages(db, path)
            elif not empty:
                raise UsageError(f"{path}: the file is empty")
            return db
        except UnicodeError as error:  # SQLite says what is wrong in words of the file
            db.close()
            raise _explained(path, error) from None
        except sqlite3.Error as error:
            db.close()
            if choice == choices[-1] or not ("unable to open" in str(error) or "readonly" in str(error)):
                raise _explained(path, error) from None
        except UsageError:
            db.close()
            raise
    raise AssertionError


def check_history(path: Path) -> None:
    """Raise what `open_history` would, and leave nothing behind."""
    if _check_file(path):
        read_history(path, empty=True).close()
    folder = next((place for place in path.parents if place.exists()), Path("."))
    if not folder.is_dir():
        raise Unwritable(f"{path}: {folder} is not a folder")
    for place in (folder, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise Unwritable(f"{path}: {place} cannot be written")


def has_timings(db: sqlite3.Connection) -> bool:
    """Whether it is of a version that keeps times."""
    return _pragma(db, "user_version") >= _TIMED_FROM


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block's changes or none of them; waits for other writers."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _check_file(path: Path) -> bool:
    """Whether there is a file. Raises `UsageError` for what is none: SQLite would wait at a FIFO for ever."""
    try:
        if path.is_file():
            return True
        if not path.exists() and not path.is_symlink():
            return False
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UsageError(f"{path}: {error.strerror}") from None
    raise UsageError(f"{path}: is not a file")


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Check whose file it is before anything in it changes, then make the tables, or bring them up to date."""
    db.execute("PRAGMA trusted_schema = OFF")
    _version(db, path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")  # a power failure may take the last cases, a kill takes none
    if _version(db, path) < VERSION:
        with transaction(db):
            for version in range(_version(db, path) + 1, VERSION + 1):
                for statement in _STEPS[version]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {version}")


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The version of a history's tables; 0 where the file is empty. Raises `UsageError` for any other file."""
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        return 0
    version = _pragma(db, "user_version")
    if _pragma(db, "application_id") != APPLICATION_ID:
        raise UsageError(f"{path}: an SQLite file of another program, not a history of Opconform")
    if version > VERSION:
        raise UsageError(f"{path}: written by a newer Opconform (history version {version}; this one has {VERSION})")
    _check_tables(db, path, version)
    return version


def _check_tables(db: sqlite3.Connection, path: Path, version: int) -> None:
    """Raise `UsageError` unless our tables are those that we make: no view that never ends in their place, no column
    that is computed, no trigger that acts when a row is written. Tables and views of the user's own are left alone."""
    ours = _made(version) if version in _STEPS else dict.fromkeys(TABLES, "")
    found = dict.fromkeys(TABLES, "")
    for kind, name, table, sql in db.execute("SELECT type, name, lower(tbl_name), sql FROM sqlite_master"):
        if kind == "table" and str(name) in found:
            found[str(name)] = _words(str(sql))
        elif table in found and sql is not None:
            raise UsageError(f"{path}: not a history: {kind} {str(name)[:80]!r} acts on {table}; a history has none")
    for name, sql in found.items():
        if name in ours and not sql:
            raise UsageError(f"{path}: no such table: {name}; a history has {', '.join(ours)}")
        if sql != ours.get(name, ""):
            raise UsageError(f"{path}: not a history: table {name} is not as Opconform makes it")


def _check_pages(db: sqlite3.Connection, path: Path) -> None:
    """Raise `UsageError` for a file whose pages refer to each other in circles: reading it would have no end."""
    for table in _made(_pragma(db, "user_version")):
        (found,) = db.execute(f"PRAGMA quick_check({table})").fetchone()
        if found != "ok":
            raise UsageError(f"{path}: not a history: the file is damaged: {found}")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _explained(path: Path, error: sqlite3.Error | UnicodeError) -> UsageError:
    text = str(error)
    if isinstance(error, UnicodeError) or "not a database" in text or "malformed" in text:
        return UsageError(f"{path}: not a history: {text}")
    return Unwritable(f"{path}: {text}")
