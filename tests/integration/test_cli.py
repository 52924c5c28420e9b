"""The command line: what it prints, how it exits, and that it can be stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from opconform.cli import main
from opconform.harness.draw.known import known_cases, write_case
from opconform.harness.model.case import Case
from opconform.harness.search import session
from tests.samples import acc, children, spec, within

SHORT = ("--op", "acc", "--max-examples", "40", "--seed", "1", "--history", "none", "--no-isolation")


CLASSES = ("Good", "NotABackend", "ListsNone", "CrashesWhenListing", "TwinDevices")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own, with two backends registered, one of which cannot run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "backend_names", lambda: [spec("Good"), spec("ListsNone")])
    return tmp_path


def opconform(*arguments: str) -> Result:
    found = CliRunner().invoke(main, arguments)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


def failing_case() -> Path:
    """The file of the case that a short search stores."""
    assert opconform("test", "--backend", spec("IgnoresNe3"), *SHORT).exit_code == 1
    (file,) = Path("opconform-out/cases").iterdir()
    return file


def test_list_names_ops_devices_and_what_is_missing_and_why() -> None:
    found = opconform("list")
    assert found.exit_code == 0
    for op in ("acc", "set", "cumsum", "solve_tri"):
        assert re.search(rf"^{op} ", found.output, re.MULTILINE)
    assert f"{spec('Good')}:0  NumPy, Good (numpy " in found.output
    assert f"{spec('ListsNone')}  not available: no such device on this machine; plug one in" in found.output


def test_list_cases_gives_each_known_case_one_whole_line() -> None:
    found = opconform("list", "--cases")
    assert found.exit_code == 0
    (line,) = [line for line in found.output.splitlines() if line.startswith("acc/kb001 ")]
    assert line.endswith("ggml-org/llama.cpp#19426")
    assert "…" not in found.output


def test_what_stands_in_brackets_is_no_markup() -> None:
    assert "out[s,t,i] = sum of x[s,i,t+j]*c[i,j] over the taps of channel i" in opconform("list").output


def test_support_tells_yes_with_limits_and_no_with_reasons() -> None:
    found = opconform("support", "--backend", spec("SaysNo"), "--backend", spec("LimitedKernel"), "--op", "acc")
    assert found.exit_code == 0
    assert "  acc: no: has no kernel for acc yet\n" in found.output
    limit = "kernel: the kernel asserts that the rows of b are contiguous  [ggml-cpu/ops.cpp:1234]"
    assert f"  acc: yes\n    {limit}\n" in found.output


def test_a_right_backend_passes_with_a_line_for_each_pair() -> None:
    found = opconform("test", "--backend", spec("Good"), "--op", "acc,cumsum", *SHORT[2:])
    assert found.exit_code == 0
    lines = found.output.splitlines()
    assert lines[0] == "seed 1: --seed 1 draws the same cases again"
    for op in ("acc", "cumsum"):
        pattern = (
            rf"passed      {op} on {re.escape(spec('Good'))}:0: \d+ cases in \d+\.\d s, \d+ % of [\d,]+ trait pairs"
        )
        assert any(re.fullmatch(pattern, line) for line in lines)
    assert re.fullmatch(
        r"(\d+) cases run, \1 passed, 0 failed, 0 unsupported; 2 of 2 pairs of op and device without a failure",
        lines[-1],
    )


def test_a_wrong_backend_fails_with_a_screen_and_commands_that_fail_again() -> None:
    found = opconform("test", "--backend", spec("IgnoresNe3"), *SHORT)
    assert found.exit_code == 1
    assert "\nWRONG VALUES  acc on " in found.output
    (again,) = re.findall(r"^    opconform (replay .*)$", found.output, re.MULTILINE)
    replayed = opconform(*again.split(), "--no-isolation")
    assert replayed.exit_code == 1
    assert "\nWRONG VALUES  acc on " in "\n" + replayed.output


def test_replay_takes_a_file_an_id_and_a_known_case() -> None:
    file = failing_case()
    for case in (str(file), file.stem, "acc/kb001"):
        assert opconform("replay", case, "--backend", spec("IgnoresNe3"), "--no-isolation").exit_code == 1
        assert opconform("replay", case, "--backend", spec("Good"), "--no-isolation").exit_code == 0


def test_a_race_is_replayed_until_it_fails() -> None:
    found = opconform("test", "--backend", spec("Flaky"), *SHORT)
    (again,) = re.findall(r"^    opconform (replay .*)$", found.output, re.MULTILINE)
    assert again.endswith(" --times 50")
    file = again.split()[1]
    rare = opconform("replay", file, "--backend", spec("WrongInRun40"), "--no-isolation", "--times", "50")
    assert rare.exit_code == 1
    assert "NOT DETERMINISTIC  acc on " in rare.output
    assert "right in 39 runs, then wrong" in rare.output
    assert (
        opconform("replay", file, "--backend", spec("WrongInRun40"), "--no-isolation", "--times", "39").exit_code == 0
    )


def test_replay_without_a_backend_tries_all_and_names_the_missing() -> None:
    found = opconform("replay", "acc/kb001", "--no-isolation")
    assert found.exit_code == 0
    assert "1 cases run, 1 passed" in found.output
    assert "ListsNone  not available: no such device" in found.output


def test_replay_runs_a_known_bug_that_the_search_leaves_out() -> None:
    found = opconform("replay", "acc/kb001-view", "--backend", spec("KnownBug"), "--no-isolation")
    assert found.exit_code == 1


def test_test_with_a_case_runs_that_case_only() -> None:
    found = opconform("test", "--case", str(failing_case()), "--backend", spec("Good"), "--no-isolation")
    assert found.exit_code == 0
    assert "1 cases run, 1 passed, 0 failed" in found.output


def test_a_second_run_in_the_same_folder_reports_the_failure_again() -> None:
    file = failing_case()
    before = file.read_bytes()
    assert failing_case() == file
    assert file.read_bytes() == before
    found = opconform("test", "--backend", spec("IgnoresNe3"), *SHORT[:2], "--max-examples", "1", *SHORT[4:])
    assert found.exit_code == 1


def test_a_passing_run_leaves_no_report(empty_folder: Path) -> None:
    assert opconform("test", "--backend", spec("Good"), *SHORT).exit_code == 0
    assert {path.name for path in empty_folder.iterdir()} <= {".hypothesis"}


def test_nothing_executed_is_a_failure() -> None:
    found = opconform("test", "--backend", spec("SaysNo"), *SHORT)
    assert found.exit_code == 1
    assert "nothing was executed: that is a failure, not a pass" in found.output
    assert "[1] unsupported: has no kernel for acc yet" in found.output


@pytest.mark.parametrize("command", [("test", *SHORT), ("replay", "acc/kb001", "--no-isolation")])
def test_a_device_asked_for_by_name_that_ran_nothing_is_red_though_another_ran(command: tuple[str, ...]) -> None:
    found = opconform(*command, "--backend", f"{spec('HalfIdle')}:0", "--backend", f"{spec('HalfIdle')}:1")
    assert found.exit_code == 1
    said = f"{spec('HalfIdle')}:1 was asked for by name and ran no case: that is a failure, not a pass"
    assert said in found.output.splitlines()
    assert opconform(*command, "--backend", spec("HalfIdle")).exit_code == 0  # the backend was asked for, and it ran


def test_minutes_are_shared_among_the_pairs_and_each_runs() -> None:
    start = time.monotonic()
    found = opconform(
        "test", "--backend", spec("Good"), "--op", "acc", "--op", "cumsum", "--minutes", "0.02", "--no-isolation"
    )
    assert found.exit_code == 0
    assert time.monotonic() - start < 10
    assert all(int(number) >= 8 for number in re.findall(r": (\d+) cases in", found.output))


def test_the_case_files_of_a_folder_run_as_known_cases_beside_the_search(tmp_path: Path) -> None:
    write_case(acc(1, 1, 1, 2), tmp_path / "model" / "add-1.json")
    write_case(acc(3), tmp_path / "model" / "add-2.json")
    command = ("test", "--backend", spec("IgnoresNe3"), "--op", "acc,set", "--max-examples", "8", "--no-isolation")
    more = ("--known-cases", str(tmp_path / "model"), "--seed", "1", "--history", "none")
    found = opconform(*command, *more, "--output", "json")
    assert found.exit_code == 1
    failing = {result["op"]: result["failed_known"] for result in json.loads(found.stdout)["results"]}
    assert str(tmp_path / "model" / "add-1.json") in failing["acc"]
    assert str(tmp_path / "model" / "add-2.json") not in failing["acc"]
    assert not any("add-" in name for name in failing["set"])
    for folder, said in (
        ("none", "must be a folder of case files"),
        (str(tmp_path), "no file of this folder is a case"),
    ):
        refused = opconform(*command, "--known-cases", folder)
        assert refused.exit_code == 2
        assert said in " ".join(refused.output.split())
    assert opconform(*command, *more, "--case", "acc/kb001").exit_code == 2


def test_where_minutes_are_shared_no_device_comes_last_and_the_matrix_keeps_their_order() -> None:
    command = ("test", "--backend", spec("TwoDevices"), "--op", "cumsum,set", "--max-examples", "8")
    found = opconform(*command, "--minutes", "5", "--history", "none")
    ran = re.findall(r"^passed +(\w+) on \S+:(\d):", found.output, re.MULTILINE)
    assert len(ran) == 4
    assert ran[0][0] == ran[1][0] != ran[2][0] == ran[3][0]
    assert re.search(r":0 .*:1\n", found.output)


def test_minutes_and_a_number_of_cases_hold_together_whichever_comes_first() -> None:
    chosen = ("--op", "acc", "--backend", spec("Good"), "--no-isolation", "--history", "none", "--seed", "1")
    few = opconform("test", *chosen, "--max-examples", "16", "--minutes", "5")
    (count,) = re.findall(r"acc on .*: (\d+) cases in", few.output)
    assert int(count) < 16 + len(known_cases())
    start = time.monotonic()
    opconform("test", *chosen, "--max-examples", "1000000", "--minutes", "0.02")
    assert time.monotonic() - start < 30


def test_several_processes_share_the_pairs_of_one_run() -> None:
    Path("conftest.py").write_text("")
    both = ("--backend", spec("TwoDevices"), "--op", "acc,cumsum", "--max-examples", "24", "--seed", "1")
    found = opconform("test", *both, "--also-seconds", "0", "-n", "2")
    assert found.exit_code == 1
    lines = found.output.splitlines()
    alone = opconform("test", *both, "--also-seconds", "0", "--database", "none", "--history", "none").output
    done = r"(passed|FAILED) +(\w+ on \S+): (\d+) cases in"
    assert sorted(re.findall(done, found.output)) == sorted(re.findall(done, alone))
    assert len(re.findall(done, found.output)) == 4
    assert any(line.startswith("WRONG VALUES  acc on ") for line in lines)
    assert len(Path("opconform-out/history.sqlite").read_bytes()) > 0
    runs = opconform("runs").output.splitlines()
    assert len(runs) == 2  # the head, and one run
    for wrong in ("0", "two", "-1"):
        assert opconform("test", *both, "-n", wrong).exit_code == 2


def test_a_process_that_ends_loses_its_pair_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("--backend", spec("Good"), "--op", "acc,cumsum", "--max-examples", "8", "--history", "none")
    monkeypatch.setattr("opconform.parallel._START", "import sys; sys.exit(3)")
    found = opconform("test", *both, "-n", "2")
    assert found.exit_code == 1
    assert found.output.count("cannot run: ") == 2
    assert "its process ended with exit status 3" in found.output


def test_a_report_folder_that_cannot_be_written_does_not_hide_the_failure(empty_folder: Path) -> None:
    (empty_folder / "taken").write_text("a file")
    found = opconform("test", "--backend", spec("IgnoresNe3"), *SHORT, "--report-dir", "taken")
    assert found.exit_code == 1
    assert "WRONG VALUES  acc on " in found.output
    assert "the failing case could not be stored: " in found.output


@pytest.mark.parametrize("command", ["test", "replay"])
def test_a_device_that_does_not_open_is_a_failure_in_one_line(command: str) -> None:
    chosen = ["acc/kb001"] if command == "replay" else ["--op", "acc"]
    found = opconform(command, *chosen, "--backend", spec("OpensBadly"))
    assert found.exit_code == 1
    assert found.output.count("the driver is too old (1.1); install driver 1.2 or newer") == 1


def test_a_device_lost_on_the_way_fails_and_the_other_devices_run() -> None:
    found = opconform(
        "test", "--backend", spec("DiesWhenOpenedAgain"), "--backend", spec("Good"), *SHORT[:-1], "--max-examples", "8"
    )
    assert found.exit_code == 1
    assert "CRASH  acc on" in found.output  # although nothing more can be found out about it
    assert "passed      acc on" in found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("test --backend nope", "no backend 'nope'; there are "),
        ("test --backend nope.py:X", "no file nope.py, named by --backend nope.py:X"),
        ("test --backend {Good}:7", "no such device; there are {Good}:0"),
        ("test --backend {NotABackend}", "has no Backend class 'NotABackend'; it has Good, TwoDevices, "),
        ("test --backend {ListsNone}", "cannot run: no such device on this machine; plug one in"),
        ("test --backend {TwinDevices}", "two devices have the id '0'"),
        (
            "test --no-isolation --backend {TwinDevices}",
            "cannot run: could not list its devices: two devices have the id '0'; mend the backend",
        ),
        ("test --backend {CrashesWhenListing}", "signal SIGABRT; libsample: cannot map the device"),
        ("test --op acc,nope", "no op 'nope'; there are abs, acc, "),
        ("test --profile nope", "'nope' is not one of 'quick', 'default', 'nightly'"),
        (
            "test --case nope",
            "no case 'nope': no such file, no known case (opconform list --cases), none in opconform-out",
        ),
        ("replay nope.json", "nope.json: No such file or directory"),
        ("test --backend {Good} -n 2 --output csv", "--output csv has a row for each case, which the processes of -n"),
        ("test --backend {Good} -n 2 --output sql", "--output sql has a row for each case, which the processes of -n"),
        ("test --check nope", "no check 'nope' on request; there are deterministic, batch_invariant, layout_invariant"),
        ("test --max-bytes 3X", "'3X' is not a size"),
        ("test --max-examples 0", "--max-examples is 0; it must be above 0"),
        ("test --max-examples many", "'many' is not a valid integer"),
        ("test --time-limit inf", "--time-limit is inf; it must be above 0"),
        ("test --minutes -1", "--minutes is -1; it must be above 0"),
        ("test --seed -1", "--seed is -1; it must be 0 or above"),
        ("support --op nope", "no op 'nope'; there are "),
        ("replay", "Missing argument 'CASE'"),
        ("nope", "No such command 'nope'"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_status_2(arguments: str, message: str) -> None:
    names = {name: spec(name) for name in CLASSES}
    found = opconform(*arguments.format(**names).split())
    assert found.exit_code == 2
    (line,) = [line for line in found.output.splitlines() if line.startswith("Error: ")]
    assert message.format(**names) in line
    assert found.output.endswith(line + "\n")


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": 1}', "{" * 10**5, '{"seed": ' + "9" * 5000 + "}"])
def test_a_file_that_is_no_case_gives_one_line(text: str) -> None:
    Path("bad.json").write_text(text)
    found = opconform("replay", "bad.json", "--backend", spec("Good"))
    assert found.exit_code == 2
    assert found.output.splitlines()[-1].startswith("Error: bad.json: ")


def test_names_that_no_file_can_have_are_usage_errors() -> None:
    for name in ("a" * 5000, "\0", "a/" * 3000):
        assert opconform("replay", name, "--backend", spec("Good")).exit_code == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["Slow", "SleepsAlways", "AbortsOnNe3"])
def test_ctrl_c_ends_the_run_and_all_its_processes(name: str, empty_folder: Path) -> None:
    command = [sys.executable, "-c", "from opconform.cli import main; main()", "test", "--backend", spec(name)]
    with subprocess.Popen(
        [*command, "--op", "acc"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # the signal goes to the whole group, as from a terminal
    ) as process:
        assert process.stdout is not None
        while name not in process.stdout.readline():
            pass
        assert within(10, lambda: bool(children(process.pid)))
        time.sleep(0.3)
        workers = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Traceback" not in output
    assert re.fullmatch(r"stopped by Ctrl-C after \d of 1 pairs of op and device", output.splitlines()[-1])
    assert within(3, lambda: not any(Path("/proc", str(pid)).exists() for pid in workers))
    assert not list(empty_folder.glob("reports/**/*.part"))
    for file in empty_folder.glob("opconform-out/cases/*"):
        Case.from_json(json.loads(file.read_text()))


def test_ctrl_c_prints_the_matrix_of_what_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from opconform.campaign import Campaign

    result, run = Campaign.result, []

    def second_is_stopped(*arguments: Any) -> Any:
        run.append(arguments)
        if len(run) == 2:
            raise KeyboardInterrupt
        return result(*arguments)

    monkeypatch.setattr(Campaign, "result", second_is_stopped)
    found = opconform("test", "--backend", spec("Good"), *SHORT[2:], "--op", "acc,cumsum,set")
    assert found.exit_code == 130
    lines = found.output.splitlines()
    assert lines[-1] == "stopped by Ctrl-C after 1 of 3 pairs of op and device"
    assert any(re.fullmatch(r"acc +passed \d+", line) for line in lines)
    assert not any(line.startswith("cumsum") for line in lines)


@pytest.mark.parametrize("command", ["test", "replay"])
def test_what_a_kernel_prints_is_shown_with_its_failure(command: str) -> None:
    chosen = ["acc/kb001"] if command == "replay" else [*SHORT[:-1]]
    found = opconform(command, *chosen, "--backend", spec("Prints"))
    assert found.exit_code == 1
    lines = found.output.splitlines()
    assert re.fullmatch(r"    adding \(\d+, \d+, \d+, [23]\)", lines[lines.index("  it said") + 1])


def test_what_a_kernel_prints_is_shown_when_a_passing_case_is_replayed() -> None:
    Path("fine.json").write_text(json.dumps(acc(3).to_json()))
    found = opconform("replay", "fine.json", "--backend", spec("Prints"))
    assert found.exit_code == 0
    assert f"{spec('Prints')}:0 said\n    adding (3, 1, 1, 1)\n" in found.output


MINE = """
import opconform as oc

class Helper:
    pass

class Base(oc.Backend):
    name = "mine"

class Mine(Base):
    def supports(self, case):
        return None if case.op == "acc" else "not yet"

    def run(self, case, buffers):
        raise RuntimeError("not written")
"""


def test_a_file_with_one_backend_needs_no_class_name() -> None:
    Path("mine.py").write_text(MINE)
    found = opconform("test", "--backend", "mine.py", *SHORT)
    assert "ERROR  acc on mine.py:Mine:0  (mine)" in found.output
    assert opconform("replay", "acc/kb001", "--backend", "mine.py@old", "--no-isolation").exit_code == 1
    Path("two.py").write_text(MINE + "\nclass Other(Base):\n    pass\n")
    found = opconform("test", "--backend", "two.py", *SHORT)
    assert found.exit_code == 2
    assert "two.py has several backends; name one: two.py:Mine, two.py:Other" in found.output
    Path("none.py").write_text("class Mine:\n    pass\n")
    assert "has no class that derives from opconform.Backend" in opconform("test", "--backend", "none.py").output
    Path("broken.py").write_text("class Mine(\n")
    assert "broken.py cannot be read: " in opconform("test", "--backend", "broken.py").output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("opconform test --backend vul", {"vulkan"}),
        ("opconform test --backend ./mi", {"./mine.py"}),
        ("opconform test --op cum", {"cumsum"}),
        ("opconform test --op acc,cum", {"acc,cumsum"}),
        ("opconform test --case cumsum/upstream-1", {"cumsum/upstream-10"}),
        ("opconform replay acc/kb001", {"acc/kb001", "acc/kb001-view"}),
        ("opconform test --check det", {"deterministic"}),
        ("opconform repl", {"replay"}),
    ],
)
def test_a_shell_completes_backends_ops_and_cases(
    words: str, found: set[str], empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the backends are those that are installed
    monkeypatch.chdir(empty_folder)
    Path("mine.py").write_text(MINE)
    count = len(words.split()) - 1
    environment = {"_OPCONFORM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    result = CliRunner().invoke(main, [], env=environment, prog_name="opconform")
    assert {line.partition(",")[2] for line in result.output.splitlines()} >= found
    assert all(line.partition(",")[2].startswith(words.split()[-1]) for line in result.output.splitlines())


def test_the_installed_command_runs() -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("opconform"), "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("opconform, version ")


def test_a_case_file_survives_being_replayed(empty_folder: Path) -> None:
    path = empty_folder / "mine.json"
    path.write_text(json.dumps(acc(3).to_json()))
    before = path.read_bytes()
    assert opconform("replay", str(path), "--backend", spec("Good"), "--no-isolation").exit_code == 0
    assert path.read_bytes() == before
