"""A failing case shown to other devices: who answers, in what time, and that nothing there breaks a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from opconform.cases.acc import OP as ACC
from opconform.cases.cumsum import OP as CUMSUM
from opconform.harness.explain.blame import Panel
from opconform.harness.explain.failure import Failure
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search import session as session_module
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import Result
from opconform.harness.search.session import Session, targets_of
from opconform.harness.search.settings import Settings
from tests.samples import acc, children, spec, target

NE3 = acc(1, 1, 1, 2)
WRONG = "IgnoresNe3"


@pytest.fixture
def asked() -> Iterator[Callable[..., str]]:
    """The line on a case that `name` fails, from a panel of the sample backends `others`."""
    open_ones: list[Panel | Runner] = []

    def ask(name: str, *others: str, seconds: float = 60.0, case: Case = NE3, kind: str = "WRONG VALUES") -> str:
        panel = Panel(lambda: {spec(other): {} for other in others}, seconds, 1 << 20)
        runner = Runner(target(name))
        open_ones.extend([panel, runner])
        return panel.line(ACC, case, kind, "is the case itself", runner.target, lambda: runner)

    yield ask
    for each in open_ones:
        each.close()


def label(name: str) -> str:
    return f"{spec(name)}:0"


def test_others_agree_fail_or_refuse(asked: Callable[..., str]) -> None:
    said = asked(WRONG, "Good", WRONG, "AbortsOnNe3", "SaysNo", "ListsNone")
    assert said == (
        f"{label('Good')} agrees with the reference; {label('AbortsOnNe3')} fails too; fails 3 times of 3 — "
        f"the kernel of {label(WRONG)} or its driver is to blame, not the reference"
    )


def test_a_device_under_an_alias_is_not_asked_again_under_its_own_name() -> None:
    panel = Panel(lambda: {spec(WRONG): {}, spec("Good"): {}}, 60.0, 1 << 20)
    with Runner(replace(target(WRONG), alias="old")) as runner:
        said = panel.line(ACC, NE3, "WRONG VALUES", "is the case itself", runner.target, lambda: runner)
    panel.close()
    assert said.startswith(f"{label('Good')} agrees with the reference; fails 3 times of 3 — ")
    assert f"the kernel of {label(WRONG)}@old or its driver" in said


def test_the_same_wrong_answer_everywhere_puts_the_reference_in_doubt(asked: Callable[..., str]) -> None:
    said = asked(WRONG, "WrongThenAborts")
    assert said.endswith(f"the reference is suspect: {label('WrongThenAborts')} returns what {label(WRONG)} returns")


def test_a_failure_that_comes_and_goes_is_a_race(asked: Callable[..., str]) -> None:
    said = asked("Flaky", "Good", case=acc(1))
    assert said == (
        f"{label('Good')} agrees with the reference; fails 1 time of 3 — "
        f"a race, or memory that nobody has set, in {label('Flaky')}"
    )


def test_a_crash_is_run_again_too(asked: Callable[..., str]) -> None:
    said = asked("AbortsOnNe3", "Good", kind="CRASH")
    assert "; fails 3 times of 3 — the kernel of " in said


def test_what_only_another_run_shows_is_looked_for_in_both() -> None:
    x = Layout("f32", (1, 1, 1, 64), (1024, 1024, 1024, 8))
    params = {"axis": 0, "exclusive": False, "reverse": False}
    case = Case("cumsum", params, {"x": x}, {"out": x.packed()}, recipe="normal")
    panel = Panel(lambda: {spec("Good"): {}}, 60.0, 1 << 20)
    with Runner(target("SumsByLayout")) as runner:
        said = panel.line(CUMSUM, case, "DEPENDS ON LAYOUT", "passes", runner.target, lambda: runner)
    panel.close()
    assert said.startswith(f"{label('Good')} agrees with the reference; packed twin passes; fails 3 times of 3 — ")


def test_a_hang_is_not_run_again(asked: Callable[..., str]) -> None:
    said = asked("SleepsAlways", "Good", kind="TIMEOUT")
    assert " of 3" not in said
    assert said.endswith("or its driver is to blame, not the reference")


def test_the_time_is_kept(asked: Callable[..., str]) -> None:
    start = time.monotonic()
    said = asked(WRONG, "HangsWhenListing", "SleepsAlways", seconds=3.0)
    assert time.monotonic() - start < 8
    assert f"no answer from {label('SleepsAlways')} in time" in said or said.startswith("no other device was asked")


def test_a_device_that_is_open_answers_whatever_the_others_do() -> None:
    with Runner(target("Good")) as ready, Runner(target(WRONG)) as wrong:
        backends = {spec("HangsWhenListing"): {}, spec("SleepsAlways"): {}}
        panel = Panel(lambda: backends, 0.5, 1 << 20, lambda: [ready, wrong])
        said = panel.line(ACC, NE3, "WRONG VALUES", "is the case itself", wrong.target, lambda: wrong)
        panel.close()
    assert said.startswith(f"{label('Good')} agrees with the reference")
    assert said.endswith(f"— the kernel of {label(WRONG)} or its driver is to blame, not the reference")


def test_a_device_that_is_open_is_asked_once() -> None:
    with Runner(target("Good")) as ready, Runner(target(WRONG)) as wrong:
        panel = Panel(lambda: {spec("Good"): {}, spec(WRONG): {}}, 60.0, 1 << 20, lambda: [ready, wrong])
        said = panel.line(ACC, NE3, "WRONG VALUES", "is the case itself", wrong.target, lambda: wrong)
        panel.close()
    assert said.startswith(f"{label('Good')} agrees with the reference; fails 3 times of 3 — ")


def test_another_build_that_is_open_is_asked_too() -> None:
    old = replace(target("Good"), alias="old", options={"ggml_lib": "/old"})
    with Runner(old) as ready, Runner(target(WRONG)) as wrong:
        panel = Panel(lambda: {spec("Good"): {}}, 60.0, 1 << 20, lambda: [ready, wrong])
        said = panel.line(ACC, NE3, "WRONG VALUES", "is the case itself", wrong.target, lambda: wrong)
        panel.close()
    assert said.startswith(f"{label('Good')}@old and {label('Good')} agree with the reference; ")


def test_the_failure_is_told_before_anybody_is_asked_who_is_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []

    class Watch(Observer):
        def failure(self, op: Op, target: Target, failure: Failure) -> None:
            told.append(f"failure {failure.kind}{failure.also}")

        def result(self, op: Op, target: Target, result: Result) -> None:
            assert result.failure is not None
            told.append(f"result {result.failure.also}")

    def line(*_: object) -> str:
        told.append("also")
        raise KeyboardInterrupt

    monkeypatch.setattr(Panel, "line", line)
    settings = Settings(isolated=False)
    (found,), _ = targets_of([spec(WRONG)], settings)
    with Session(settings, [Watch()]) as session, pytest.raises(KeyboardInterrupt):
        session.replay(ACC, found, [("case", NE3)])
    assert told == ["failure WRONG VALUES", "also", "result "]


def test_no_time_means_no_line(asked: Callable[..., str]) -> None:
    before = children()
    assert asked(WRONG, "Good", seconds=0) == ""
    assert len(children() - before) == 1  # the worker of the runner itself


def test_what_goes_wrong_is_said_and_nothing_more(asked: Callable[..., str]) -> None:
    panel = Panel(dict, 20.0, 1 << 20)

    def lost() -> Runner:
        raise RuntimeError("the device is gone")

    said = panel.line(ACC, NE3, "WRONG VALUES", "", target(WRONG), lost)
    assert said == "not found out (RuntimeError: the device is gone)"


def test_others_are_asked_although_the_device_is_lost() -> None:
    def lost() -> Runner:
        raise Unavailable("the device is lost", "reset it")

    panel = Panel(lambda: {spec("Good"): {}}, 60.0, 1 << 20)
    said = panel.line(ACC, NE3, "CRASH", "lost", target("DiesWhenOpenedAgain"), lost)
    panel.close()
    assert said.startswith(f"{label('Good')} agrees with the reference — the kernel of ")


def test_no_worker_outlives_the_panel() -> None:
    before = children()
    panel = Panel(lambda: {spec("Good"): {}, spec("SaysNo"): {}, spec("ListsNone"): {}}, 60.0, 1 << 20)
    with Runner(target(WRONG)) as runner:
        panel.line(ACC, NE3, "WRONG VALUES", "", runner.target, lambda: runner)
        panel.line(ACC, NE3, "WRONG VALUES", "", runner.target, lambda: runner)
    panel.close()
    assert children() == before


def replayed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **chosen: float) -> Failure:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session_module, "backend_names", lambda: [spec("Good")])
    settings = Settings(isolated=True, **chosen)  # type: ignore[arg-type]
    (found,), _ = targets_of([spec(name)], settings)
    with Session(settings) as session:
        failure = session.replay(ACC, found, [("case", NE3)]).failure
    assert failure is not None
    return failure


def test_a_session_adds_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = replayed(WRONG, tmp_path, monkeypatch)
    assert failure.also.startswith(f"{label('Good')} agrees with the reference; fails 3 times of 3 — the kernel of ")
    assert replayed(WRONG, tmp_path, monkeypatch, also_seconds=0).also == ""


def test_another_device_of_the_failing_backend_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session_module, "backend_names", list)
    settings = Settings()
    (wrong,), _ = targets_of([f"{spec('TwoDevices')}:1"], settings)
    with Session(settings) as session:
        failure = session.replay(ACC, wrong, [("case", acc(1))]).failure
    assert failure is not None
    assert failure.also.startswith(f"{spec('TwoDevices')}:0 agrees with the reference")


def test_a_device_that_does_not_open_after_a_crash_is_opened_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure stands although nothing more can be found out, and the next op runs once the device is back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session_module, "backend_names", list)
    settings = Settings()
    (found,), _ = targets_of([spec("DiesWhenOpenedAgain")], settings)
    with Session(settings) as session:
        runner = session.runner(found)
        assert runner.verdicts(ACC, [NE3])[0].kind == "CRASH"
        assert runner.lost
        os.unlink("crashed")
        assert session.replay(ops()["cumsum"], found, []).failure is None
        assert session.runner(found) is not runner
