"""The history: its rows, the file they stand in, what is printed of them, and what is left when things go wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case, Param, _plain
from opconform.harness.model.layouts import Layout
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Device
from opconform.harness.run.interrupts import uninterrupted
from opconform.harness.run.target import Target
from opconform.harness.search.result import KnownBug, Lie, Result
from opconform.harness.search.settings import Settings
from opconform.reports import history
from opconform.reports.database import VERSION, check_history, open_history, read_history
from opconform.reports.history import EventLog, History, events_path, recorders
from opconform.reports.merge import merge
from opconform.reports.rows import CSV_COLUMNS, UPSTREAM, CsvPrinter, Rows, SqlPrinter, build_of, names_of
from opconform.reports.run import Run
from opconform.reports.states import states_of
from tests.histories import (
    ACC,
    FAILED,
    PAIR,
    PASSED,
    REFUSED,
    VULKAN,
    failure_of,
    finished,
    query,
    record,
    result_of,
    run_of,
)
from tests.samples import acc
from tests.unit.strategies import any_layouts

#: As `test-backend-ops --output sql` declares it.
UPSTREAM_TABLE = """test_time TEXT, build_commit TEXT, backend_name TEXT, op_name TEXT, op_params TEXT, test_mode TEXT,
supported INTEGER, passed INTEGER, error_message TEXT, time_us REAL, flops REAL, bandwidth_gb_s REAL, memory_kb INTEGER,
n_runs INTEGER, device_description TEXT, backend_reg_name TEXT"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "history.sqlite"


@given(any_layouts(), any_layouts(), st.none() | st.integers(0, 9), st.none() | st.text())
def test_the_key_of_a_case_is_canonical_json(b: Layout, a: Layout, keep: int | None, inplace: str | None) -> None:
    params: dict[str, Param] = {"c": True, "a": 1, "b": -2.5e300, "d": 'an "ö"\n'}
    for case in (
        Case("ö", params, {"b": b, "a": a}, {"out": b}, 'a "recipe"', 5, keep, inplace),
        Case("acc", {}, {}, {"z": a, "a": b}, keep=keep),
    ):
        assert case.key == json.dumps(_plain(case), sort_keys=True, separators=(",", ":"))


def test_the_table_begins_with_upstreams_columns(path: Path) -> None:
    finished(path, [PASSED])
    columns = [f"{row[1]} {row[2]}" for row in query(path, "PRAGMA table_info(test_backend_ops)")]
    assert columns[:16] == " ".join(UPSTREAM_TABLE.split()).split(", ")
    assert columns[16:] == [
        *("run_id TEXT", "target TEXT", "case_id TEXT", "kind TEXT", "recipe TEXT", "seed INTEGER"),
        "shrinking INTEGER",
    ]


def test_what_upstream_prints_as_sql_goes_into_the_same_table(path: Path) -> None:
    finished(path, [PASSED])
    with closing(sqlite3.connect(path)) as db:
        db.executescript(printed(SqlPrinter))
    assert query(path, "SELECT count(*), count(run_id) FROM test_backend_ops") == [(4, 1)]
    assert states_of(path)[PAIR].executed == 1


def test_a_row_says_what_upstream_would_say(path: Path) -> None:
    finished(path, [PASSED, FAILED, REFUSED])
    columns = (
        "build_commit, backend_name, backend_reg_name, op_name, test_mode, supported, passed, n_runs, error_message"
    )
    same = ("4baa480", "Vulkan0", "Vulkan", "ACC", "test")
    assert query(path, f"SELECT {columns} FROM test_backend_ops") == [
        (*same, 1, 1, 1, ""),
        (*same, 1, 0, 1, "WRONG VALUES: 1 of 2 elements differ 'here'"),
        (*same, 0, 0, 0, 'takes no "b" of 5'),
    ]
    ((params, at, microseconds),) = query(path, "SELECT op_params, test_time, time_us FROM test_backend_ops LIMIT 1")
    assert f"ACC({params})" == str(PASSED.case)
    assert str(at)[10] == "T"
    assert len(str(at)) == len("2026-01-26T12:00:00Z")
    assert microseconds == pytest.approx(2.0)


def test_a_row_says_which_run_and_case_it_is(path: Path) -> None:
    run = finished(path, [FAILED])
    (row,) = query(path, "SELECT run_id, target, case_id, kind, recipe, seed, shrinking FROM test_backend_ops")
    assert row == (run.id, "ggml:Vulkan0", FAILED.case.id, "WRONG VALUES", "small_int", 0, 0)


LIE = Lie(acc(1, 1, 1, 3), "the kernel asserts rows", "signal SIGABRT")


def test_what_a_device_aborts_at_is_a_row_of_its_kind_and_no_failure_of_the_pair(path: Path) -> None:
    finished(path, [PASSED], lies=(LIE,))
    rows = query(path, "SELECT case_id, kind, supported, passed, error_message FROM test_backend_ops")
    assert rows[1:] == [
        (LIE.case.id, "SUPPORTS_OP LIES", 1, 0, "SUPPORTS_OP LIES: signal SIGABRT: the kernel asserts rows")
    ]
    state = states_of(path)[PAIR]
    assert (state.outcome, state.executed) == ("passed", 1)
    ((kept,),) = query(path, "SELECT result FROM results")
    assert Result.from_json(json.loads(str(kept))).lies == (LIE,)


def test_a_result_of_an_older_history_has_less_of_what_a_device_aborts_at() -> None:
    plain = result_of([PASSED], lies=(LIE,)).to_json()
    for name in ("versions", "packed_twin", "stderr"):
        plain["lies"][0].pop(name)
    assert Result.from_json(plain).lies == (LIE,)


def test_what_a_device_aborts_at_is_a_row_of_the_csv() -> None:
    stream = io.StringIO()
    CsvPrinter(stream).result(ACC, VULKAN, result_of([PASSED], lies=(LIE,)))
    (row,) = csv.DictReader(io.StringIO(stream.getvalue()))
    assert (row["supported"], row["passed"]) == ("1", "0")
    assert row["error_message"] == "SUPPORTS_OP LIES: signal SIGABRT: the kernel asserts rows"


@pytest.mark.parametrize(
    ("device", "versions", "names", "build"),
    [
        ("CUDA1", {"ggml": "0.9.5 4baa480", "build": "b7836"}, ("CUDA1", "CUDA"), "4baa480"),
        ("cuda:1", {"torch": "2.13.0+cpu"}, ("cuda:1", "cuda"), "torch 2.13.0+cpu"),
        ("0", {"driver": "20260101"}, ("ggml:0", "ggml"), "driver 20260101"),
        ("cpu", {}, ("cpu", "cpu"), "unknown"),
    ],
)
def test_devices_have_the_names_that_ggml_gives_them(
    device: str, versions: dict[str, str], names: tuple[str, str], build: str
) -> None:
    target = Target("ggml", Device(device, "", versions))
    assert (names_of(target), build_of(target)) == (names, build)


def test_the_run_and_its_result_are_kept(path: Path) -> None:
    run = finished(path, [PASSED, FAILED, REFUSED], known_bugs=(KnownBug("acc/kb", "", True),), failed_known=("acc/x",))
    ((*values, devices, pairs),) = query(
        path, "SELECT run_id, command, seed, examples, shard, shards, ended IS NULL, devices, pairs FROM runs"
    )
    assert values == [run.id, "search", 7, 1000, 1, 1, 0]
    assert json.loads(str(devices))["ggml:Vulkan0"]["versions"]["build"] == "b7836"
    assert json.loads(str(pairs)) == [["acc", "ggml:Vulkan0"]]
    ((*counts, case_id, case, reasons),) = query(
        path, "SELECT passed, failed, unsupported, kind, cases_per_second, case_id, case_json, reasons FROM results"
    )
    assert counts == [1, 1, 1, "WRONG VALUES", 2.0]
    assert (case_id, Case.from_json(json.loads(str(case)))) == (FAILED.case.id, FAILED.case)
    assert json.loads(str(reasons)) == {'takes no "b"\nof 5': 1}


def test_attempts_to_shrink_are_marked_up_to_the_result(path: Path) -> None:
    observers = recorders(run_of(path))
    for observer in observers:
        observer.begins(ACC, VULKAN)
        observer.verdicts(ACC, VULKAN, [FAILED])
        observer.shrinking(ACC, VULKAN, FAILED)
        observer.verdicts(ACC, VULKAN, [PASSED])
        observer.result(ACC, VULKAN, result_of([FAILED]))
        observer.begins(ACC, VULKAN)
        observer.verdicts(ACC, VULKAN, [REFUSED])
        observer.close()
    assert query(path, "SELECT shrinking FROM test_backend_ops") == [(0,), (1,), (0,)]
    (log,) = path.parent.glob("events/*.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event.get("shrinking", False) for event in events if event["event"] == "case"] == [False, True, False]


def test_the_event_log_has_a_line_of_json_for_everything(path: Path) -> None:
    run = run_of(path)
    record(run, [PASSED, replace(FAILED, stderr="it\nsaid"), REFUSED], result_of([FAILED]))
    events = [json.loads(line) for line in events_path(path, run.id).read_text().splitlines()]
    assert [event["event"] for event in events] == ["run", "begin", "case", "case", "case", "result", "end"]
    passed, failed, refused = events[2:5]
    assert (passed["verdict"], passed["id"], passed["op"], passed["target"]) == ("passed", acc(3).id, *PAIR[:2])
    assert (failed["verdict"], failed["kind"], failed["stderr"]) == ("failed", "WRONG VALUES", "it\nsaid")
    assert (refused["verdict"], refused["reason"]) == ("unsupported", 'takes no "b"\nof 5')
    assert Case.from_json({"format": "opconform-case/1", **failed["case"]}) == FAILED.case
    assert Result.from_json(events[5]).failure == failure_of(FAILED)


def test_a_long_case_is_kept_without_its_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LARGEST_CASE", 10)
    finished(path, [Verdict(FAILED.case.with_data({"a": b"1234" * 2, "b": b"1234" * 2}), FAILED.findings)])
    ((text,),) = query(path, "SELECT case_json FROM results")
    case = Case.from_json(json.loads(str(text)))
    assert case == FAILED.case
    assert case.data is None


def test_what_is_recorded_is_there_before_anything_is_closed(path: Path) -> None:
    record(run_of(path), [PASSED, FAILED], close=False)
    assert query(path, "SELECT count(*) FROM test_backend_ops") == [(2,)]
    (log,) = path.parent.glob("events/*.jsonl")
    assert len(log.read_text().splitlines()) == 4


def test_nothing_is_written_before_the_run_begins(path: Path) -> None:
    for observer in recorders(run_of(path)):
        observer.close()
    assert not path.parent.exists()


def test_history_none_records_nothing() -> None:
    assert recorders(run_of(Path("none"))) == []


def test_the_default_place_is_in_the_report_folder(tmp_path: Path) -> None:
    found = recorders(Run(Settings(report_dir=str(tmp_path)), "search"))
    assert [observer.path.parent for observer in found if isinstance(observer, History)] == [tmp_path]
    assert [observer.path.parent for observer in found if isinstance(observer, EventLog)] == [tmp_path / "events"]


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE test_backend_ops (test_time TEXT)")
        db.commit()


def newer(path: Path) -> None:
    with closing(open_history(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")


def text(path: Path) -> None:
    path.write_text("this is not a database" * 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "an SQLite file of another program, not a history of Opconform"),
        (newer, f"written by a newer Opconform (history version {VERSION + 1}; this one has {VERSION})"),
        (text, "not a history: file is not a database"),
        (Path.mkdir, "is not a file"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_in_one_line_and_stays(make, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(UsageError) as caught:
        recorders(run_of(path))
    assert str(caught.value) == f"--history {path}: {message} (--history none runs without)"
    for refuse in (check_history, read_history, lambda path: merge(tmp_path / "out.sqlite", [path])):
        with pytest.raises(UsageError, match=r"x.sqlite: "):
            refuse(path)
    with pytest.raises(UsageError, match=r"x.sqlite: "):
        open_history(path)
    assert (path.read_bytes() if path.is_file() else b"") == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.sqlite"]


def test_a_place_that_cannot_be_written_is_refused_by_name_and_passed_over_by_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(UsageError, match="taken is not a folder"):
        recorders(run_of(taken / "deep" / "x.sqlite"))
    assert recorders(Run(Settings(report_dir=str(taken)), "search")) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"no history is written: {taken}/history.sqlite: {taken} is not a folder"


def test_an_error_on_the_way_is_said_once_and_ends_the_record_only(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = History(path, run_of(path))
    found.begins(ACC, VULKAN)
    found.verdicts(ACC, VULKAN, [PASSED])
    with closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE test_backend_ops")
        db.commit()
    found.verdicts(ACC, VULKAN, [PASSED])
    found.verdicts(ACC, VULKAN, [PASSED])
    found.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"from here on nothing is recorded in {path}: no such table: test_backend_ops"


def test_an_empty_file_becomes_a_history_and_is_none_before(tmp_path: Path) -> None:
    path = tmp_path / "h.sqlite"
    path.touch()
    with pytest.raises(UsageError, match="the file is empty"):
        read_history(path)
    finished(path, [PASSED])
    assert states_of(path)[PAIR].outcome == "passed"


def test_reading_what_a_killed_run_left_tidies_up(path: Path) -> None:
    record(run_of(path), [PASSED], close=False)
    assert Path(f"{path}-wal").exists()
    states_of(path)
    assert query(path, "SELECT count(*) FROM test_backend_ops") == [(1,)]


# Printing rows


def printed(kind: type[CsvPrinter] | type[SqlPrinter]) -> str:
    stream = io.StringIO()
    kind(stream).verdicts(ACC, VULKAN, [PASSED, FAILED, REFUSED])
    return stream.getvalue()


def test_the_sql_that_is_printed_gives_the_same_rows() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(printed(SqlPrinter))
        rows = db.execute("SELECT * FROM test_backend_ops").fetchall()
        columns = [f"{row[1]} {row[2]}" for row in db.execute("PRAGMA table_info(test_backend_ops)")]
    assert columns == " ".join(UPSTREAM_TABLE.split()).split(", ")
    assert rows == [Rows(ACC, VULKAN).of(verdict, rows[0][0]) for verdict in (PASSED, FAILED, REFUSED)]


def test_the_csv_that_is_printed_has_upstreams_columns_first() -> None:
    text = printed(CsvPrinter)
    assert text.startswith(
        '"backend_name","op_name","op_params","test_mode","supported","error_message","backend_reg_name",'
    )
    assert set(CSV_COLUMNS) == set(UPSTREAM)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["supported"], row["passed"]) for row in rows] == [("1", "1"), ("1", "0"), ("0", "0")]
    assert rows[1]["error_message"] == "WRONG VALUES: 1 of 2 elements differ 'here'"
    assert rows[2]["error_message"] == 'takes no "b" of 5'


def test_ctrl_c_waits_for_what_has_begun_and_a_second_one_does_not() -> None:
    done = []

    def interrupted(times: int) -> None:
        with uninterrupted():
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
            done.append(times)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without it
    try:
        for times in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                interrupted(times)
        assert done == [1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
