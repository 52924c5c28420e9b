"""What a run says of how far it is: which pair of how many, what it does there, how much time is left."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from opconform import parallel, progress
from opconform.cases.acc import OP as ACC
from opconform.cases.cumsum import OP as CUMSUM
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.run.backend import Device
from opconform.harness.run.target import Target
from opconform.harness.search.result import Result, Tally
from opconform.harness.search.settings import Settings
from opconform.progress import Progress
from tests.samples import acc

WHERE = Target("mine", Device("0", "a device"))
WRONG = Verdict(acc(3), (Finding("values", Kind.WRONG_VALUES, "1 of 3 elements differ"),))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until its `now` is set."""
    found = SimpleNamespace(now=0.0)
    for module in (progress, parallel):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_off_a_terminal_a_line_every_30_seconds_says_where_the_run_is(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(3, Settings(), lambda: 300.0)
    shown.begins(ACC, WHERE)
    clock.now = 29.0
    shown.progress(ACC, WHERE, Tally(8))
    assert lines(capsys) == []
    clock.now = 30.0
    shown.progress(ACC, WHERE, Tally(9))
    assert lines(capsys) == ["…           1 of 3  acc on mine:0, 4:30 min left: 9 cases so far"]
    clock.now = 59.0
    shown.shrinking(ACC, WHERE, WRONG)
    assert lines(capsys) == []
    clock.now = 61.0
    shown.progress(ACC, WHERE, Tally(9, 1))
    assert lines(capsys) == [
        "…           1 of 3  acc on mine:0, shrinking WRONG VALUES, 3:59 min left: 10 cases so far"
    ]
    clock.now = 80.0
    shown.result(ACC, WHERE, Result("acc", "mine:0", "a device", Tally(10, seconds=80.0)))
    assert lines(capsys) == ["passed      acc on mine:0: 10 cases in 80.0 s"]
    clock.now = 109.0
    shown.begins(CUMSUM, WHERE)
    shown.progress(CUMSUM, WHERE, Tally(1))
    assert lines(capsys) == []
    clock.now = 310.0
    shown.progress(CUMSUM, WHERE, Tally(2))
    assert lines(capsys) == ["…           2 of 3  cumsum on mine:0, 0:00 min left: 2 cases so far"]


def test_without_a_time_limit_the_time_left_is_estimated_from_the_pairs_before(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(10, Settings())
    for clock.now in (20.0, 40.0, 60.0):
        shown.begins(ACC, WHERE)
        shown.result(ACC, WHERE, Result("acc", "mine:0", "a device", Tally(10, seconds=20.0)))
    shown.begins(CUMSUM, WHERE)
    clock.now = 90.0
    lines(capsys)
    shown.progress(CUMSUM, WHERE, Tally(5))
    assert lines(capsys) == ["…           4 of 10  cumsum on mine:0, about 3:30 min left: 5 cases so far"]


def test_where_two_pairs_run_at_once_each_goes_by_its_own_name(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress(2, Settings())
    shown.begins(ACC, WHERE)
    shown.begins(CUMSUM, WHERE)
    shown.shrinking(ACC, WHERE, WRONG)
    clock.now = 30.0
    shown.progress(CUMSUM, WHERE, Tally(5))
    clock.now = 60.0
    shown.progress(ACC, WHERE, Tally(7))
    assert lines(capsys) == [
        "…           2 of 2  cumsum on mine:0: 5 cases so far",
        "…           1 of 2  acc on mine:0, shrinking WRONG VALUES: 7 cases so far",
    ]


def test_on_a_terminal_each_running_pair_has_a_bar_and_its_name_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    odd = Target("[red]x[/].py:Mine", Device("0", "a device"))
    shown = Progress(3, Settings(examples=50))
    try:
        shown.begins(ACC, WHERE)
        shown.begins(ACC, odd)
        shown.begins(CUMSUM, WHERE)
        shown.lost(CUMSUM, WHERE, "it does not open")
        shown.result(ACC, WHERE, Result("acc", "mine:0", "a device", Tally(10)))
        shown.progress(ACC, odd, Tally(20))
        assert shown._bar is not None
        (task,) = shown._bar.tasks
        assert (task.description, task.completed, task.total) == ("2 of 3  acc on [red]x[/].py:Mine:0", 20, 50)
        shown._bar.refresh()
    finally:
        shown.close()
    assert "acc on [red]x[/].py:Mine:0" in terminal.getvalue()


def test_a_process_tells_how_far_it_is_once_a_second(clock: SimpleNamespace) -> None:
    stream = io.StringIO()
    told = parallel._Told(stream)
    for clock.now in (0.0, 0.5, 0.9, 1.0, 1.5):
        told.progress(ACC, WHERE, Tally(round(10 * clock.now)))
    sent = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(what, Tally.from_json(content).executed) for what, content in sent] == [("progress", 0), ("progress", 10)]
