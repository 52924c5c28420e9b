"""What stands in the way of one op on one device is said, makes the run red, and keeps no other pair from running."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from opconform import parallel
from opconform.budget import Budget
from opconform.campaign import Campaign
from opconform.cases.acc import OP as ACC
from opconform.cli import main
from opconform.harness.draw.known import known_cases, write_case
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.op import Op
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import Tally
from opconform.harness.search.search import Search
from opconform.harness.search.session import Session
from opconform.harness.search.settings import Settings
from tests.samples import children, spec, target

SHORT = ("--max-examples", "40", "--seed", "1", "--history", "none")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opconform(*arguments: str) -> Result:
    found = CliRunner().invoke(main, arguments)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        (("replay", "acc/kb001", "--no-isolation"), "1 cases run, 0 passed, 1 failed"),
        (("support", "--op", "acc"), ":1  the wrong one\n  acc: yes"),
        (("coverage",), "ACC  op          tested on "),
    ],
)
def test_after_a_device_that_does_not_open_the_next_one_is_asked(command: tuple[str, ...], goes_on: str) -> None:
    found = opconform(*command, "--backend", spec("OpensTheSecond"))
    assert found.exit_code == 1
    (line,) = [line for line in found.output.splitlines() if line.startswith("FAILED ")]
    assert line.endswith(f"{spec('OpensTheSecond')}:0 cannot run: device 0 is in use; stop the other program")
    assert goes_on in found.output


def test_an_empty_case_does_not_count_as_run_by_its_name_either() -> None:
    chosen = ("--backend", spec("Good"), "--no-isolation", "--history", "none")
    alone = opconform("replay", "cumsum/empty", *chosen)
    assert alone.exit_code == 1
    assert "nothing was executed: that is a failure, not a pass" in alone.output
    full = known_cases()["cumsum/upstream-10"].case
    for name, case in (("empty", known_cases()["cumsum/empty"].case), ("full", full)):
        write_case(case, Path("both", f"{name}.json"))
    both = opconform("test", "--case", "both", *chosen)
    assert both.exit_code == 0
    assert "1 cases run, 1 passed, 0 failed" in both.output
    assert "1 more cases say nothing and do not count" in both.output


def test_a_case_that_a_copy_passes_counts_when_it_is_named() -> None:
    plain = known_cases()["cumsum/upstream-10"].case.to_json()
    for layout in (*plain["inputs"].values(), *plain["outputs"].values()):
        layout.update(shape=[1, 1, 1, 1], strides=[4, 4, 4, 4])
    Path("one.json").write_text(json.dumps({**plain, "recipe": "index", "seed": 3}))
    found = opconform("replay", "one.json", "--backend", spec("Good"), "--no-isolation", "--history", "none")
    assert found.exit_code == 0
    assert "1 cases run, 1 passed" in found.output


BROKEN = """
from opconform.harness.model.usage import UsageError
from opconform.harness.search.search import Search

run = Search.run

def broken(self):
    if self._op.name == "acc":
        raise {error}
    return run(self)

Search.run = broken
"""


def break_acc(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    """Let the search of acc raise, here and in the processes of `-n`."""
    broken = BROKEN.format(error=error)
    monkeypatch.setattr(Search, "run", Search.run)  # it is put back at the end
    exec(broken, {})
    monkeypatch.setattr(parallel, "_START", f"{broken}\n{parallel._START}")


@pytest.mark.parametrize("processes", [(), ("-n", "2")])
def test_a_pair_that_breaks_off_is_red_and_the_next_one_runs(
    processes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_acc(monkeypatch, r"ZeroDivisionError('\x1b[31m by zero\n::error::x')")
    found = opconform("test", "--backend", spec("Good"), "--op", "acc,cumsum", *SHORT, *processes)
    assert found.exit_code == 1
    (line,) = [line for line in found.output.splitlines() if line.startswith("FAILED ")]
    where = re.escape(f"acc on {spec('Good')}:0")
    says = re.escape(r"ZeroDivisionError: \x1b[31m by zero\n\x3a:error::x")
    assert re.fullmatch(rf"FAILED +{where} broke off in Opconform itself: {says} \(.+:\d+\)", line)
    assert "passed      cumsum on " in found.output


@pytest.mark.parametrize("processes", [(), ("-n", "2")])
def test_what_the_user_cannot_have_ends_the_run_from_within_a_pair_too(
    processes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_acc(monkeypatch, "UsageError('no such thing')")
    found = opconform("test", "--backend", spec("Good"), "--op", "acc,cumsum", *SHORT, *processes)
    assert found.exit_code == 2
    assert found.output.endswith("Error: no such thing\n")


def test_after_a_pair_that_breaks_off_the_device_is_opened_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(search: Search) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Search, "run", broken)
    before = children()
    with Session(Settings(history="none")) as session:
        first = session.runner(target("Good"))
        (worker,) = children() - before
        with pytest.raises(ZeroDivisionError):
            session.search(ACC, target("Good"))
        assert session.runner(target("Good")) is not first
        assert worker not in children()


class Heard(Observer):
    """What the process that was started is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.executed: list[int] = []

    def begins(self, op: Op, target: Target) -> None:
        self.events.append((op.name, "begins"))

    def progress(self, op: Op, target: Target, tally: Tally) -> None:
        self.events.append((op.name, "progress"))
        self.executed.append(tally.executed)

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        self.events.append((op.name, f"shrinking {verdict.kind}"))
        assert verdict.case.op == op.name

    def lost(self, op: Op, target: Target, reason: str) -> None:
        self.events.append((op.name, "lost"))


def heard(values: dict[str, Any]) -> Heard:
    campaign, found = Campaign.of(values), Heard()
    budget = Budget(len(campaign.pairs), campaign.settings, None, 2)
    for _ in parallel.results(campaign, values, 2, budget, found):
        pass
    return found


def test_several_processes_tell_how_far_they_are_and_that_they_shrink() -> None:
    values = {"backend": [spec("IgnoresNe3")], "op": ["acc"], "seed": 1, "history": "none", "also_seconds": 0.0}
    found = heard({**values, "max_examples": 40})
    assert found.events[:2] == [("acc", "begins"), ("acc", "progress")]
    assert ("acc", "shrinking WRONG VALUES") in found.events
    assert found.executed == sorted(found.executed)
    assert found.executed[0] > 0


def test_several_processes_tell_of_a_pair_that_is_lost() -> None:
    found = heard({"backend": [spec("OpensBadly")], "op": ["acc,set"], "history": "none"})
    assert sorted(found.events) == [("acc", "begins"), ("acc", "lost"), ("set", "begins"), ("set", "lost")]
