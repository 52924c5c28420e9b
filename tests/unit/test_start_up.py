"""What a run does before its first case: what it imports, which processes it starts, and that it leaves none behind."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import find
from hypothesis import strategies as st

from opconform.campaign import Campaign
from opconform.cli import main
from opconform.harness.draw.known import known_cases
from opconform.harness.draw.strategies import composite
from opconform.harness.model.ops import ops
from opconform.harness.model.usage import UsageError
from opconform.harness.run import begun
from opconform.harness.run.process import Worker
from opconform.harness.run.wire import Wire
from opconform.harness.search import session

GOOD = f"{Path(__file__).parent.parent / 'backends' / 'sample.py'}:Good"
RUN = ("test", "--backend", GOOD, "--op", "sum_rows", "--max-examples", "8", "--history", "none")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """The workers that are started from here on."""
    found: list[Worker] = []

    class Counted(Worker):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            found.append(self)

    for module in ("search.session", "run.runner", "run.process"):
        monkeypatch.setattr(f"opconform.harness.{module}.Worker", Counted)
    return found


@pytest.mark.parametrize("arguments", [(), ("-n", "1"), ("--case", next(iter(known_cases("sum_rows"))))])
def test_the_worker_that_lists_the_devices_runs_the_cases(
    arguments: tuple[str, ...], started: list[Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(main, [*RUN, *arguments])
    assert found.exit_code == 0, found.output
    assert len(started) == 1
    assert not started[0].is_alive()


@pytest.mark.parametrize("values", [{"op": ("nope",)}, {"case": ("nope",)}, {"minutes": -1.0}])
def test_a_campaign_that_cannot_be_leaves_no_worker(values: dict[str, object], started: list[Worker]) -> None:
    with pytest.raises(UsageError):
        Campaign.of({"backend": (GOOD,), **values}, early=True)
    assert [worker.is_alive() for worker in started] == [False]


def test_a_campaign_that_is_never_opened_ends_its_worker(started: list[Worker]) -> None:
    campaign = Campaign.of({"backend": (GOOD,), "op": ("sum_rows",)}, early=True)
    assert [worker.is_alive() for worker in started] == [True]
    del campaign
    assert [worker.is_alive() for worker in started] == [False]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Wire]:
    """The processes of workers that are started from here on."""
    found: list[Wire] = []
    start = begun.started

    def counted(*arguments: Any) -> tuple[Wire, int]:
        wire, memory = start(*arguments)
        found.append(wire)
        return wire, memory

    monkeypatch.setattr(begun, "started", counted)
    return found


def test_the_process_that_begins_with_the_command_is_the_workers(
    processes: list[Wire], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, RUN).exit_code == 0
    assert [wire.is_alive() for wire in processes] == [False]
    assert begun.taken() is None


@pytest.mark.parametrize("more", [("--op", "nope"), ("--minutes", "-1"), ("--nonsense",), ("--backend", "nope")])
def test_a_process_that_was_begun_for_a_command_that_cannot_be_is_ended(
    more: tuple[str, ...], processes: list[Wire]
) -> None:
    assert CliRunner().invoke(main, ["test", *more]).exit_code == 2
    assert processes
    assert not any(wire.is_alive() for wire in processes)


@pytest.mark.parametrize("more", [("-h",), ("--no-isolation",), ("--sanitize",)])
def test_a_command_that_needs_no_plain_worker_begins_none(more: tuple[str, ...], processes: list[Wire]) -> None:
    CliRunner().invoke(main, ["test", *more, "--op", "nope"])
    assert not processes


@pytest.mark.parametrize("wanted", [(), (GOOD, "torch"), ("nope",), ("nope.py",)])
def test_only_one_backend_that_is_asked_for_starts_early(wanted: tuple[str, ...]) -> None:
    assert session.started(wanted, session.Settings()) == {}
    assert session.started((GOOD,), session.Settings(isolated=False)) == {}


def test_a_run_imports_neither_what_others_registered_nor_what_its_op_does_not_need(tmp_path: Path) -> None:
    told = "import atexit, sys; atexit.register(lambda: print(sorted({'gguf', 'pytest', 'trio'} & {*sys.modules})))"
    script = f"{told}; from opconform.cli import main; main({list(RUN)})"
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("HYPOTHESIS_NO_PLUGINS", None)
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "[]"


def test_the_known_cases_of_an_op_are_those_of_all() -> None:
    known = known_cases()
    assert sum(len(known_cases(op)) for op in ops()) == len(known)
    for op in ("acc", "mul_mat"):
        assert known_cases(op) == {name: case for name, case in known.items() if case.case.op == op}
        assert list(known_cases(op)) == [name for name in known if known[name].case.op == op]


def test_a_composite_is_made_without_its_source_and_draws_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(what: object) -> str:
        asked.append(what)
        raise TypeError

    monkeypatch.setattr(inspect, "getsource", refuse)

    @composite
    def pairs(draw: st.DrawFn, least: int, most: int = 9) -> tuple[int, int]:
        """Two numbers."""
        first = draw(st.integers(least, most))
        return first, draw(st.integers(first, most))

    @composite
    def others(draw: st.DrawFn, least: int) -> int:
        return draw(st.integers(least))

    assert not any(inspect.isfunction(what) for what in asked)
    monkeypatch.undo()
    assert find(pairs(3), lambda pair: pair[1] > pair[0]) == (3, 4)
    assert find(pairs(3, most=5), lambda pair: pair[0] == 5) == (5, 5)
    assert (pairs.__name__, pairs.__doc__) == ("pairs", "Two numbers.")
    assert pairs(3).label == pairs(4).label != others(3).label
