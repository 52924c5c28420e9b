"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from opconform.harness.model.ops import op_names
from opconform.harness.search import session
from tests.kernels.correct import Correct
from tests.samples import acc, spec

LINES = {
    "test_conformance.py": "from opconform.conformance import *",
    "test_mine.py": "def test_mine():\n    pass",
}
SHORT = ("--op", "acc", "--max-examples", "40", "--seed", "1", "-p", "no:cacheprovider")


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's project: the conformance tests by import, one test of their own; two backends are registered."""
    for name, text in LINES.items():
        Path(pytester.path, name).write_text(text + "\n")
    monkeypatch.setattr(session, "backend_names", lambda: [spec("Good"), spec("ListsNone")])
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("COLUMNS", "150")


def run(pytester: pytest.Pytester, backend: str, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("--backend", spec(backend), *SHORT, "--no-isolation", *arguments)


def last_line(result: pytest.RunResult) -> str:
    (line,) = [line for line in result.outlines if " pairs of op and device " in line]
    return line


def test_a_right_backend_passes_alone(pytester: pytest.Pytester) -> None:
    result = run(pytester, "Good")
    assert result.ret == 0
    result.assert_outcomes(passed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "opconform: seed 1 (--seed 1 draws the same cases again)",
            f"opconform: {spec('Good')}:0  NumPy, Good (numpy *)",
            "acc * passed *",
        ]
    )
    assert re.fullmatch(
        r"(\d+) cases run, \1 passed, 0 failed, 0 unsupported; 1 of 1 pairs of op and device without a failure",
        last_line(result),
    )


@pytest.mark.parametrize("verbose", [False, True])
def test_a_verbose_run_prints_the_share_of_trait_pairs(pytester: pytest.Pytester, verbose: bool) -> None:
    result = run(pytester, "Good", *(["-v"] if verbose else []))
    share = rf"acc on {re.escape(spec('Good'))}:0: \d+ % of [\d,]+ trait pairs"
    assert sum(bool(re.fullmatch(share, line)) for line in result.outlines) == verbose
    assert ("trait pairs" in str(result.stdout)) == verbose


def test_a_wrong_backend_fails_with_the_screen_and_nothing_else(pytester: pytest.Pytester) -> None:
    result = run(pytester, "IgnoresNe3")
    assert result.ret == 1
    result.assert_outcomes(failed=1, deselected=1)
    begin = result.outlines.index(f"WRONG VALUES  acc on {spec('IgnoresNe3')}:0  (NumPy, IgnoresNe3)")
    assert re.fullmatch(r"_+ test_conformance\[acc-.*IgnoresNe3:0\] _+", result.outlines[begin - 1])
    for noise in ("Falsifying example", "You can reproduce", "Traceback", "harness/", "hypothesis/", "_Failed"):
        assert noise not in str(result.stdout).replace("plugins: ", "")
    assert result.stderr.lines == []


def test_the_command_that_it_prints_fails_again(pytester: pytest.Pytester) -> None:
    result = run(pytester, "IgnoresNe3")
    (command,) = [line.strip() for line in result.outlines if line.startswith("    pytest --pyargs ")]
    again = pytester.runpytest_inprocess(*command.split()[1:], "--no-isolation")
    again.assert_outcomes(failed=1)
    assert last_line(again).startswith("1 cases run, 0 passed, 1 failed")


@pytest.mark.parametrize("form", ["file", "known"])
def test_a_case_by_file_or_id_runs_alone(pytester: pytest.Pytester, form: str) -> None:
    Path("mine.json").write_text(json.dumps(acc(3, 2).to_json()))
    name = "mine.json" if form == "file" else "cumsum/upstream-10"
    result = pytester.runpytest_inprocess("--case", name, "--backend", spec("Good"), "--no-isolation")
    result.assert_outcomes(passed=1, deselected=1)
    assert last_line(result).startswith("1 cases run, 1 passed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--backend nope", "no backend 'nope'; there are "),
        ("--backend nope.py:X", "no file nope.py, named by --backend nope.py:X"),
        ("--backend {Good}:7", "no such device; there are {Good}:0"),
        ("--backend {NotABackend}", "has no Backend class 'NotABackend'; it has Good, "),
        ("--backend {ListsNone}", "cannot run: no such device on this machine; plug one in"),
        ("--backend {Good} --op nope", "no op 'nope'; there are abs, acc, "),
        ("--backend {Good} --check nope", "no check 'nope' on request; there are deterministic, "),
        ("--backend {Good} --case nope", "no case 'nope': no such file, no known case"),
        ("--backend {Good} --case nope.json", "nope.json: No such file or directory"),
        ("--collect-only --backend nope", "no backend 'nope'; there are "),
        ("--max-bytes lots", "'lots' is not a size"),
        ("--max-examples 0", "--max-examples is 0; it must be above 0"),
        ("--time-limit nan", "--time-limit is nan; it must be above 0"),
        ("--seed -3", "--seed is -3; it must be 0 or above"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_status_4(pytester: pytest.Pytester, arguments: str, message: str) -> None:
    names = {name: spec(name) for name in ("Good", "NotABackend", "ListsNone")}
    result = pytester.runpytest_inprocess(*arguments.format(**names).split())
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line]
    assert line.startswith("ERROR: ")
    assert message.format(**names) in line
    assert result.outlines == []


@pytest.mark.parametrize("value", ["--profile nope", "--max-examples many", "--time-limit soon"])
def test_a_value_of_the_wrong_kind_is_exit_status_4(pytester: pytest.Pytester, value: str) -> None:
    result = pytester.runpytest_inprocess(*value.split())
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*error: argument {value.split()[0]}: *{value.split()[1]}*"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value at line 1, column 1"),
        ('{"format": "opconform-ca', "not JSON: Unterminated string"),
        ("[" * 100_000, "nested too deep"),
        ('{"seed": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"format": "opconform-case/9"}', "this version reads 'opconform-case/1'"),
        ("huge", "--max-bytes allows 67108864"),
    ],
    ids=["empty", "truncated", "nested", "digits", "version", "huge"],
)
def test_a_file_that_is_no_case_is_one_line_and_exit_status_4(
    pytester: pytest.Pytester, text: str, message: str
) -> None:
    plain = acc(3).to_json()
    plain["inputs"]["a"]["shape"] = [1 << 40, 1, 1, 1]
    Path("bad.json").write_text(json.dumps(plain) if text == "huge" else text)
    result = pytester.runpytest_inprocess("--backend", spec("Good"), "--case", "bad.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = [line for line in result.errlines if line]
    assert line.startswith("ERROR: bad.json: ")
    assert message in line


def test_several_processes_share_the_seed_the_matrix_and_the_junit_file(pytester: pytest.Pytester) -> None:
    Path("conftest.py").write_text(  # no other backend is asked for its opinion on the failure
        "from opconform.harness.search import session\nsession.backend_names = lambda: []\n"
    )
    arguments = ("-n", "2", "-p", "xdist", "--junitxml", "junit.xml", "-k", "acc or cumsum", "--max-examples", "40")
    result = pytester.runpytest_subprocess("--backend", spec("IgnoresNe3"), *arguments)
    assert result.ret == 1
    result.assert_outcomes(passed=1, failed=1)
    (seed,) = re.findall(r"seed (\d+) \(--seed \1 draws", str(result.stdout))
    result.stdout.fnmatch_lines(["acc * FAILED (*) WRONG VALUES*", "cumsum * passed *"])
    shutil.rmtree(".hypothesis")  # forget the failure, so that it does not carry over
    again = pytester.runpytest_subprocess("--backend", spec("IgnoresNe3"), "--seed", seed, *arguments[6:])
    assert last_line(again) == last_line(result)
    cases = list(ElementTree.parse("junit.xml").getroot().iter("testcase"))
    assert sorted(str(case.get("name")).split("-")[0] for case in cases) == [
        "test_conformance[acc",
        "test_conformance[cumsum",
    ]
    (failure,) = [found for case in cases for found in case.iter("failure")]
    assert "WRONG VALUES  acc on " in str(failure.text)


FOUR_OPS = ("--op", "acc,set,cumsum,solve_tri")
SUPPORTED = [name for name in op_names() if hasattr(Correct, name)]  #: by the backend Good


def test_keywords_select_ops(pytester: pytest.Pytester) -> None:
    arguments = ("--backend", spec("Good"), "--max-examples", "8", "--no-isolation", *FOUR_OPS)
    result = pytester.runpytest_inprocess(*arguments, "-k", "set or tri")
    result.assert_outcomes(passed=2, deselected=3)


def test_the_conformance_tests_run_from_any_folder(pytester: pytest.Pytester) -> None:
    for name in LINES:
        Path(name).unlink()
    arguments = ("--backend", spec("Good"), *SHORT, "--no-isolation")
    result = pytester.runpytest_inprocess(*arguments)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["opconform: no case was executed: *; --pyargs opconform.conformance collects *"])
    result = pytester.runpytest_inprocess("--pyargs", "opconform.conformance", *arguments)
    assert result.ret == 0
    result.assert_outcomes(passed=1)


def test_without_a_backend_all_run_beside_the_users_own_tests(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--max-examples", "8", "--no-isolation", "-rs")
    assert result.ret == 0
    result.assert_outcomes(passed=len(SUPPORTED) + 1, skipped=len(op_names()) - len(SUPPORTED) + 1)
    result.stdout.fnmatch_lines(["SKIPPED *ListsNone is not available: no such device on this machine; plug one in"])


def test_under_ci_a_missing_backend_fails(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    result = pytester.runpytest_inprocess("--max-examples", "8", "--no-isolation", "-k", "ListsNone or mine")
    assert result.ret == 1
    result.assert_outcomes(errors=1, passed=1, deselected=len(op_names()))
    result.stdout.fnmatch_lines(["*ListsNone is not available: no such device on this machine; plug one in"])


def test_under_ci_a_backend_that_the_run_does_without_is_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("OPCONFORM_WITHOUT", f"oclgrind {spec('ListsNone')}")
    result = pytester.runpytest_inprocess("--max-examples", "8", "--no-isolation", "-rs", "-k", "ListsNone or mine")
    assert result.ret == 0
    result.assert_outcomes(skipped=1, passed=1, deselected=len(op_names()))
    result.stdout.fnmatch_lines(["SKIPPED *ListsNone is not available: no such device on this machine; plug one in"])


def test_under_ci_a_backend_that_takes_another_machine_is_skipped(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(session, "backend_names", lambda: [spec("HasNoMachine")])
    result = pytester.runpytest_inprocess("--no-isolation", "-rs", "-k", "HasNoMachine or mine")
    assert result.ret == 0
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(["SKIPPED *HasNoMachine is not available: it takes a machine of its own; buy one"])


def test_a_run_of_other_tests_starts_no_backend(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "devices_of", None)
    result = pytester.runpytest_inprocess("test_mine.py")
    assert result.ret == 0
    result.assert_outcomes(passed=1)


def test_nothing_executed_is_red(pytester: pytest.Pytester) -> None:
    result = run(pytester, "SaysNo", "-rs")
    assert result.ret == 1
    result.assert_outcomes(skipped=1, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "opconform: no case was executed: that is a failure, not a pass",
            "[[]1[]] unsupported: has no kernel for acc yet",
            "SKIPPED * unsupported: has no kernel for acc yet",
        ]
    )
    assert run(pytester, "Good", "-k", "nothing").ret == 1


def test_a_device_asked_for_by_name_that_ran_nothing_is_red_though_another_ran(pytester: pytest.Pytester) -> None:
    both = (f"{spec('HalfIdle')}:0", "--backend", f"{spec('HalfIdle')}:1")
    result = pytester.runpytest_inprocess("--backend", *both, *SHORT, "--no-isolation")
    assert result.ret == 1
    result.assert_outcomes(passed=1, skipped=1, deselected=1)
    assert (
        f"{spec('HalfIdle')}:1 was asked for by name and ran no case: that is a failure, not a pass" in result.outlines
    )
    assert run(pytester, "HalfIdle").ret == 0  # the backend was asked for, and it ran
    chosen = pytester.runpytest_inprocess("--backend", *both, *SHORT, "--no-isolation", "-k", "HalfIdle:0")
    assert chosen.ret == 0  # of device 1 nothing was to be tested


RERUNS = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):  # as pytest-rerunfailures does with --reruns 2
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for left in (2, 1, 0):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if left and any(report.failed for report in reports):
            item._initrequest()
            continue
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        break
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""


def test_running_a_failing_test_again_does_not_turn_red_into_green(pytester: pytest.Pytester) -> None:
    Path("conftest.py").write_text(RERUNS)
    result = run(pytester, "WrongOnce", "--database", "none")
    assert result.ret == 1
    result.assert_outcomes(failed=1, deselected=1)
    assert "NOT DETERMINISTIC  acc on " in str(result.stdout)


def test_minutes_are_shared_among_the_tests(pytester: pytest.Pytester) -> None:
    start = time.monotonic()
    arguments = ("--backend", spec("Slow"), "--op", "acc,cumsum", "--minutes", "0.05", "--no-isolation")
    result = pytester.runpytest_inprocess(*arguments, "-p", "no:cacheprovider", "-k", "conformance")
    assert time.monotonic() - start < 60
    result.assert_outcomes(passed=2, deselected=1)
    assert run(pytester, "Good", "--minutes", "0").ret == pytest.ExitCode.USAGE_ERROR


def test_collecting_is_not_executing(pytester: pytest.Pytester) -> None:
    result = run(pytester, "Good", "--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"test_conformance.py::test_conformance[[]acc-{spec('Good')}:0[]]"])


def test_a_device_that_does_not_open_fails_with_one_line(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--backend", spec("OpensBadly"), *SHORT)
    assert result.ret == 1
    result.assert_outcomes(failed=1, deselected=1)
    assert str(result.stdout).count("the driver is too old (1.1); install driver 1.2 or newer") == 1
    assert "During handling" not in str(result.stdout)


def test_a_crash_is_a_failure_like_any_other(pytester: pytest.Pytester) -> None:
    Path("crash.json").write_text(json.dumps(acc(1, 1, 1, 2).to_json()))
    result = pytester.runpytest_inprocess("--backend", spec("AbortsOnNe3"), "--case", "crash.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["CRASH  acc on *AbortsOnNe3:0  (NumPy, AbortsOnNe3)", "    GGML_ASSERT(src1->ne[[]3[]] == 1) failed"]
    )


def test_each_device_is_a_test(pytester: pytest.Pytester) -> None:
    result = run(pytester, "TwoDevices")
    result.assert_outcomes(passed=1, failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        [f"opconform: {spec('TwoDevices')}:0  the right one", f"opconform: {spec('TwoDevices')}:1  the wrong one"]
    )


def test_ctrl_c_ends_the_run(pytester: pytest.Pytester) -> None:
    Path("conftest.py").write_text(
        "import os, signal, threading\nthreading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
    )
    result = pytester.runpytest_subprocess("--backend", spec("Slow"), "--op", "acc", timeout=20)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in str(result.stdout) + str(result.stderr)
    assert not [name for name in os.listdir() if name.endswith(".part")]
