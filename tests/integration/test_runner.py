"""Workers: what dies, hangs or babbles in one is a verdict on one case, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opconform.cases.acc import OP as ACC
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.usage import UsageError
from opconform.harness.run import process as process_module
from opconform.harness.run import runner as runner_module
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.process import Worker, devices_of
from opconform.harness.run.runner import Runner
from opconform.harness.run.sanitizer import OPTION
from opconform.harness.search.result import Tally
from tests.samples import acc, children, descriptors, spec, target, within

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No test of this file may leave a process or a descriptor."""
    if sys.platform != "linux":
        yield
        return
    gc.collect()  # the memory map of a worker that failed hangs on its traceback
    processes, files = children(), descriptors()
    yield
    gc.collect()
    assert children() <= processes
    assert descriptors() <= files


def verdicts(name: str, *cases: Case, device: str = "0", time_limit: float = 30.0) -> list[Verdict]:
    with Runner(target(name, device), time_limit=time_limit) as runner:
        return runner.verdicts(ACC, cases)


def kinds(found: list[Verdict]) -> list[str]:
    return [verdict.kind for verdict in found]


def test_a_right_backend_passes() -> None:
    (verdict,) = verdicts("Good", acc(5, 3, 2, 2))
    assert verdict.passed
    assert verdict.comparison is not None


def test_a_crash_spares_the_cases_before_and_after_it() -> None:
    found = verdicts("WrongThenAborts", acc(2, 1, 1, 2), acc(3), acc(1, 1, 2), acc(4), acc(2, 1, 1, 3))
    assert kinds(found) == ["WRONG VALUES", "", "CRASH", "", "WRONG VALUES"]
    assert found[1].passed
    assert found[3].passed
    wrong = [verdict.comparison.wrong.sum() for verdict in (found[0], found[4]) if verdict.comparison is not None]
    assert wrong == [2, 4]


def test_two_crashes_in_one_batch_are_two_verdicts() -> None:
    found = verdicts("AbortsOnNe3", acc(1, 1, 1, 2), acc(1, 1, 1, 3), acc(3))
    assert kinds(found) == ["CRASH", "CRASH", ""]


def test_until_death_leaves_the_rest_out() -> None:
    cases = [acc(3), acc(1, 1, 1, 2), acc(4), acc(1, 1, 1, 3)]
    with Runner(target("AbortsOnNe3")) as runner:
        assert kinds(runner.verdicts(ACC, cases, until_death=True)) == ["", "CRASH"]
        assert runner.verdicts(ACC, [acc(3)])[0].passed


def test_until_death_leaves_out_the_next_batch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_BATCH_BYTES", 1)
    with Runner(target("SleepsOnOdd"), time_limit=0.3) as runner:
        start = time.monotonic()
        assert kinds(runner.verdicts(ACC, [acc(3)] * 30, until_death=True)) == ["TIMEOUT"]
        assert time.monotonic() - start < 8


def test_a_case_without_an_answer_in_time_is_given_more_time_once() -> None:
    found = verdicts("SlowStart", acc(3), acc(4), time_limit=0.5)
    assert [(verdict.passed, verdict.late) for verdict in found] == [(True, True), (True, False)]
    tally = Tally()
    for verdict in found:
        tally.count(verdict)
    assert (tally.passed, tally.late) == (2, 1)
    (verdict,) = verdicts("SleepsAlways", acc(3), time_limit=0.3)
    assert (verdict.kind, verdict.findings[0].detail) == ("TIMEOUT", "no answer within 1.2 s")
    with Runner(target("SlowStart"), time_limit=30) as runner:
        assert kinds(runner.verdicts(ACC, [acc(3)], time_limit=0.5)) == ["TIMEOUT"], "a shorter limit is one to keep"


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("AbortsOnNe3", "the process ended with signal SIGABRT"),
        ("Segfaults", "the process ended with signal SIGSEGV"),
        ("ExitsQuietly", "the process ended with exit status 3"),
    ],
)
def test_the_way_a_worker_ended_is_named(name: str, detail: str) -> None:
    (verdict,) = verdicts(name, acc(1, 1, 1, 2))
    assert (verdict.kind, verdict.findings[0].detail) == ("CRASH", detail)


def test_a_process_that_cannot_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_EXIT_SECONDS", 0.5)
    assert kinds(verdicts("HangsAtExit", acc(3))) == ["CRASH"]


def test_what_a_dying_worker_said_is_kept() -> None:
    found = verdicts("AbortsOnNe3", acc(3), acc(1, 1, 1, 2))
    assert [verdict.stderr for verdict in found] == ["", "GGML_ASSERT(src1->ne[3] == 1) failed"]


def test_of_many_words_the_last_are_kept() -> None:
    (verdict,) = verdicts("NoisyAborts", acc(3))
    assert verdict.stderr.endswith("\nthe last words")
    assert len(verdict.stderr) <= 6000


def test_a_noisy_backend_passes_and_its_noise_stays_away_from_ours(capfd: pytest.CaptureFixture[str]) -> None:
    assert all(verdict.passed for verdict in verdicts("Noisy", *[acc(3)] * 20))
    assert capfd.readouterr() == ("", "")


def test_an_exception_is_an_error_told_from_the_backends_frame_on() -> None:
    raises, after = verdicts("PythonBug", acc(3), acc(3))
    assert raises.kind == after.kind == "ERROR"
    assert raises.findings[0].detail.startswith("TypeError: unsupported operand")
    assert "return a + None" in raises.stderr
    assert "harness" not in raises.stderr


def test_ctrl_c_while_a_worker_is_replaced_leaves_a_runner_that_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Worker:
        raise KeyboardInterrupt

    with Runner(target("Good")) as runner:
        runner.fresh()  # from here on one stands by
        monkeypatch.setattr(runner, "_start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.fresh()
    runner.close()


def test_a_hang_is_a_timeout_within_its_limit_and_the_next_case_runs() -> None:
    with Runner(target("SleepsOnOdd"), time_limit=0.5) as runner:
        start = time.monotonic()
        found = runner.verdicts(ACC, [acc(4), acc(3), acc(2)])
        assert kinds(found) == ["", "TIMEOUT", ""]
        assert found[1].findings[0].detail == "no answer within 2 s"
        assert time.monotonic() - start < 8


def test_the_limit_holds_for_each_case_and_not_for_the_batch() -> None:
    assert kinds(verdicts("Slow", *[acc(3)] * 20, time_limit=0.5)) == [""] * 20


@linux
def test_without_isolation_no_process_is_started() -> None:
    before = children()
    with Runner(target("Raises"), isolated=False) as runner:
        (verdict,) = runner.verdicts(ACC, [acc(3)])
        assert children() == before
    assert (verdict.kind, verdict.findings[0].detail) == ("ERROR", "RuntimeError: CL_OUT_OF_RESOURCES")
    with Runner(target("Good"), isolated=False) as runner:
        assert all(verdict.passed for verdict in runner.verdicts(ACC, [acc(3), acc(2, 2, 2, 2), acc(64, 64)]))


def test_memory_grows_and_shrinks_with_the_cases() -> None:
    with Runner(target("Good")) as runner:
        for rows in (1, 300, 2, 3000, 1):
            assert runner.verdicts(ACC, [acc(257, a=(257, rows))] * 2)[1].passed


def test_a_case_of_48_mib_passes() -> None:
    large = acc(3, a=(1024, 1024, 6))
    assert sum(layout.end for layout in large.layouts.values()) >= 48 << 20
    assert verdicts("Good", large, acc(3))[0].passed


def test_a_case_above_max_bytes_is_unsupported_and_says_so() -> None:
    with Runner(target("Good"), max_bytes=1000) as runner:
        small, large = runner.verdicts(ACC, [acc(3), acc(300)])
    assert small.passed
    assert large.unsupported == "takes 3600 bytes; --max-bytes allows 1000"


@linux
def test_a_worker_killed_from_outside_is_a_crash_and_the_next_case_runs() -> None:
    before = children()
    with Runner(target("Good")) as runner:
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        assert runner.verdicts(ACC, [acc(3)])[0].findings[0].detail == "the process ended with signal SIGKILL"
        spares = children() - before
        assert all(verdict.passed for verdict in runner.verdicts(ACC, [acc(3)] * 3))
        assert children() - before == spares


@linux
def test_all_workers_killed_from_outside_are_replaced_or_reported() -> None:
    before = children()
    with Runner(target("AbortsOnNe3")) as runner:
        runner.verdicts(ACC, [acc(1, 1, 1, 2)])
        time.sleep(1.0)  # mostly the worker standing by has said by now which devices it has
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        said = r"could not (open 0|list its devices): the process ended with signal SIGKILL"
        with pytest.raises(Unavailable, match=said):
            runner.verdicts(ACC, [acc(3)])


def test_each_device_gives_its_own_answers() -> None:
    found = devices_of(spec("TwoDevices"), {})
    assert [device.id for device in found] == ["0", "1"]
    assert kinds(verdicts("TwoDevices", acc(3), device="0")) == [""]
    assert kinds(verdicts("TwoDevices", acc(3), device="1")) == ["WRONG VALUES"]


@pytest.mark.parametrize(
    ("name", "reason", "remedy"),
    [
        ("ListsNone", "no such device on this machine", "plug one in"),
        (
            "CrashesWhenListing",
            "could not list its devices: the process ended with signal SIGABRT",
            "libsample: cannot map the device",
        ),
        ("HangsWhenListing", "could not list its devices: no answer within 1.5 s", "its worker said nothing"),
    ],
)
def test_a_backend_that_lists_no_devices_says_why(
    monkeypatch: pytest.MonkeyPatch, name: str, reason: str, remedy: str
) -> None:
    monkeypatch.setattr(process_module, "START_SECONDS", 1.5 if name.startswith("Hangs") else 60.0)
    with pytest.raises(Unavailable) as found:
        devices_of(spec(name), {})
    assert (found.value.reason, found.value.remedy) == (reason, remedy)


def test_a_device_that_does_not_open_says_why_and_leaves_no_process() -> None:
    with pytest.raises(Unavailable, match=r"too old \(1\.1\); install driver 1\.2"):
        Runner(target("OpensBadly"))


def test_a_device_lost_by_a_crash_is_unavailable_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Runner(target("DiesWhenOpenedAgain")) as runner:
        assert runner.verdicts(ACC, [acc(3)])[0].passed
        assert runner.verdicts(ACC, [acc(1, 1, 1, 2)])[0].kind == "CRASH"
        with pytest.raises(Unavailable, match="the device is lost; reset it"):
            runner.verdicts(ACC, [acc(3)])


def test_a_worker_that_dies_while_asked_what_it_supports_is_unavailable() -> None:
    worker = Worker(spec("Good"), {})
    try:
        worker.open("0")
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="could not say what it supports"):
            worker.supports([acc(3)])
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("strict", "kind", "unsupported"),
    [(True, "SUPPORTS_OP LIES", None), (False, "", "the kernel asserts that the rows of b are contiguous")],
)
def test_a_broken_precondition_is_tried_in_a_strict_run_only(strict: bool, kind: str, unsupported: str | None) -> None:
    case = acc(3)
    column = case.inputs["b"].__class__("f32", (1, 1, 1, 3), (24, 24, 24, 8))
    broken = Case("acc", case.params, {**case.inputs, "b": column}, case.outputs)
    with Runner(target("LimitedKernel"), strict=strict) as runner:
        found = runner.verdicts(ACC, [case, broken])
    assert found[0].passed
    assert (found[1].kind, found[1].unsupported) == (kind, unsupported)


def test_a_limit_of_one_device_leaves_the_others_alone() -> None:
    (first,) = verdicts("LimitOfOneDevice", acc(3, inplace=True), device="0")
    (second,) = verdicts("LimitOfOneDevice", acc(3, inplace=True), device="1")
    assert first.passed
    assert second.unsupported == "device 1 cannot write over a"


def test_files_of_the_folder_it_runs_in_do_not_hide_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("random", "types", "socket", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    assert verdicts("Good", acc(3))[0].passed


@linux
def test_a_hung_worker_dies_with_a_harness_that_is_killed() -> None:
    script = (
        "from tests.samples import acc, children, target\n"
        "from opconform.harness.run.runner import Runner\n"
        "from opconform.cases.acc import OP\n"
        "runner = Runner(target('SleepsAlways'))\n"
        "print(*children(), flush=True)\n"
        "runner.verdicts(OP, [acc(3)])\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root) as harness:
        assert harness.stdout is not None
        worker = Path("/proc", harness.stdout.readline().strip())
        time.sleep(0.3)
        assert worker.exists()
        harness.kill()
        assert within(5, lambda: not worker.exists())


def test_a_backend_file_may_hold_dataclasses_and_be_named_like_a_library(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import numpy\n"
        "from opconform import Backend\n"
        "@dataclass\n"
        "class Options:\n"
        "    fast: bool = True\n"
        "class Mine(Backend):\n"
        "    pass\n"
    )
    path = tmp_path / "numpy.py"
    path.write_text(text)
    assert [device.description for device in devices_of(f"{path}:Mine", {})] == ["Mine"]
    with pytest.raises(UsageError, match=r"numpy\.py has no Backend class 'Options'; it has Mine$"):
        devices_of(f"{path}:Options", {})


@pytest.mark.parametrize("text", ["import nothing_of_the_kind\n", "x = 1 +\n", "1 / 0\n"])
def test_a_backend_file_that_does_not_import_names_the_place(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("\n\n" + text)
    with pytest.raises(Unavailable) as found:
        devices_of(f"{path}:Mine", {})
    assert "Error" in found.value.reason
    assert "mine.py" in str(found.value)
    assert ":3)" in found.value.remedy or "line 3" in found.value.reason


def test_what_a_checker_says_stands_beside_a_crash_and_beside_no_other_case() -> None:
    with Runner(target("ChecksItself", options={OPTION: "yes"})) as runner:
        assert runner.stages(ACC, acc(2)) is None  # of which it complains too
        verdicts = runner.verdicts(ACC, [acc(2), acc(1, 1, 1, 2), acc(3)])
    assert [[finding.kind for finding in verdict.findings] for verdict in verdicts] == [
        [],
        ["CRASH", "OUT OF BOUNDS"],
        [],
    ]
    assert verdicts[1].findings[1].detail == "Checker: a write beyond b"


def test_a_backend_without_a_checker_leaves_nothing_open() -> None:
    with pytest.raises(Unavailable, match="has no checker"):
        Worker(spec("Good"), {OPTION: "yes"})


def test_an_exception_from_the_case_s_own_arithmetic_is_an_error_of_the_case() -> None:
    with Runner(target("LosesItsNumerics")) as runner:
        (verdict,) = runner.verdicts(ACC, [acc(2)])
    assert verdict.kind == "ERROR"
    assert verdict.findings[0].detail == "KeyError: 'acc'"
