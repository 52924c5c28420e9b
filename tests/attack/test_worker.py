"""Whatever a worker does is a verdict on its case or its device, with a plain reason, and nothing is left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opconform.cases.acc import OP as ACC
from opconform.harness.judge.judging import Verdict
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.process import devices_of
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from tests.samples import acc, children, descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    gc.collect()
    processes, files = children(), descriptors()
    yield
    gc.collect()
    assert children() <= processes
    assert descriptors() <= files
    assert not Path("pwned").exists()


def evil(name: str) -> str:
    return f"{Path(__file__).with_name('evil.py')}:{name}"


def target(name: str) -> Target:
    return Target(evil(name), devices_of(evil(name), {})[0])


def verdicts(name: str, count: int = 1, time_limit: float = 10.0, isolated: bool = True) -> list[Verdict]:
    with Runner(target(name), time_limit=time_limit, isolated=isolated) as runner:
        return runner.verdicts(ACC, [acc(3)] * count)


PROTOCOL = "its worker does not keep to the protocol: "


@pytest.mark.parametrize(
    ("name", "kind", "detail"),
    [
        ("SendsGarbage", "ERROR", PROTOCOL + "b'\\xfa"),
        ("SendsFramedGarbage", "ERROR", PROTOCOL + "b'\\xff\\xfe no json' is no message"),
        ("SendsDeepJson", "ERROR", PROTOCOL + "b'[[["),
        ("SendsAPickle", "ERROR", PROTOCOL + "b'\\x80"),
        ("SendsAnotherMessage", "ERROR", PROTOCOL + "a message of 'limits' came instead of an answer"),
        ("SendsAnAnswerOfNonsense", "ERROR", PROTOCOL + "an answer is {'seconds': -1}"),
        ("SendsANumber", "ERROR", PROTOCOL + "b'7' is no message"),
        ("AnnouncesArrays", "ERROR", PROTOCOL + "b'\\x00\\x00\\x00"),
        ("SendsAnEmptyError", "ERROR", "it said nothing"),
        ("SendsATimeThatNoFloatHolds", "ERROR", PROTOCOL + "the time of a case is 10000"),
        ("SeesAFaultAndSaysNothing", "DATA RACE", "it said nothing"),
        ("DiesOfARealTimeSignal", "CRASH", "the process ended with signal 39"),
        ("ClosesItsSocket", "CRASH", "it hung up and did not end"),
        ("LeavesAChildAndDies", "CRASH", "the process ended with signal SIGSEGV"),
        ("CutsItsMemory", "ERROR", "PermissionError: [Errno 1] Operation not permitted"),
        ("SupportsANumber", "ERROR", "TypeError: supports returned 3; it returns None or the reason as a text"),
        ("RaisesWithSurrogates", "ERROR", "RuntimeError: the driver says \\udcff\\ud800"),
        ("HasNumericsOfNonsense", "ERROR", "ValueError: Numerics.roundoff is nan; it must be a number from 0 on"),
        ("HasNumericsThatNoFloatHolds", "ERROR", "ValueError: Numerics.exp_ulps is 10000"),
        ("HasNumericsOfAnotherType", "ERROR", "TypeError: numerics returned 5.960464477539063e-08; it returns None"),
    ],
)
def test_each_attack_is_a_verdict_and_the_next_case_has_one_too(name: str, kind: str, detail: str) -> None:
    start = time.monotonic()
    found = verdicts(name, 2)
    assert [verdict.kind for verdict in found] == [kind, kind]
    assert found[0].findings[0].detail.startswith(detail)
    assert time.monotonic() - start < 20 + 2 * 5


@pytest.mark.parametrize("name", ["SendsHalfAHead", "SendsHalfAMessage", "DripsAMessage"])
def test_half_a_message_ends_at_the_time_limit(name: str) -> None:
    start = time.monotonic()
    (verdict,) = verdicts(name, time_limit=0.5)
    assert (verdict.kind, verdict.findings[0].detail) == ("TIMEOUT", "no answer within 2 s")
    assert time.monotonic() - start < 12


def test_an_answer_too_many_is_no_pass_for_a_case_that_has_not_run() -> None:
    with Runner(target("SendsTwoAnswers")) as runner:
        found = runner.verdicts(ACC, [acc(3)] * 3)
    assert found[1].kind == "ERROR"
    assert found[1].findings[0].detail == PROTOCOL + "the answer to case 0 came instead of that to case 1"


@pytest.mark.parametrize("name", ["KeepsItsMemoryShort", "MakesItsMemoryLonger"])
def test_the_size_of_the_memory_is_the_harness_own(name: str) -> None:
    with Runner(target(name)) as runner:
        found = [runner.verdicts(ACC, [acc(3, a=(n, n))])[0].kind for n in (4, 64, 512)]
    assert found == ["", "", ""]


def test_a_reason_with_surrogates_can_be_printed() -> None:
    (verdict,) = verdicts("SupportsWithSurrogates")
    assert verdict.unsupported == "no \\udcff kernel"
    verdict.unsupported.encode("utf-8")


def test_children_end_with_their_worker() -> None:
    (verdict,) = verdicts("LeavesTenChildren")
    assert verdict.passed
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "import time; time.sleep(1e6)" not in listed


def test_output_without_end_is_drained_and_not_kept() -> None:
    script = (  # VmHWM is this program's own; ru_maxrss begins with that of the program that started it
        "from pathlib import Path\n"
        "from tests.attack.test_worker import verdicts\n"
        "assert verdicts('PrintsWithoutEnd')[0].passed\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert int(done.stdout) < 400 << 10  # KiB; twice that was printed in the worker's first second


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ListsTexts", "devices returned '0'; it returns a list of Device"),
        ("ListsOneDeviceTwice", "two devices have the id '0'"),
        ("ListsAVersionOfNonsense", "the version of driver is 3, not a text"),
        ("ListsNonsenseNumerics", "Numerics.division_ulps is -1.0; it must be a number from 0 on"),
        ("LeavesAtTheList", "SystemExit: 3: a backend must not end the process it runs in"),
        ("HasLimitsOfNonsense", "it returns Limits, which allow a LayoutClass or a tuple"),
        ("HasNoLimits", "'NoneType' object is not iterable"),
        ("HasLimitsOfAnUnknownKind", "'whim' is no kind of limit"),
    ],
)
def test_without_isolation_a_device_of_nonsense_is_unavailable_too(name: str, says: str) -> None:
    with pytest.raises(Unavailable) as found:
        Runner(Target(evil(name), devices_of(evil(name), {}, isolated=False)[0]), isolated=False)
    assert says in str(found.value)


def test_without_isolation_what_a_backend_says_of_cases_is_looked_at_too() -> None:
    with Runner(target("SupportsWithSurrogates"), isolated=False) as runner:
        assert runner.supports([acc(3)]) == ["no \\udcff kernel"]
    for name in ("SupportsANumber", "HasNumericsOfNonsense", "HasNumericsOfAnotherType"):
        with Runner(target(name), isolated=False) as runner:
            assert runner.verdicts(ACC, [acc(3)])[0].kind == "ERROR"
            with pytest.raises(Unavailable):
                runner.supports([acc(3)]) if name == "SupportsANumber" else runner.numerics_of(acc(3))


def test_without_isolation_a_backend_that_leaves_python_is_an_error() -> None:
    (verdict,) = verdicts("LeavesThePython", isolated=False)
    assert (verdict.kind, verdict.findings[0].detail) == (
        "ERROR",
        "SystemExit: 7: a backend must not end the process it runs in",
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ListsTexts", "devices returned '0'; it returns a list of Device"),
        ("ListsOneDeviceTwice", "two devices have the id '0'"),
        ("ListsAVersionOfNonsense", "the version of driver is 3, not a text"),
        ("ListsAFoulId", "a device has the id '\\x1b]0;owned"),
        ("ListsAnIdThatIsACommand", "a device has the id ':error:"),
        ("ListsNonsenseNumerics", r"Numerics.division_ulps is -1.0; it must be a number from 0 on"),
    ],
)
def test_a_list_of_devices_that_is_none_is_unavailable(name: str, says: str) -> None:
    with pytest.raises(Unavailable) as found:
        devices_of(evil(name), {})
    assert says in str(found.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("HasLimitsOfNonsense", "it returns Limits, which allow a LayoutClass or a tuple"),
        ("HasNoLimits", "'NoneType' object is not iterable"),
        ("HasLimitsOfAnUnknownKind", "'whim' is no kind of limit"),
    ],
)
def test_limits_that_are_none_make_the_device_unavailable(name: str, says: str) -> None:
    with pytest.raises(Unavailable) as found:
        Runner(target(name))
    assert says in str(found.value)


def test_a_worker_that_never_reads_does_not_hold_the_harness() -> None:
    with Runner(target("SendsHalfAHead"), time_limit=0.3) as runner:
        start = time.monotonic()
        found = runner.verdicts(ACC, [acc(64, a=(64, 64))] * 40, until_death=True)
    assert found[0].kind == "TIMEOUT"
    assert time.monotonic() - start < 12
