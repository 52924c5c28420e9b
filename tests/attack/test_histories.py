"""Histories from strangers: refused in one line, in no time, and nothing that is there is replaced."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opconform.cli import main
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.usage import UsageError
from opconform.reports.compare import compare
from opconform.reports.database import COLUMNS, TABLES, check_history, open_history
from opconform.reports.html.data import report_of
from opconform.reports.html.page import html
from opconform.reports.listing import run_lines
from opconform.reports.merge import merge
from opconform.reports.states import devices_in, states_of
from opconform.reports.timings import timings_of
from tests.attack.strangers import anything, paths, put, quickly
from tests.attack.test_printers import safe
from tests.histories import (
    FAILED,
    PASSED,
    REFUSED,
    TIMED,
    VULKAN,
    finished,
    query,
    ratio_of,
    record,
    result_of,
    run_of,
    timed,
)
from tests.repro_samples import one_failure
from tests.samples import acc

READERS: dict[str, Callable[[Path], Any]] = {
    "runs": lambda path: list(run_lines(path)),
    "states": states_of,
    "devices": devices_in,
    "report": lambda path: html(report_of(path)),
    "timings": timings_of,
    "compare": lambda path: compare({}, states_of(path, needed=False), [], timings_of(path, compared=True)),
    "merge": lambda path: merge(path.parent / "out.sqlite", [path]),
}


def changed(*statements: str, values: Sequence[Any] = (), times: bool = False) -> Callable[[Path], None]:
    """A good history (of a search, or of times), then these statements."""

    def make(path: Path) -> None:
        if times:
            timed(path, TIMED, ratio_of(1.5))
        else:
            finished(path, [PASSED, FAILED, REFUSED])
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
            for statement in statements:
                db.execute(statement, values if "?" in statement else ())

    return make


ENDLESS = "WITH RECURSIVE endless(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM endless) SELECT"
RUN_VIEW = ", ".join(f"n AS {name}" for name in COLUMNS["runs"])

WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "endless runs": (
        changed("DROP TABLE runs", f"CREATE VIEW runs AS {ENDLESS} {RUN_VIEW} FROM endless"),
        "not a history: view 'runs' acts on runs",
    ),
    "a trigger": (
        changed("CREATE TRIGGER t AFTER INSERT ON runs BEGIN DELETE FROM results; END"),
        "not a history: trigger 't' acts on runs; a history has none",
    ),
    "an index": (
        changed("CREATE INDEX i ON results (op, zeroblob(1000))"),
        "not a history: index 'i' acts on results",
    ),
    "a computed column": (
        changed("ALTER TABLE results ADD COLUMN x AS (zeroblob(999999999))"),
        "not a history: table results is not as Opconform makes it",
    ),
    "a column that is code": (
        changed('ALTER TABLE runs ADD COLUMN "x) VALUES (1); DROP TABLE runs; --" TEXT'),
        "not a history: table runs is not as Opconform makes it",
    ),
    "a long default": (
        changed(f"ALTER TABLE results ADD COLUMN y TEXT DEFAULT '{'x' * 100_000}'"),
        "not a history: table results is not as Opconform makes it",
    ),
    "no results": (
        changed("DROP TABLE results"),
        "no such table: results; a history has runs, results, test_backend_ops",
    ),
    "no cases": (changed("DROP TABLE test_backend_ops"), "no such table: test_backend_ops"),
    "no times": (changed("DROP TABLE timings"), "no such table: timings"),
    "another version": (changed("PRAGMA user_version = 1"), "is not as Opconform makes it"),
    "a version below 0": (changed("PRAGMA user_version = -7"), "is not as Opconform makes it"),
    "a thousand million shards": (changed("UPDATE runs SET shards = 1000000000"), "shard 1 of 1000000000"),
    "shard 0": (changed("UPDATE runs SET shard = 0"), "shard 0 of 1"),
    "text for a number": (changed("UPDATE runs SET seed = 'x'"), "runs.seed holds str; it must hold INTEGER"),
    "bytes for text": (changed("UPDATE runs SET pairs = x'5b5d'"), "runs.pairs holds bytes; it must hold TEXT"),
    "a fraction for a count": (changed("UPDATE results SET passed = 1.5"), "results.passed holds float"),
    "a count below 0": (changed("UPDATE results SET passed = -1"), "results.passed is -1; it must be 0 or above"),
    "endless seconds": (changed("UPDATE results SET seconds = 9e999"), "results.seconds is inf"),
    "text that is not UTF-8": (changed("UPDATE runs SET devices = CAST(x'ff' AS TEXT)"), "not a history: "),
    "deep JSON": (changed("UPDATE runs SET pairs = ?", values=["[" * 100_000]), "nested too deep"),
    "much JSON": (changed("UPDATE runs SET pairs = ?", values=["[" + "[]," * 2_000_000 + "[]]"]), "parts"),
    "a number of many digits": (changed("UPDATE runs SET pairs = ?", values=["9" * 10_000]), "not a history: "),
    "NaN": (changed("UPDATE runs SET devices = '{\"x\": NaN}'"), "it holds NaN"),
    "pairs of three": (changed("UPDATE runs SET pairs = '[[1, 2, 3]]'"), "runs.pairs[0] has 3 values; it must have 2"),
    "devices that are a list": (changed("UPDATE runs SET devices = '[]'"), "runs.devices is a list"),
    "a time that is none": (changed("UPDATE runs SET started = 'soon'"), "started at 'soon', which is no time"),
    "an id with a line break": (changed("UPDATE runs SET run_id = 'a' || char(10) || 'b'"), "a run's id is not a word"),
    "a result of another op": (
        changed('UPDATE results SET result = replace(result, \'"op": "acc"\', \'"op": "set"\')'),
        "results.result is of another op",
    ),
    "a result that is none": (changed("UPDATE results SET result = '{}'"), "result has no 'op'"),
}

WRONG_TIMES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a time that is text": (changed("UPDATE timings SET time_us = 'x'", times=True), "timings.time_us holds str"),
    "a time below 0": (
        changed("UPDATE timings SET time_us = -1, time_low_us = -1", times=True),
        "is -1.0; it must be 0 or above",
    ),
    "an endless ratio": (changed("UPDATE timings SET ratio_high = 9e999", times=True), "timings.ratio_high is inf"),
    "an interval the wrong way round": (
        changed("UPDATE timings SET ratio_low = 2, time_low_us = 99", times=True),
        "are no median with an interval",
    ),
    "half an interval": (changed("UPDATE timings SET confidence = NULL", times=True), "are no median with an interval"),
    "a confidence above 1": (
        changed("UPDATE timings SET ratio_confidence = 2, confidence = 2", times=True),
        "are no median with an interval",
    ),
    "a cache that is none": (
        changed("UPDATE timings SET cache = 'lukewarm'", times=True),
        "neither of a warm case nor of a cold one",
    ),
}
READ_TIMES = ("runs", "report", "timings", "compare", "merge")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", WRONG)
def test_a_history_that_cannot_be_is_one_line_in_no_time(name: str, reader: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    if reader in ("runs", "devices", "timings") and message.startswith("result") and "Opconform" not in message:
        pytest.skip("it reads no results")
    refused(make, message, reader, tmp_path / "x.sqlite")


@pytest.mark.parametrize("reader", READ_TIMES)
@pytest.mark.parametrize("name", WRONG_TIMES)
def test_a_time_that_cannot_be_is_one_line_in_no_time(name: str, reader: str, tmp_path: Path) -> None:
    refused(*WRONG_TIMES[name], reader, tmp_path / "x.sqlite")


def refused(make: Callable[[Path], None], message: str, reader: str, path: Path) -> None:
    make(path)
    before = path.read_bytes()
    with quickly(), pytest.raises(UsageError) as caught:
        READERS[reader](path)
    assert len(safe(str(caught.value)).split("\n")) == 1
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert path.read_bytes() == before
    assert not (path.parent / "out.sqlite").exists()


@pytest.mark.parametrize("name", ["endless runs", "a trigger", "a column that is code", "no results"])
def test_nothing_is_written_into_a_file_that_would_act(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    WRONG[name][0](path)
    finished(tmp_path / "good.sqlite", [PASSED])
    before = path.read_bytes()
    for write in (check_history, open_history, lambda path: merge(path, [tmp_path / "good.sqlite"])):
        with quickly(), pytest.raises(UsageError):
            write(path)
    assert path.read_bytes() == before


def test_tables_and_views_of_ones_own_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    changed("CREATE VIEW mine AS SELECT op FROM results", "CREATE TABLE notes (x)", "ANALYZE")(path)
    for reader in READERS.values():
        reader(path)


def test_pages_that_refer_to_each_other_in_a_circle_have_an_end(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    finished(path, [PASSED] * 4000)
    raw = bytearray(path.read_bytes())
    size = int.from_bytes(raw[16:18], "big")
    interior = [page for page in range(1, len(raw) // size) if raw[page * size] == 5]
    assert interior
    for page in interior:  # every child of every branch is the branch itself
        start = page * size
        count = int.from_bytes(raw[start + 3 : start + 5], "big")
        for cell in range(count):
            place = start + int.from_bytes(raw[start + 12 + 2 * cell : start + 14 + 2 * cell], "big")
            raw[place : place + 4] = (page + 1).to_bytes(4, "big")
    path.write_bytes(raw)
    for reader in READERS.values():
        with quickly(), pytest.raises(UsageError, match=r"damaged|malformed"):
            reader(path)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "long"])
def test_what_is_no_file_is_never_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path = Path("/dev/zero") if kind == "device" else tmp_path / ("x" * 5000)
    for reader in (*list(READERS.values())[:5], open_history, lambda path: merge(tmp_path / "out.sqlite", [path])):
        with quickly(), pytest.raises(UsageError):
            reader(path)
    assert not (tmp_path / "out.sqlite").exists()


# Merging


def copy_of(path: Path, other: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(other, isolation_level=None)) as to:
        db.backup(to)
        for statement in statements:
            to.execute(statement)
        to.execute("PRAGMA journal_mode = DELETE")
    return other


def contents(path: Path) -> dict[str, list[tuple[object, ...]]]:
    return {table: query(path, f"SELECT * FROM {table}") for table in TABLES}


CASE = "INSERT INTO test_backend_ops SELECT * FROM test_backend_ops LIMIT 1"
RESULT = (
    "INSERT INTO results SELECT run_id, 'set', target, device, passed, failed, unsupported, reasons, kind, case_id, "
    "case_json, failed_known, known_bugs, seconds, cases_per_second, '' FROM results"
)


NAMED = ", ".join(list(COLUMNS["timings"])[1:])
TIME = "INSERT INTO timings SELECT * FROM timings LIMIT 1"


@pytest.mark.parametrize(
    ("forgery", "said"),
    [
        (TIME, "has 1 more times after its end"),
        ("UPDATE timings SET slower = 0", "has other times"),
        ("DELETE FROM timings WHERE cache = 'warm'", "has other times"),
        (
            f"INSERT INTO timings (run_id, {NAMED}) SELECT runs.run_id, {NAMED} FROM runs, timings",
            "more times after its",
        ),
        (CASE, "has 1 more cases after its end"),
        (RESULT, "has 1 more results after its end"),
        ("UPDATE test_backend_ops SET passed = 1, error_message = ''", "has other cases"),
        ("UPDATE results SET kind = '', case_id = '', failed = 0", "has another result of acc on ggml:Vulkan0"),
        ("UPDATE runs SET seed = 8", "was set up in another way"),
        ("UPDATE runs SET devices = '{}'", "was set up in another way"),
        ("UPDATE runs SET ended = '2099'", "ended at another time"),
    ],
)
def test_a_run_is_never_replaced_by_a_strangers_copy(forgery: str, said: str, tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.sqlite", tmp_path / "out.sqlite"
    finished(mine, [PASSED, FAILED])
    timed(mine, TIMED, ratio_of(1.5))
    merge(out, [mine])
    before = contents(out)
    forged = copy_of(mine, tmp_path / "forged.sqlite", forgery)
    other = tmp_path / "other.sqlite"
    finished(other, [PASSED])
    with pytest.raises(UsageError, match=said) as caught:
        merge(out, [other, forged])
    assert str(caught.value).startswith(f"{forged} contradicts {out}: run ")
    assert contents(out) == before
    done = CliRunner().invoke(main, ["merge", str(out), str(forged)])
    assert (done.exit_code, "Traceback" in done.output) == (2, False)


def test_a_run_that_goes_on_is_completed_and_a_shorter_copy_changes_nothing(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.sqlite", tmp_path / "out.sqlite"
    run = run_of(mine)
    record(run, [PASSED, FAILED], close=False)
    early = copy_of(mine, tmp_path / "early.sqlite")
    record(run, [PASSED], result_of([PASSED, FAILED, PASSED]))
    for inputs, fates in (([early], [(1, 0, 0)]), ([mine, early], [(0, 1, 0), (0, 0, 1)])):
        assert [(m.added, m.replaced, m.known) for m in merge(out, inputs)] == fates
    assert contents(out) == contents(mine)
    # and a copy that goes on in another way is no copy
    forged = copy_of(early, tmp_path / "forged.sqlite", CASE, "UPDATE test_backend_ops SET passed = 0")
    with pytest.raises(UsageError, match="has other cases"):
        merge(out, [forged])


def test_results_that_were_kept_without_cases_get_them_back(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.sqlite", tmp_path / "out.sqlite"
    finished(mine, [PASSED, FAILED])
    merge(out, [mine], cases=False)
    assert [(m.added, m.replaced, m.known) for m in merge(out, [mine])] == [(0, 1, 0)]
    assert contents(out) == contents(mine)


def test_a_history_that_was_merged_can_still_be_read(tmp_path: Path) -> None:
    out = tmp_path / "out.sqlite"
    finished(out, [PASSED])
    before = contents(out)
    for name, (make, _) in {**WRONG, **WRONG_TIMES}.items():
        bad = tmp_path / f"{name}.sqlite"
        make(bad)
        with pytest.raises(UsageError):
            merge(out, [bad])
    assert contents(out) == before
    assert len(list(run_lines(out))) == 1
    assert timings_of(out) == []


# Fuzzing


def good(path: Path) -> None:
    """A history with a whole failure in it, a run that was killed, and two shards."""
    failure = replace(one_failure(VULKAN), stderr="it said", provenance=("moved",), replay_options=("--max-bytes 9",))
    run = run_of(path)
    record(run, [PASSED, FAILED], replace(result_of([PASSED, FAILED]), failure=failure))
    record(run_of(path, shard=(1, 2)), [PASSED, Verdict(acc(2), unsupported="no")], result_of([PASSED]))
    record(run_of(path, shard=(2, 2)), [FAILED], close=False)
    timed(path, TIMED, ratio_of(1.5))


@cache
def whole() -> bytes:
    with TemporaryDirectory() as name:
        good(Path(name, "h.sqlite"))
        return copy_of(Path(name, "h.sqlite"), Path(name, "copy.sqlite")).read_bytes()


@contextmanager
def fuzzed() -> Iterator[Path]:
    """A good history, to be spoilt."""
    with TemporaryDirectory() as name:
        path = Path(name, "h.sqlite")
        path.write_bytes(whole())
        yield path


def read_by_all(path: Path) -> None:
    """Each reader reads it, or says in one line why not; a merge takes all of it or nothing."""
    out = path.parent / "out.sqlite"
    finished(out, [PASSED])
    before = contents(out)
    for name, reader in READERS.items():
        try:
            with quickly():
                found = reader(path)
        except UsageError as error:
            one_line(error)
            if name == "merge":
                assert contents(out) == before
            continue
        if name == "report":
            safe(found)
        if name == "merge":
            states_of(out)
            timings_of(out)
            assert {*before["runs"]} <= {*contents(out)["runs"]}
    out.unlink()


def one_line(error: UsageError) -> None:
    assert len(safe(str(error)).split("\n")) == 1


FUZZ = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))

CELLS = [(table, column) for table in TABLES for column in COLUMNS[table]]
JSON_CELLS = ["runs.devices", "runs.pairs", "runs.options", "results.result", "results.reasons", "results.known_bugs"]


@FUZZ
@given(
    cell=st.sampled_from(CELLS),
    value=st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary(max_size=9) | st.text() | st.none(),
)
def test_any_value_in_any_cell(cell: tuple[str, str], value: Any) -> None:
    with fuzzed() as path:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            try:
                db.execute(f"UPDATE {cell[0]} SET {cell[1]} = ?", (value,))
            except (sqlite3.Error, UnicodeEncodeError):  # null where none may be; a lone surrogate
                return
        read_by_all(path)


@FUZZ
@given(cell=st.sampled_from(JSON_CELLS), data=st.data())
def test_any_value_in_any_place_of_its_json(cell: str, data: st.DataObject) -> None:
    table, column = cell.split(".")
    with fuzzed() as path:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            (text,) = db.execute(f"SELECT {column} FROM {table} ORDER BY length({column}) DESC LIMIT 1").fetchone()
            plain = json.loads(text)
            places = paths(plain)
            if places:
                put(plain, data.draw(st.sampled_from(places)), data.draw(anything))
            else:
                plain = data.draw(anything)
            db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (json.dumps(plain), text))
        read_by_all(path)


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_any_bytes_at_any_place_of_the_file(changes: list[tuple[int, bytes]]) -> None:
    raw = bytearray(whole())
    for place, piece in changes:
        place %= len(raw)
        raw[place : place + len(piece)] = piece
    with fuzzed() as path:
        path.write_bytes(raw)
        read_by_all(path)
