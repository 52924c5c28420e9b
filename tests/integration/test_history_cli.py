"""The history from the command line and from pytest: killed runs, several writers, shards, comparing, `--output`."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from opconform.cli import main
from opconform.harness.draw.known import known_cases
from tests.samples import spec, within

HISTORY = Path("opconform-out/history.sqlite")
SHORT = ("--op", "acc", "--max-examples", "40", "--seed", "1", "--no-isolation")

#: A backend that is slow, and puts down a letter for every case that it has run.
COUNTING = """
import time
from pathlib import Path
from tests.backends.sample import Good

class Mine(Good):
    def run(self, case, buffers):
        time.sleep({seconds})
        super().run(case, buffers)
        with open({log!r}, "a") as log:
            log.write("x")
"""

MINE = "from tests.backends.sample import {name}\n\nclass Mine({name}):\n    pass\n"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opconform(*arguments: str, status: int = 0) -> Result:
    found = CliRunner().invoke(main, arguments)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == status, found.output
    return found


def mine(name: str) -> str:
    """A backend of one name, whatever it does: what is tested is the file that changes from run to run."""
    Path("mine.py").write_text(MINE.format(name=name))
    return "mine.py:Mine"


def searched(name: str, *arguments: str, status: int = 0) -> Result:
    """A short search, with nothing carried over from the one before."""
    for file in Path(".hypothesis").rglob("*"):
        if file.is_file():
            file.unlink()
    return opconform("test", "--backend", mine(name), *SHORT, *arguments, status=status)


def query(sql: str, path: Path = HISTORY) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def events() -> list[dict[str, Any]]:
    logs = sorted(Path("opconform-out/events").iterdir())
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """A search by a process and its worker, in a group of their own."""
    command = [sys.executable, "-c", "from opconform.cli import main; main()", "test", *arguments]
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=silent, stderr=silent, start_new_session=True)


@pytest.mark.skipif(sys.platform != "linux", reason="counts on the worker to die with its parent")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_half_way_leaves_every_finished_case(end: signal.Signals, empty_folder: Path) -> None:
    log = empty_folder / "ran"
    log.touch()
    Path("mine.py").write_text(COUNTING.format(seconds=0.02, log=str(log)))
    with start("--backend", "mine.py:Mine", "--op", "acc,set") as process:
        assert within(30, lambda: log.stat().st_size > 100)
        (os.kill if end == signal.SIGKILL else os.killpg)(process.pid, end)
        process.wait(10)
    time.sleep(0.2)
    ran = log.stat().st_size
    ((kept,),) = query("SELECT count(*) FROM test_backend_ops WHERE passed")
    assert query("PRAGMA integrity_check") == [("ok",)]
    assert ran - 8 <= kept <= ran  # 8 cases travel together; those on their way are not finished
    found = Counter(event["event"] for event in events())
    assert 0 <= found["case"] - kept <= 8
    assert (found["run"], found["result"], found["end"]) == (1, 0, end != signal.SIGKILL)
    assert query("SELECT ended IS NULL FROM runs") == [(end == signal.SIGKILL,)]
    assert ("unfinished" in opconform("runs").output) == (end == signal.SIGKILL)
    # and the next run goes on in the same file
    Path("mine.py").write_text(MINE.format(name="Good"))
    assert "not finished" not in opconform("test", "--backend", "mine.py:Mine", *SHORT).output
    assert query("SELECT count(DISTINCT run_id) FROM test_backend_ops") == [(2,)]


def test_several_processes_write_at_once_and_none_waits_in_vain() -> None:
    arguments = ("--backend", spec("Good"), "--op", "acc", "--max-examples", "400", "--no-isolation")
    processes = [start(*arguments, "--seed", str(seed)) for seed in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert query("SELECT count(*), count(ended) FROM runs") == [(3, 3)]
    rows = query("SELECT count(*) FROM test_backend_ops GROUP BY run_id ORDER BY run_id")
    passed = query("SELECT passed FROM results ORDER BY run_id")
    assert len(rows) == 3
    assert all(
        row[0] >= counted[0] >= 400 for row, counted in zip(rows, passed)
    )  # cases that say nothing count as no pass
    assert query("PRAGMA integrity_check") == [("ok",)]


def test_the_rows_are_the_cases_that_the_matrix_counts() -> None:
    opconform("test", "--backend", spec("IgnoresNe3"), "--backend", spec("SaysNo"), *SHORT, status=1)
    counts = "SELECT sum(passed), sum(supported AND NOT passed), sum(NOT supported) FROM test_backend_ops"
    (rows, none), (tally, no_tally) = (
        query(f"{counts} GROUP BY target ORDER BY target"),
        query("SELECT passed, failed, unsupported FROM results ORDER BY target"),
    )
    of_known = len(known_cases("acc"))  # they have rows too, and are no draws
    assert none == (*no_tally[:2], no_tally[2] + of_known)
    assert rows[0] >= tally[0] > 0  # cases that say nothing have rows, and count as no pass
    assert rows[1:] == tally[1:]
    ((case_id, kind),) = query("SELECT case_id, kind FROM results WHERE kind <> ''")
    assert kind == "WRONG VALUES"
    assert [(case_id, kind)] == query(
        f"SELECT DISTINCT case_id, kind FROM test_backend_ops WHERE case_id = '{case_id}'"
    )
    assert query("SELECT count(*) > 0 FROM test_backend_ops WHERE shrinking") == [(1,)]
    assert query("SELECT min(passed) FROM test_backend_ops WHERE NOT shrinking AND target LIKE '%SaysNo%'") == [(0,)]


def test_a_device_that_is_lost_leaves_the_run_unfinished() -> None:
    opconform("test", "--backend", spec("OpensBadly"), "--op", "acc", status=1)
    assert query("SELECT command, json_array_length(pairs) FROM runs") == [("search", 1)]
    assert "not finished" in opconform("compare", str(HISTORY), str(HISTORY), status=1).output


def test_history_none_leaves_nothing() -> None:
    opconform("test", "--backend", spec("Good"), *SHORT, "--history", "none")
    assert not Path("opconform-out").exists()


@pytest.mark.parametrize("command", ["test", "replay acc/kb001"])
def test_a_history_that_is_none_is_a_usage_error(command: str) -> None:
    Path("x.sqlite").write_text("no")
    found = opconform(*command.split(), "--backend", spec("Good"), "--history", "x.sqlite", status=2)
    assert found.output.splitlines()[-1] == (
        "Error: --history x.sqlite: not a history: file is not a database (--history none runs without)"
    )


# --output


def test_json_is_one_document_of_the_results_and_the_rest_is_on_stderr() -> None:
    found = opconform("test", "--backend", spec("IgnoresNe3"), *SHORT, "--output", "json", status=1)
    document = json.loads(found.stdout)
    (result,) = document["results"]
    assert (document["seed"], result["op"], result["failure"]["findings"][0]["kind"]) == (1, "acc", "WRONG VALUES")
    assert document["pairs"] == [["acc", spec("IgnoresNe3") + ":0"]]
    assert query("SELECT run_id FROM runs") == [(document["run"],)]
    for text in ("seed 1: ", "WRONG VALUES  acc on ", " pairs of op and device "):
        assert text in found.stderr


@pytest.mark.parametrize("command", ["test", "replay"])
def test_csv_and_sql_are_the_rows_of_the_history(command: str) -> None:
    what = ("test", *SHORT) if command == "test" else ("replay", "acc/kb001", "--no-isolation")
    rows = list(csv.DictReader(io.StringIO(opconform(*what, "--backend", spec("Good"), "--output", "csv").stdout)))
    kept = query("SELECT op_name, op_params, passed FROM test_backend_ops")
    assert [(row["op_name"], row["op_params"], int(row["passed"])) for row in rows] == kept
    sql = opconform(*what, "--backend", spec("Good"), "--output", "sql", "--history", "none").stdout
    with closing(sqlite3.connect("upstream.sqlite")) as db:
        db.executescript(sql)
    assert query("SELECT op_name, op_params, passed FROM test_backend_ops", Path("upstream.sqlite")) == kept


def test_github_gets_annotations_beside_the_screen_and_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    found = opconform("test", *SHORT, "--backend", mine("IgnoresNe3"), "--output", "github", status=1)
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("::error ")]
    assert "title=WRONG VALUES%3A acc on mine.py%3AMine%3A0::" in line
    assert "WRONG VALUES  acc on mine.py:Mine:0" in found.stdout
    assert "| acc | ❌ WRONG VALUES |" in Path("summary.md").read_text()


def test_sarif_is_one_document_and_nothing_else_on_stdout() -> None:
    found = opconform("test", *SHORT, "--backend", mine("IgnoresNe3"), "--output", "sarif", status=1)
    document = json.loads(found.stdout)
    assert document["version"] == "2.1.0"
    assert [result["ruleId"] for result in document["runs"][0]["results"]] == ["wrong-values"]
    assert "WRONG VALUES  acc on mine.py:Mine:0" in found.stderr


def test_a_format_that_does_not_exist_is_a_usage_error() -> None:
    found = opconform("test", "--output", "xml", status=2).output
    assert "'xml' is not one of 'console', 'github', 'json', 'sarif', 'csv', 'sql'" in found


# compare, merge, shards


def test_compare_of_two_histories_is_red_for_a_regression_only() -> None:
    searched("Good", "--history", "old.sqlite")
    searched("IgnoresNe3", "--history", "new.sqlite", status=1)
    found = opconform("compare", "old.sqlite", "new.sqlite", status=1)
    assert "new failure  acc  mine.py:Mine:0  passed " in found.output
    assert found.output.splitlines()[-1] == "1 regression; 1 new failure, 0 unchanged"
    assert "fixed" in opconform("compare", "new.sqlite", "old.sqlite").output
    assert opconform("compare", "new.sqlite", "new.sqlite").output.startswith("change         op ")
    assert opconform("compare", "old.sqlite", "old.sqlite").output == "no regression; 1 unchanged\n"


def test_compare_of_two_runs_of_one_history() -> None:
    searched("Good")
    searched("SaysNo", status=1)
    old, new = (name for (name,) in query("SELECT run_id FROM runs ORDER BY started"))
    found = opconform("compare", old, new, status=1)
    assert "newly unsupported" in found.output
    assert "has no kernel for acc yet" in found.output
    lines = opconform("runs").output.splitlines()
    assert [line.split()[0] for line in lines] == ["run", old, new]


def test_a_pair_that_vanished_is_a_regression() -> None:
    searched("Good", "--op", "set", "--history", "old.sqlite")
    searched("Good", "--history", "new.sqlite")
    found = opconform("compare", "old.sqlite", "new.sqlite", status=1)
    assert "vanished  set  mine.py:Mine:0" in found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compare a.sqlite b.sqlite", "a.sqlite: no such file"),
        ("compare nope nope", "opconform-out/history.sqlite: no such file"),
        ("compare mine.py mine.py", "mine.py: not a history: file is not a database"),
        ("compare . .", ".: is not a file"),
        ("compare good.sqlite nope --history good.sqlite", "no run 'nope' in good.sqlite"),
        ("compare good.sqlite good.sqlite --output xml", "'xml' is not one of 'console', 'json'"),
        ("compare good.sqlite", "Missing argument 'NEW'"),
        ("merge out.sqlite", "Missing argument 'IN...'"),
        ("merge out.sqlite a.sqlite", "a.sqlite: no such file"),
        ("merge mine.py good.sqlite", "mine.py: not a history: file is not a database"),
        ("merge good.sqlite good.sqlite", "good.sqlite is both an input and the output"),
        ("runs", "opconform-out/history.sqlite: no such file"),
        ("test --shard 1/2", "--shard needs --seed"),
        ("test --shard 3/2 --seed 1", "--shard is '3/2'"),
        ("test --shard 1/2 --seed 1 --case acc/kb001", "with --case there is none"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments: str, message: str) -> None:
    searched("Good", "--history", "good.sqlite")
    found = opconform(*arguments.split(), status=2)
    assert message in found.output.splitlines()[-1]
    assert not Path("out.sqlite").exists()


def test_shards_share_the_work_and_merge_into_one_run() -> None:
    searched("Good", "--max-examples", "800", "--history", "whole.sqlite")
    for index in (1, 2, 3):
        searched("Good", "--max-examples", "800", "--shard", f"{index}/3", "--history", f"{index}.sqlite")
    found = opconform("merge", "all.sqlite", "1.sqlite", "2.sqlite", "3.sqlite").output
    assert found.splitlines()[0] == "1.sqlite: 1 runs added, 0 completed, 0 known"
    ids = [{name for (name,) in query("SELECT case_id FROM test_backend_ops", Path(f"{i}.sqlite"))} for i in (1, 2, 3)]
    whole = {name for (name,) in query("SELECT case_id FROM test_backend_ops", Path("whole.sqlite"))}
    assert all(len(one & other) < 0.2 * len(one) for one, other in [(ids[0], ids[1]), (ids[0], ids[2])])
    assert len(set.union(*ids)) > 0.9 * len(whole)  # other cases: each shard goes where it has not been itself
    known = [sum(name in one for one in ids) for name in known_ids()]
    assert known == [1] * len(known)
    assert opconform("compare", "whole.sqlite", "all.sqlite").output.startswith("no regression")
    opconform("merge", "two.sqlite", "1.sqlite", "3.sqlite")
    assert "without shard 2 of 3" in opconform("compare", "whole.sqlite", "two.sqlite", status=1).output


def known_ids() -> list[str]:
    from opconform.harness.draw.known import known_cases

    return [known.case.id for known in known_cases().values() if known.case.op == "acc"]


# pytest


def conformance(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    Path("test_conformance.py").write_text("from opconform.conformance import *\n")
    return pytester.runpytest_inprocess("--max-examples", "40", "-p", "no:cacheprovider", *arguments)


def test_pytest_records_what_it_ran_and_what_it_did_not(pytester: pytest.Pytester) -> None:
    arguments = ("--no-isolation", "--seed", "1")
    found = conformance(pytester, "--backend", spec("IgnoresNe3"), *arguments, "-x", "-k", "acc or cumsum")
    assert found.ret == 1
    ((run_id, seed, pairs),) = query("SELECT run_id, seed, pairs FROM runs WHERE ended IS NOT NULL")
    assert (seed, json.loads(pairs)) == (1, [[op, spec("IgnoresNe3") + ":0"] for op in ("acc", "cumsum")])
    assert query("SELECT op FROM results") == [("acc",)]
    found.stdout.fnmatch_lines([f"run {run_id}, recorded in opconform-out/history.sqlite"])


def test_the_workers_of_xdist_share_one_run(pytester: pytest.Pytester) -> None:
    Path("test_conformance.py").write_text("from opconform.conformance import *\n")
    arguments = ("-n", "2", "-p", "xdist", "--op", "acc,set", "--max-examples", "40")
    assert pytester.runpytest_subprocess("--backend", spec("Good"), *arguments).ret == 0
    assert query("SELECT count(*), count(ended), json_array_length(pairs) FROM runs") == [(1, 1, 2)]
    assert query("SELECT op FROM results ORDER BY op") == [("acc",), ("set",)]
    found = Counter(event["event"] for event in events())
    assert found["result"] == 2
    assert query("SELECT count(*) FROM test_backend_ops") == [(found["case"],)]


def test_pytest_takes_history_and_shard(pytester: pytest.Pytester) -> None:
    backend = ("--backend", spec("Good"), "--op", "acc", "--no-isolation")
    assert conformance(pytester, *backend, "--history", "none").ret == 0
    assert conformance(pytester, *backend, "--collect-only").ret == 0
    assert not Path("opconform-out").exists()
    assert conformance(pytester, *backend, "--history", "h.sqlite", "--shard", "2/2", "--seed", "1").ret == 0
    assert query("SELECT shard, shards, examples FROM runs", Path("h.sqlite")) == [(2, 2, 20)]
    for bad, message in (
        (("--shard", "1/2"), "--shard needs --seed"),
        (("--history", "test_conformance.py"), "--history test_conformance.py: not a history"),
    ):
        found = conformance(pytester, *backend, *bad)
        assert found.ret == pytest.ExitCode.USAGE_ERROR
        (line,) = [line for line in found.errlines if line]
        assert message in line
