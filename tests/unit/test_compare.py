"""Histories put together and compared: merging, the last state of each pair, shards, and the changes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from opconform.harness.judge.judging import Verdict
from opconform.harness.model.usage import UsageError
from opconform.harness.search.result import KnownFailure
from opconform.harness.search.settings import shard_of, share_of
from opconform.reports.compare import compare, summary_of, table_of
from opconform.reports.database import open_history
from opconform.reports.history import recorders
from opconform.reports.merge import merge
from opconform.reports.states import Pair, RunRow, State, grouped, states_of
from opconform.reports.summary import markdown_of
from tests.histories import (
    ACC,
    FAILED,
    PAIR,
    PASSED,
    REFUSED,
    VULKAN,
    finished,
    query,
    record,
    result_of,
    run_of,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "history.sqlite"


# Merging


def contents(path: Path) -> dict[str, list[tuple[object, ...]]]:
    return {table: query(path, f"SELECT * FROM {table}") for table in ("runs", "results", "test_backend_ops")}


def test_merging_takes_every_run_once(tmp_path: Path) -> None:
    one, two, out = (tmp_path / f"{name}.sqlite" for name in ("one", "two", "out"))
    finished(one, [PASSED, FAILED])
    finished(two, [PASSED])
    finished(two, [REFUSED])
    assert [(m.added, m.replaced, m.known) for m in merge(out, [one, two])] == [(1, 0, 0), (2, 0, 0)]
    merged = contents(out)
    assert {table: len(rows) for table, rows in merged.items()} == {"runs": 3, "results": 3, "test_backend_ops": 4}
    assert [(m.added, m.replaced, m.known) for m in merge(out, [two, one, out.parent / "one.sqlite"])] == [
        *((0, 0, 2), (0, 0, 1), (0, 0, 1)),
    ]
    assert contents(out) == merged


def test_without_the_cases_the_runs_and_their_results_stay(tmp_path: Path) -> None:
    one, out = tmp_path / "one.sqlite", tmp_path / "out.sqlite"
    finished(one, [PASSED, FAILED])
    for added in (1, 0):
        assert [merged.added for merged in merge(out, [one], cases=False)] == [added]
    assert {table: len(rows) for table, rows in contents(out).items()} == {
        "runs": 1,
        "results": 1,
        "test_backend_ops": 0,
    }
    assert states_of(out) == states_of(one)


def test_a_run_that_was_merged_half_way_is_completed_and_never_shortened(tmp_path: Path) -> None:
    one, out, early = (tmp_path / f"{name}.sqlite" for name in ("one", "out", "early"))
    run = run_of(one)
    (_, found) = recorders(run)
    found.begins(ACC, VULKAN)
    found.verdicts(ACC, VULKAN, [PASSED])
    merge(out, [one])
    merge(early, [one])
    found.verdicts(ACC, VULKAN, [PASSED])
    found.result(ACC, VULKAN, result_of([PASSED, PASSED]))
    found.close()
    assert [(m.added, m.replaced) for m in merge(out, [one])] == [(0, 1)]
    assert [(m.added, m.replaced) for m in merge(out, [early])] == [(0, 0)]
    assert contents(out) == contents(one)


def test_a_bad_input_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    one, bad, out = (tmp_path / f"{name}.sqlite" for name in ("one", "bad", "out"))
    finished(one, [PASSED])
    with closing(open_history(bad)) as db:  # one that is found to be broken only when its rows are read
        db.execute("INSERT INTO runs VALUES ('r', '2026', NULL, 'search', 1, '', 1, 1, 1, '', '{}', '[]', '{}')")
        db.execute("DROP TABLE results")
    with pytest.raises(UsageError, match=r"bad.sqlite: no such table: results"):
        merge(out, [one, bad])
    assert not out.exists()
    finished(out, [PASSED])
    before = contents(out)
    with pytest.raises(UsageError, match=r"bad.sqlite: no such table: results"):
        merge(out, [one, bad])
    assert contents(out) == before
    with pytest.raises(UsageError, match="is both an input and the output"):
        merge(out, [out])


# The last state of each pair


def row(name: str, shard: tuple[int, int] = (1, 1), seed: int = 1, pair: tuple[str, str] = PAIR[:2]) -> RunRow:
    return RunRow(name, name, None, "search", seed, shard, (pair,))


def test_shards_of_one_run_belong_together_and_a_new_round_is_not_mixed_with_the_old() -> None:
    rounds = [
        *(row("a1", (1, 2)), row("alone"), row("a2", (2, 2))),
        *(row("b1", (1, 2)), row("other", (2, 2), seed=2)),
        row("c1", (1, 2)),
        row("c2", (2, 2)),
    ]
    names = [[run.id for run in group] for group in grouped(rounds)]
    assert names == [["a1", "a2"], ["alone"], ["b1"], ["other"], ["c1", "c2"]]


def test_shards_of_several_devices_may_start_in_any_order() -> None:
    other = ("acc", "torch:cpu")
    rounds = [row("a1", (1, 2)), row("b1", (1, 2), pair=other), row("a2", (2, 2)), row("b2", (2, 2), pair=other)]
    assert [[run.id for run in group] for group in grouped(rounds)] == [["a1", "a2"], ["b1", "b2"]]


def shard(path: Path, index: int, count: int, verdicts: Sequence[Verdict]) -> None:
    run = run_of(path, shard=(index, count))
    record(run, verdicts, result_of(verdicts))


def test_a_failure_in_one_shard_is_the_pairs(path: Path) -> None:
    shard(path, 1, 2, [FAILED])
    shard(path, 2, 2, [PASSED])
    state = states_of(path)[PAIR]
    assert (state.outcome, state.executed, state.case_id) == ("failed", 2, FAILED.case.id)


def test_a_missing_shard_leaves_the_pair_unfinished(path: Path) -> None:
    shard(path, 1, 3, [PASSED])
    shard(path, 3, 3, [PASSED])
    state = states_of(path)[PAIR]
    assert (state.outcome, state.detail) == ("not finished", "without shard 2 of 3")


def test_a_run_that_was_killed_hides_the_pass_before_it(path: Path) -> None:
    finished(path, [PASSED])
    killed = run_of(path)
    record(killed, [PASSED], close=False)
    assert states_of(path)[PAIR] == State("not finished", detail="did not finish")
    record(run_of(path), [PASSED, FAILED], close=False)
    state = states_of(path)[PAIR]
    assert (state.outcome, state.kind, state.detail) == ("failed", "WRONG VALUES", "did not finish")
    assert states_of(path, killed.id)[PAIR].outcome == "not finished"


def test_a_pair_that_a_run_never_reached_is_not_finished(path: Path) -> None:
    finished(path, [PASSED])
    run = run_of(path)
    run.pairs.append(("cumsum", VULKAN.label))
    record(run, [PASSED], result_of([PASSED]))
    assert {pair[0]: state.outcome for pair, state in states_of(path).items()} == {
        "acc": "passed",
        "cumsum": "not finished",
    }


def test_a_replay_counts_only_by_name(path: Path) -> None:
    finished(path, [PASSED])
    replay = replace(run_of(path), command="replay")
    record(replay, [FAILED], result_of([FAILED]))
    assert states_of(path)[PAIR].outcome == "passed"
    assert states_of(path, replay.id)[PAIR].outcome == "failed"


def test_a_run_is_named_by_its_beginning_where_that_is_one(path: Path) -> None:
    run = finished(path, [PASSED])
    assert states_of(path, run.id[:-2])[PAIR].outcome == "passed"
    with pytest.raises(UsageError, match=r"no run 'x' in .*; opconform runs lists them"):
        states_of(path, "x")
    finished(path, [PASSED])
    with pytest.raises(UsageError, match="several runs '2'"):
        states_of(path, "2")


def test_a_history_without_a_search_is_nothing_to_compare(path: Path) -> None:
    record(replace(run_of(path), command="replay"), [PASSED], result_of([PASSED]))
    with pytest.raises(UsageError, match=r"no run in it has tested anything"):
        states_of(path)


# Comparing

GREEN = State("passed", 100, 1.0)
RED = State("failed", 100, 1.0, "CRASH", "acc-1")
GREY = State("unsupported", reasons=("no kernel",))
CUT = State("not finished", detail="did not finish")
LISTED = KnownFailure("known_failures.toml, entry 1", "acc/kb001", "ne3", "https://x", "2099-01-01", False, 3, "fails")
KNOWN = State("known", 100, 1.0, listed=(LISTED,))


@pytest.mark.parametrize(
    ("old", "new", "what", "regression"),
    [
        (GREEN, GREEN, None, False),
        (GREEN, RED, "new failure", True),
        (GREEN, GREY, "newly unsupported", True),
        (GREEN, CUT, "not finished", True),
        (GREEN, None, "vanished", True),
        (RED, GREEN, "fixed", False),
        (RED, RED, "still failing", False),
        (RED, replace(RED, failed_known=frozenset({"acc/kb"})), "new failure", True),
        (RED, GREY, "newly unsupported", False),
        (RED, CUT, "not finished", True),
        (RED, None, "vanished", True),
        (GREY, GREEN, "new pair", False),
        (GREY, RED, "new failure", True),
        (GREY, GREY, None, False),
        (CUT, GREEN, "new pair", False),
        (CUT, RED, "new failure", True),
        (None, GREEN, "new pair", False),
        (None, RED, "new failure", True),
        (None, GREY, "new pair", False),
        (None, CUT, "not finished", True),
        (None, KNOWN, "known failure", False),
        (GREEN, KNOWN, "known failure", False),
        (RED, KNOWN, "known failure", False),
        (CUT, KNOWN, "known failure", False),
        (KNOWN, KNOWN, None, False),
        (KNOWN, GREEN, "fixed", False),
        (KNOWN, RED, "new failure", True),
        (KNOWN, GREY, "newly unsupported", True),
        (KNOWN, CUT, "not finished", True),
        (KNOWN, None, "vanished", True),
        (GREEN, replace(GREEN, seconds=100.0), None, False),
        (GREEN, replace(GREEN, reasons=("no f16",)), "newly unsupported", False),
        (replace(GREEN, mended=frozenset({"x"})), replace(GREEN, bugs=frozenset({"x"})), "new failure", True),
        (replace(GREEN, bugs=frozenset({"x"})), replace(GREEN, mended=frozenset({"x"})), "fixed", False),
    ],
)
def test_every_change_has_a_name(old: State | None, new: State | None, what: str | None, regression: bool) -> None:
    before = {} if old is None else {PAIR: old}
    after = {} if new is None else {PAIR: new}
    changes = compare(before, after)
    assert [(change.what, change.regression) for change in changes] == ([(what, regression)] if what else [])


def test_a_known_failure_says_why_and_where_it_is_listed() -> None:
    (change,) = compare({PAIR: RED}, {PAIR: KNOWN})
    assert (change.old, change.new) == (
        "failed 100: CRASH (acc-1)",
        "known 100: ne3 (known_failures.toml, entry 1)",
    )


def test_the_table_shows_regressions_first_and_counts_the_rest() -> None:
    old = {Pair("acc", "a:0"): RED, **dict.fromkeys([Pair(op, "a:0") for op in ("set", "cumsum", "tri")], GREEN)}
    new = {Pair("acc", "a:0"): GREEN, Pair("set", "a:0"): RED, Pair("cumsum", "a:0"): GREEN}
    changes = compare(old, new)
    assert table_of(changes).splitlines() == [
        "change       op   target  old                        new",
        "new failure  set  a:0     passed 100                 failed 100: CRASH (acc-1)",
        "vanished     tri  a:0     passed 100                 –",
        "fixed        acc  a:0     failed 100: CRASH (acc-1)  passed 100",
    ]
    assert summary_of(changes, old, new) == "2 regressions; 1 new failure, 1 vanished, 1 fixed, 1 unchanged"
    assert table_of([]) == ""


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "", "٣/٤", "1/9999999"])
def test_a_shard_that_cannot_be_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--shard is "):
        shard_of(text)


def test_the_shares_make_up_the_whole() -> None:
    assert [share_of(1000, (i, 3)) for i in (1, 2, 3)] == [334, 333, 333]
    assert [share_of(2, (i, 3)) for i in (1, 2, 3)] == [1, 1, 1]


def test_ops_that_no_device_takes_are_one_line_of_the_summary() -> None:
    refused = State("unsupported", reasons=("there is none",))
    states = {Pair("acc", "ggml:CPU"): State("passed", 8), Pair("acc", "mine:0"): refused}
    states |= {Pair(op, target): refused for op in ("set", "tri") for target in ("ggml:CPU", "mine:0")}
    states |= {Pair("pad", "mine:0"): State("unsupported", bugs=frozenset({"pad/kb001"}))}
    found = markdown_of([], states, states).splitlines()
    rows = [line.split(" | ")[0] for line in found if line.startswith("| ")]
    assert rows == ["| op", "| ---", "| acc", "| pad"]
    assert found[-1] == "taken by no device&#58; set, tri &#40;there is none&#41;"
