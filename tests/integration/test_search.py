"""The search: what it finds, how small that gets, what it counts, and that it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis.database import ExampleDatabase, InMemoryExampleDatabase, MultiplexedDatabase, ReadOnlyDatabase

from opconform.harness.draw.known import KnownCase
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, LayoutClass
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import KnownBug, Result, Tally
from opconform.harness.search.search import Search
from opconform.harness.search.settings import Settings
from tests.samples import acc, cases_drawn, target

PADDED = Layout("f32", (1, 1, 2, 3), (32, 32, 16, 4))


def known(name: str, case: Case) -> KnownCase:
    return KnownCase(name, "", "", case)


def padded_b() -> Case:
    case = acc(3, 2)
    return Case("acc", case.params, {**case.inputs, "b": PADDED}, case.outputs)


def search(
    name: str,
    op: str = "acc",
    *,
    isolated: bool = False,
    strict: bool = False,
    cases: Sequence[KnownCase] = (),
    database: ExampleDatabase | None = None,
    **chosen: Any,
) -> Result:
    """A short search, in this process unless the backend may die."""
    settings = Settings(**{"examples": 300, "seed": 1, "isolated": isolated, **chosen})
    with Runner(
        target(name), time_limit=settings.time_limit, isolated=isolated, strict=strict, max_bytes=settings.max_bytes
    ) as runner:
        return Search(ops()[op], runner, settings, cases, database).run()


def kind_of(result: Result) -> str:
    return "" if result.failure is None else result.failure.kind


@pytest.mark.parametrize("op", ["acc", "set", "cumsum", "solve_tri"])
def test_a_right_backend_passes_every_case(op: str) -> None:
    result = search("Good", op)
    assert result.failure is None
    assert result.tally.failed == 0
    assert result.tally.passed >= 300
    assert not result.tally.unsupported


@pytest.mark.parametrize("seed", range(6))
def test_a_dropped_dimension_shrinks_to_two_elements(seed: int) -> None:
    failure = search("IgnoresNe3", seed=seed).failure
    assert failure is not None
    assert failure.kind == "WRONG VALUES"
    assert failure.unfinished == ""
    case = failure.case
    assert (case.inputs["a"], case.inputs["b"]) == (acc(1, 1, 1, 2).inputs["a"],) * 2
    assert (case.recipe, case.seed, case.keep, case.inplace) == ("small_int", 0, None, None)
    assert failure.packed_twin == "is the case itself"
    assert failure.wrong is not None
    assert (failure.wrong.count, failure.wrong.total) == (1, 2)


def test_an_abort_shrinks_to_a_case_that_aborts_again() -> None:
    result = search("AbortsOnNe3", isolated=True)
    assert result.failure is not None
    assert result.failure.case.inputs["b"] == acc(1, 1, 1, 2).inputs["b"]
    assert result.failure.stderr == "GGML_ASSERT(src1->ne[3] == 1) failed"
    with Runner(target("AbortsOnNe3")) as runner:
        assert runner.verdicts(ops()["acc"], [Case.from_json(result.failure.case.to_json())])[0].kind == "CRASH"


def test_a_hang_shrinks_to_a_case_that_hangs_for_the_whole_limit() -> None:
    start = time.monotonic()
    result = search("SleepsOnOdd", isolated=True, time_limit=0.4)
    assert time.monotonic() - start < 45
    assert result.failure is not None
    assert kind_of(result) == "TIMEOUT"
    assert result.failure.case.inputs["b"].ne == (3, 1, 1, 1)
    assert result.failure.findings[0].detail == "no answer within 1.6 s"


@pytest.mark.parametrize(("seed", "kind", "ne"), [(11, "CRASH", (1, 1, 2, 1)), (0, "WRONG VALUES", (1, 1, 1, 2))])
def test_a_failure_stays_of_its_kind_while_it_shrinks(seed: int, kind: str, ne: tuple[int, ...]) -> None:
    result = search("WrongThenAborts", isolated=True, seed=seed)
    assert result.failure is not None
    assert (kind_of(result), result.failure.case.inputs["b"].ne) == (kind, ne)


def test_shrinking_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opconform.harness.search.search.SHRINK_SECONDS", 0.0)
    failure = search("IgnoresNe3").failure
    assert failure is not None
    assert failure.kind == "WRONG VALUES"


def test_a_failure_that_does_not_repeat_is_not_deterministic() -> None:
    failure = search("Flaky").failure
    assert failure is not None
    assert [finding.kind for finding in failure.findings] == ["NOT DETERMINISTIC", "WRONG VALUES"]
    assert failure.findings[0].detail.startswith("wrong at first, then right ")


@pytest.mark.parametrize(
    ("check", "breaks", "kind"),
    [
        ("deterministic", "Jitters", "NOT DETERMINISTIC"),
        ("batch_invariant", "SumsByBatch", "DEPENDS ON BATCH"),
        ("layout_invariant", "SumsByLayout", "DEPENDS ON LAYOUT"),
    ],
)
def test_a_check_on_request_finds_the_backend_that_breaks_it_and_no_other(check: str, breaks: str, kind: str) -> None:
    assert kind_of(search(breaks, "cumsum")) == ""
    assert kind_of(search(breaks, "cumsum", checks=(check,))) == kind
    assert kind_of(search("Good", "cumsum", checks=(check,))) == ""


def test_known_cases_are_tried_and_named_where_they_fail() -> None:
    cases = [known("acc/fine", acc(3)), known("acc/wrong", acc(2, 1, 1, 2)), known("acc/wrong-too", acc(1, 2, 1, 3))]
    result = search("IgnoresNe3", cases=cases)
    assert result.failed_known == ("acc/wrong", "acc/wrong-too")


class Watching(Observer):
    """Tells of each batch of verdicts, and of the tally after it."""

    def __init__(self, tell: Callable[[Sequence[Verdict], Tally], None]) -> None:
        self._tell = tell
        self._verdicts: Sequence[Verdict] = ()

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        self._verdicts = verdicts

    def progress(self, op: Op, target: Target, tally: Tally) -> None:
        self._tell(self._verdicts, tally)


def test_known_cases_come_first_then_earlier_failures_then_the_search() -> None:
    database = InMemoryExampleDatabase()
    search("IgnoresNe3", cases=[known("acc/wrong", acc(2, 1, 1, 2))], database=database, examples=1)
    tried: list[Case] = []
    with Runner(target("IgnoresNe3"), isolated=False) as runner:
        Search(
            ops()["acc"],
            runner,
            Settings(examples=8, seed=3),
            [known("acc/fine", acc(3))],
            database,
            Watching(lambda verdicts, tally: tried.extend(verdict.case for verdict in verdicts)),
        ).run()
    assert tried[:2] == [acc(3), acc(1, 1, 1, 2)]
    assert len(tried) >= 10


def test_a_known_case_that_fails_is_shrunk_where_the_search_finds_none() -> None:
    result = search("IgnoresNe3", cases=[known("acc/wrong", acc(60, 7, 3, 9, a=(70, 8, 3, 9)))], examples=1)
    assert result.failure is not None
    assert result.failure.case == acc(1, 1, 1, 2)
    assert result.failure.unfinished == ""
    assert result.failed_known == ("acc/wrong",)


@pytest.mark.parametrize("cases", [[], [known("acc/wrong", acc(2, 1, 1, 2))]], ids=["searched", "known"])
def test_a_failure_that_there_was_no_time_to_shrink_says_so_and_is_the_smallest_there_is(
    cases: Sequence[KnownCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opconform.harness.search.search.SHRINK_SECONDS", -1.0)
    failure = search("IgnoresNe3", cases=cases, seed=3).failure
    assert failure is not None
    assert failure.unfinished.startswith("shrinking was cut short after ")
    assert (failure.case == acc(2, 1, 1, 2)) == bool(cases)


def test_a_failure_whose_crash_takes_the_device_along_says_that_it_was_not_shrunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failure = search("DiesWhenOpenedAgain", isolated=True).failure
    assert failure is not None
    assert failure.kind == "CRASH"
    assert failure.unfinished == "the device was lost: a smaller case may fail too"


def test_a_hang_that_ends_once_it_is_shrunk_is_reported_as_it_was_found_and_says_so() -> None:
    cases = [known("acc/hangs", acc(5))]
    failure = search("SleepsLongAbove4", cases=cases, isolated=True, time_limit=0.4, examples=1).failure
    assert failure is not None
    assert failure.kind == "TIMEOUT"
    assert failure.case.inputs == acc(5).inputs
    assert failure.unfinished == ("what it was shrunk to ends within the time limit: this is the case as it was found")


def test_a_case_that_fails_with_its_own_values_alone_says_that_its_sizes_stay() -> None:
    case = acc(6)
    values = np.array([1, 2, 3, 4, 5, 12345.75], "<f4").tobytes()
    exact = case.with_data({"a": values, "b": values})
    failure = search("WrongForOneValue", cases=[known("acc/exact", exact)], examples=1).failure
    assert failure is not None
    assert failure.case.inputs == case.inputs
    assert "for it fails with its own values alone: a smaller case may fail too" in failure.unfinished


def test_a_crash_above_a_size_is_reported_at_the_first_size_that_crashes() -> None:
    failure = search("AbortsAbove40", isolated=True, seed=2).failure
    assert failure is not None
    assert failure.kind == "CRASH"
    assert failure.case.inputs == acc(41).inputs


def test_a_known_case_that_hangs_is_waited_for_once() -> None:
    start = time.monotonic()
    cases = [known(f"acc/{number}", acc(3)) for number in range(20)]
    result = search("SleepsOnOdd", cases=cases, isolated=True, time_limit=0.5, examples=1)
    assert time.monotonic() - start < 9
    assert result.failed_known == ("acc/0",)
    assert kind_of(result) == "TIMEOUT"


def test_a_known_case_above_max_bytes_is_named_and_left_out() -> None:
    cases = [known("acc/large", acc(3, a=(1024, 1024))), known("acc/small", acc(3))]
    result = search("Good", cases=cases, max_bytes=1 << 20)
    assert result.left_out == ("acc/large",)
    assert not result.tally.unsupported


def test_a_known_case_that_the_device_does_not_take_is_no_draw_and_counts_apart() -> None:
    case = acc(3)
    spread = replace(case, inputs={**case.inputs, "b": Layout("f32", (1, 1, 1, 3), (32, 32, 32, 8))})
    tally = search("LimitedKernel", cases=[known("acc/spread", spread), known("acc/packed", case)]).tally
    assert sum(tally.unsupported.values()) == 0
    assert sum(tally.known_unsupported.values()) == 1
    assert tally.reasons == ("the kernel asserts that the rows of b are contiguous",)
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


@pytest.mark.parametrize(("name", "still_fails"), [("KnownBug", True), ("FixedBug", False)])
def test_a_known_bug_is_tried_again_and_kept_out_of_the_search(name: str, still_fails: bool) -> None:
    result = search(name, cases=[known("acc/kb001-view", padded_b())])
    assert result.known_bugs == (KnownBug("acc/kb001-view", "acc reads a padded b as if it were packed", still_fails),)
    assert result.failure is None
    assert result.failed_known == ()
    assert not result.tally.unsupported


def test_a_pinned_case_that_cannot_run_does_not_count_as_fixed() -> None:
    result = search("NarrowKnownBug", cases=[known("acc/kb001-view", padded_b())])
    assert result.known_bugs == ()


def test_a_strict_run_reports_a_known_bug_as_a_failure() -> None:
    result = search("KnownBug", cases=[known("acc/kb001-view", padded_b())], strict=True)
    assert result.failure is not None
    assert result.failure.packed_twin == "passes"
    assert result.known_bugs == ()
    assert result.failed_known == ("acc/kb001-view",)


def test_a_strict_run_catches_a_kernel_that_was_said_to_take_everything() -> None:
    result = search("LimitedKernel", strict=True, isolated=True)
    assert result.failure is not None
    assert kind_of(result) == "SUPPORTS_OP LIES"
    assert result.failure.packed_twin == "passes"
    assert search("LimitedKernel", isolated=True).failure is None


@pytest.mark.parametrize("examples", [150, 500])
def test_a_device_that_says_yes_and_aborts_is_named_with_a_case(examples: int) -> None:
    result = search("LimitedKernel", isolated=True, examples=examples)
    assert result.failure is None
    (lie,) = result.lies
    assert lie.case.inputs["b"].kind > LayoutClass.ROWS
    assert lie.reason == "the kernel asserts that the rows of b are contiguous"
    assert "SIGABRT" in lie.end
    assert lie.packed_twin == "passes"
    assert Result.from_json(result.to_json()) == result


def test_neither_a_run_of_few_cases_nor_a_device_that_keeps_its_word_ends_a_process() -> None:
    assert search("LimitedKernel", isolated=True, examples=100).lies == ()
    assert search("Good", isolated=True, examples=500).lies == ()
    shards = [search("LimitedKernel", isolated=True, examples=75, shard=(index, 2)).lies for index in (1, 2)]
    assert [len(lies) for lies in shards] == [1, 0]


def test_a_failure_carries_over_to_the_next_run_and_is_gone_once_fixed() -> None:
    database = InMemoryExampleDatabase()
    first = search("IgnoresNe3", database=database)
    assert first.failure is not None
    key = min(database.data, key=len)  # that of the target; another one is its build's
    again = search("IgnoresNe3", database=database, examples=1)  # the one problem it draws does not fail
    assert again.failure is not None
    assert again.failure.case == first.failure.case
    assert again.tally.failed == 1
    fixed = key.replace(b"IgnoresNe3", b"Good")
    for stored in database.fetch(key):
        database.save(fixed, stored)
    repaired = search("Good", database=database, examples=1)
    assert repaired.failure is None
    assert repaired.tally.passed > 1
    assert list(database.fetch(fixed)) == []
    assert len(list(database.fetch(key))) == 1


def test_a_failure_that_only_sometimes_passes_is_kept() -> None:
    database = InMemoryExampleDatabase()
    first = search("Flaky", database=database)
    assert first.failure is not None
    key = min(database.data, key=len)  # that of the target; another one is its build's
    assert key.endswith(b"/races")
    for _ in range(5):
        search("Flaky", database=database, examples=1)
    assert list(database.fetch(key))


def test_a_race_of_an_earlier_run_is_tried_until_it_fails_again_and_forgotten_after_fifty_passes() -> None:
    database = InMemoryExampleDatabase()
    search("Flaky", database=database)
    key = min(database.data, key=len)
    rare = key.replace(b"Flaky", b"WrongInRun40")
    for stored in database.fetch(key):
        database.save(rare, stored)
    failure = search("WrongInRun40", database=database, examples=1).failure
    assert failure is not None
    assert failure.findings[0].detail.startswith("right at first, then wrong in run ")
    assert list(database.fetch(rare))
    mended = key.replace(b"Flaky", b"Good")
    for stored in database.fetch(key):
        database.save(mended, stored)
    assert search("Good", database=database, examples=1).failure is None
    assert not list(database.fetch(mended))


@pytest.mark.parametrize(
    ("check", "breaks"),
    [("deterministic", "Jitters"), ("batch_invariant", "SumsByBatch"), ("layout_invariant", "SumsByLayout")],
)
def test_what_a_check_on_request_has_found_waits_for_a_run_that_asks_for_it(check: str, breaks: str) -> None:
    database = InMemoryExampleDatabase()
    search(breaks, "cumsum", database=database, checks=(check,))
    key = next(key for key in sorted(database.data, key=len) if key.endswith(f"/{check}".encode()))
    for _ in range(3):
        assert search(breaks, "cumsum", database=database, examples=1).failure is None
    assert len(list(database.fetch(key))) == 1
    again = search(breaks, "cumsum", database=database, checks=(check,), examples=1).failure
    assert again is not None
    assert again.findings[0].check == check
    mended = key.replace(breaks.encode(), b"Good")
    for stored in database.fetch(key):
        database.save(mended, stored)
    assert search("Good", "cumsum", database=database, examples=1).failure is None
    assert len(list(database.fetch(mended))) == 1
    assert search("Good", "cumsum", database=database, checks=(check,), examples=1).failure is None
    assert not list(database.fetch(mended))


def test_what_a_database_that_is_only_read_holds_is_kept_in_the_local_one_while_it_fails() -> None:
    last_night, local = InMemoryExampleDatabase(), InMemoryExampleDatabase()
    search("IgnoresNe3", database=last_night)
    key = min(last_night.data, key=len)
    search("IgnoresNe3", database=MultiplexedDatabase(local, ReadOnlyDatabase(last_night)), examples=1)
    assert set(local.fetch(key)) == set(last_night.fetch(key))


def test_a_failure_too_large_for_this_run_waits_for_the_next() -> None:
    database = InMemoryExampleDatabase()
    search("IgnoresNe3", database=database)
    key = min(database.data, key=len)
    for stored in list(database.fetch(key)):
        for each in list(database.data):
            database.delete(each, stored)
    database.save(key, json.dumps(acc(600, 1, 1, 2).to_json()).encode())
    assert search("IgnoresNe3", database=database, examples=1, max_bytes=4096).failure is None
    assert kind_of(search("IgnoresNe3", database=database, examples=1)) == "WRONG VALUES"


def test_what_cannot_be_read_in_the_database_is_dropped() -> None:
    database = InMemoryExampleDatabase()
    search("IgnoresNe3", database=database)
    key = min(database.data, key=len)  # that of the target; another one is its build's
    deep, long = b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"
    for junk in (b"", b"\xff", b"[]", b'{"format": "opconform-case/1"}', deep, long):
        database.save(key, junk)
    assert kind_of(search("IgnoresNe3", database=database, examples=1)) == "WRONG VALUES"
    assert len(set(database.fetch(key))) == 1


def test_a_seed_draws_the_same_cases_again() -> None:
    draws = [cases_drawn(seed) for seed in (7, 7, 8)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert len(draws[0]) >= 300


def test_a_seed_draws_the_same_cases_whatever_else_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "literals.py").write_text(f"NUMBERS = {list(range(1, 6500, 97))}\n")
    script = "import json, literals; from tests.samples import cases_drawn; print(json.dumps(cases_drawn(7, 1200)))"
    places = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[2])))
    elsewhere = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env={**os.environ, "PYTHONPATH": places}
    )
    assert json.loads(elsewhere.stdout) == cases_drawn(7, 1200)


@pytest.mark.parametrize("profile", ["a", "b"])
def test_hypothesis_settings_of_the_user_do_not_change_the_search(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypothesis import Phase, settings

    settings.register_profile("a", max_examples=1, derandomize=True)
    settings.register_profile("b", phases=(Phase.reuse,), deadline=1)
    plain = cases_drawn(7)
    before = settings.get_current_profile_name()
    settings.load_profile(profile)
    try:
        assert cases_drawn(7) == plain
    finally:
        settings.load_profile(before)


def test_the_budget_of_seconds_is_kept_and_one_problem_is_always_tried() -> None:
    start = time.monotonic()
    result = search("Slow", seconds=1.0, examples=10**6)
    assert time.monotonic() - start < 4
    assert result.tally.executed >= 8
    assert result.cut
    tally = search("Good", seconds=0.0, examples=10**6).tally
    assert tally.executed + tally.vacuous == 8


def test_a_search_is_cut_only_where_it_had_less_than_was_asked_for() -> None:
    assert not search("Good", seconds=60.0, examples=16).cut
    assert not search("Good", seconds=0.1, examples=sys.maxsize).cut  # as much as the time allows was asked for
    assert not search("IgnoresNe3", seconds=60.0).cut  # it failed


def test_an_op_that_is_refused_for_one_reason_is_given_up_early() -> None:
    result = search("SaysNo")
    assert result.failure is None
    assert result.tally.executed == 0
    assert list(result.tally.unsupported) == ["has no kernel for acc yet"]
    assert 100 <= result.tally.unsupported.total() < 100 + 8


@pytest.mark.parametrize("name", ["SaysNoToSome", "SaysNoForTwoReasons"])
def test_an_op_that_is_not_refused_as_a_whole_is_searched_to_the_end(name: str) -> None:
    tally = search(name).tally
    assert tally.executed + tally.unsupported.total() >= 300


def test_progress_is_told_as_it_goes() -> None:
    seen: list[int] = []
    with Runner(target("Good"), isolated=False) as runner:
        watching = Watching(lambda verdicts, tally: seen.append(tally.executed))
        Search(ops()["acc"], runner, Settings(examples=80), observer=watching).run()
    assert seen == sorted(seen)
    assert 80 <= seen[-1] < 80 + 8  # cases that say nothing are made up for, a problem at a time


def test_cases_that_say_nothing_do_not_count_as_run() -> None:
    tally = search("Good", "cumsum").tally
    assert tally.vacuous > 0
    assert 300 <= tally.executed < 300 + 8


def test_large_known_cases_run_only_while_there_is_time_for_one() -> None:
    large = [known("acc/small", acc(3)), known("acc/large", acc(600))]
    chosen: dict[str, Any] = {"cases": large, "max_bytes": 4096, "known_max_bytes": 1 << 20, "examples": 8}
    assert search("Good", **chosen).left_out == ()
    assert search("Good", **chosen, seconds=60.0).left_out == ()
    in_a_hurry = search("Good", **chosen, seconds=0.1)
    assert in_a_hurry.left_out == ("acc/large",)
    assert in_a_hurry.tally.passed >= 1 + 8  # the small one, and what the search always tries


def test_of_a_batch_of_slow_cases_no_more_run_than_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opconform.harness.search.search._FIRST_SECONDS", 0.0)
    tally = search("Slow", seconds=0.2).tally  # each takes 50 ms, and eight are made at once
    assert 1 <= tally.executed + tally.vacuous <= 5
    none_left = search("Slow", seconds=1e-6).tally
    assert none_left.executed + none_left.vacuous == 1
