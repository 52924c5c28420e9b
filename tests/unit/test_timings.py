"""Times in a history: what is kept of them, what is read, and what two histories say of a case that is slower now."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from opconform.cli import main
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Device
from opconform.harness.run.target import Target
from opconform.harness.search.speed import Subject
from opconform.reports.compare import compare, summary_of
from opconform.reports.database import _STEPS, APPLICATION_ID, PERF, open_history
from opconform.reports.html.data import report_of
from opconform.reports.html.times import WIDE, times_of
from opconform.reports.listing import run_lines
from opconform.reports.merge import merge
from opconform.reports.rows import UPSTREAM
from opconform.reports.states import states_of
from opconform.reports.timings import timings_of
from tests.histories import ACC, PAIR, PASSED, SUBJECT, TIMED, finished, query, ratio_of, timed
from tests.samples import acc

OTHER_CASE = Subject("acc/two", ACC, acc(5))
REFUSED = replace(ratio_of(1.0, OTHER_CASE), versus=None, other=None, unsupported="no f16")
FAILED = replace(REFUSED, unsupported=None, error="it ended")
REBUILT = Target("ggml", Device("Vulkan0", "llvmpipe", {"build": "b9000"}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


# What is kept


def test_a_row_of_times_has_upstreams_columns_and_ours(path: Path) -> None:
    run = timed(path, TIMED)
    columns = [row[1] for row in query(path, "PRAGMA table_info(timings)")]
    assert columns == ["run_id", *UPSTREAM, *PERF]
    names = "run_id, target, build, case_id, case_name, cache, time_us, time_low_us, time_high_us, share_of_copy"
    same = (run.id, "ggml:Vulkan0", "b7836", SUBJECT.case.id, "acc/one")
    rows = query(path, f"SELECT {names} FROM timings")
    assert rows == [
        pytest.approx((*same, "warm", 10.0, 9.0, 12.0, 0.5)),
        pytest.approx((*same, "cold", 30.0, 20.0, 40.0, 0.5)),
    ]
    assert query(path, "SELECT DISTINCT test_mode, op_name, planned_bytes, ratio FROM timings") == [
        ("perf", "ACC", 7, None)
    ]
    assert query(path, "SELECT count(*) FROM test_backend_ops") == [(0,)]


def test_a_comparison_is_kept_with_its_interval_and_what_was_called_slower(path: Path) -> None:
    timed(path, ratio_of(1.5), ratio_of(1.05, OTHER_CASE))
    assert query(path, "SELECT case_name, ratio, ratio_low, ratio_high, slower, margin, versus FROM timings") == [
        ("acc/one", 1.5, 1.5, 1.5, 1, 0.1, "ggml:Vulkan0 (b6673)"),
        ("acc/two", 1.05, 1.05, 1.05, 0, 0.1, "ggml:Vulkan0 (b6673)"),
    ]


def test_times_are_there_before_the_run_ends_and_in_the_event_log(path: Path) -> None:
    run = timed(path, TIMED, FAILED, close=False)
    assert query(path, "SELECT count(*) FROM timings") == [(3,)]
    events = [json.loads(line) for line in (path.parent / "events" / f"{run.id}.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["run", "timing", "timing", "timing"]
    assert (events[1]["cache"], events[1]["time_us"]) == ("warm", pytest.approx(10.0))
    assert timings_of(path)[0].row("warm") is not None


def test_an_older_history_is_read_and_gets_the_table(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for version in (1, 2):
            for statement in (*_STEPS[version], f"PRAGMA user_version = {version}"):
                db.execute(statement)
        db.execute("INSERT INTO runs VALUES ('r', '2026-01-01', NULL, 'perf', 1, '', 1, 1, 1, '', '{}', '[]', '{}')")
    assert timings_of(path) == []
    assert [line[0] for line in run_lines(path)] == ["r"]
    assert [merged.added for merged in merge(path.parent / "out.sqlite", [path])] == [1]
    timed(path, TIMED)
    assert [timing.name for timing in timings_of(path)] == ["acc/one"]


def test_a_strangers_table_of_that_name_in_an_older_history_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in (*_STEPS[1], *_STEPS[2], "CREATE VIEW timings AS SELECT 1", "PRAGMA user_version = 2"):
            db.execute(statement)
    for read in (timings_of, lambda path: open_history(path).close()):
        with pytest.raises(UsageError, match="view 'timings' acts on timings; a history has none"):
            read(path)
    assert query(path, "PRAGMA application_id") == [(APPLICATION_ID,)]


# What is read


def test_the_last_run_on_each_target_and_build_counts(path: Path) -> None:
    timed(path, TIMED, ratio_of(1.5))
    timed(path, replace(TIMED, target=REBUILT))
    last = timed(path, TIMED)
    found = timings_of(path)
    assert [(timing.pair.build.name, timing.slower) for timing in found] == [("b7836", False), ("b9000", False)]
    assert found[0].run.id == last.id
    # what was compared last still says what it said
    assert [(timing.pair.build.name, timing.slower) for timing in timings_of(path, compared=True)] == [("b7836", True)]
    assert timings_of(path, last.id[:-2]) == [found[0]]


def test_times_are_no_tests(path: Path) -> None:
    run = timed(path, TIMED)
    with pytest.raises(UsageError, match="no run in it has tested anything"):
        states_of(path)
    assert states_of(path, run.id, needed=False) == {}
    finished(path, [PASSED])
    assert list(states_of(path)) == [PAIR]
    with pytest.raises(UsageError, match="no run 'x'"):
        timings_of(path, "x")


def test_runs_says_what_was_timed(path: Path) -> None:
    timed(path, TIMED, ratio_of(1.5), ratio_of(1.0, OTHER_CASE), FAILED, REFUSED)
    timed(path, TIMED)
    lines = [(line[3], *line[4:]) for line in run_lines(path)]
    words = "1 case timed, 1 of 2 slower than the other build, 1 failed, 1 unsupported"
    assert lines[0] == ("perf", "ggml:Vulkan0", "b7836", "acc", words, "–", "1/1")
    assert lines[1][4] == "1 case timed"


def test_merging_takes_times_once_and_completes_a_run(tmp_path: Path) -> None:
    one, early, out = (tmp_path / f"{name}.sqlite" for name in ("one", "early", "out"))
    timed(one, TIMED, close=False)
    merge(early, [one])
    run_id = timings_of(one)[0].run.id
    with closing(sqlite3.connect(one, isolation_level=None)) as db:
        db.execute("INSERT INTO timings SELECT * FROM timings LIMIT 1")
        db.execute("UPDATE runs SET ended = started")
    for cases, fates in ((False, [(1, 0), (0, 1)]), (True, [(0, 0), (0, 0)])):
        assert [(m.added, m.replaced) for m in merge(out, [early, one], cases)] == fates
        assert query(out, "SELECT * FROM timings") == query(one, "SELECT * FROM timings")
    assert query(out, "SELECT DISTINCT run_id FROM timings") == [(run_id,)]


# What two histories say


def newly_slow(old: Path | None, new: Path) -> list[tuple[str, str, bool]]:
    before = [] if old is None else timings_of(old, compared=True)
    changes = compare({}, {}, before, timings_of(new, compared=True))
    assert {change.what for change in changes} <= {"newly slow"}
    return [(change.target, change.new, change.regression) for change in changes]


def test_newly_slow_is_what_is_called_slower_and_was_not(tmp_path: Path) -> None:
    fast, slow, other = (tmp_path / f"{name}.sqlite" for name in ("fast", "slow", "other"))
    timed(fast, TIMED, ratio_of(1.0), ratio_of(1.0, OTHER_CASE))
    timed(slow, TIMED, ratio_of(1.5), ratio_of(1.05, OTHER_CASE))
    timed(other, ratio_of(1.5, target=REBUILT))
    says = "acc/one takes 1.50 (1.50–1.50) times as long as ggml:Vulkan0 (b6673)"
    assert newly_slow(fast, slow) == [("ggml:Vulkan0", says, True)]
    assert newly_slow(None, slow) == [("ggml:Vulkan0", says, True)]
    assert newly_slow(slow, slow) == newly_slow(slow, fast) == newly_slow(fast, fast) == []
    # another build of the target is compared with the last one there
    assert newly_slow(slow, other) == []
    assert newly_slow(fast, other) == [("ggml:Vulkan0 (b7836 → b9000)", says, True)]


def test_times_that_were_not_taken_in_turn_say_nothing(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    timed(old, TIMED)
    assert TIMED.warm is not None
    timed(new, replace(TIMED, warm=TIMED.warm.times(100)))
    assert newly_slow(old, new) == []


def test_the_command_says_it_in_both_forms_and_with_its_exit_status(tmp_path: Path) -> None:
    fast, slow = str(tmp_path / "fast.sqlite"), str(tmp_path / "slow.sqlite")
    timed(Path(fast), TIMED, ratio_of(1.0))
    timed(Path(slow), TIMED, ratio_of(1.5))
    found = CliRunner().invoke(main, ["compare", fast, slow])
    assert found.exit_code == 1
    assert found.stdout.splitlines()[1].startswith("newly slow  acc  ggml:Vulkan0  acc/one takes 1.00")
    assert found.stdout.splitlines()[-1] == "1 regression; 1 newly slow, 0 unchanged"
    found = CliRunner().invoke(main, ["compare", fast, slow, "--output", "json"])
    assert found.exit_code == 1
    (change,) = json.loads(found.stdout)["changes"]
    assert (change["change"], change["regression"], change["case_name"]) == ("newly slow", True, "acc/one")
    assert (change["ratio_low"], change["ratio"], change["versus"]) == (1.5, 1.5, "ggml:Vulkan0 (b6673)")
    for arguments in ([slow, slow], [slow, fast], [fast, fast]):
        found = CliRunner().invoke(main, ["compare", *arguments])
        assert (found.exit_code, found.stdout) == (0, "no regression; 0 unchanged\n")


def test_a_slow_case_stands_beside_the_changes_of_tests(tmp_path: Path) -> None:
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    finished(old, [PASSED])
    finished(new, [PASSED])
    timed(new, ratio_of(1.5))
    before, after = states_of(old), states_of(new)
    changes = compare(before, after, [], timings_of(new, compared=True))
    assert summary_of(changes, before, after) == "1 regression; 1 newly slow, 0 unchanged"


# The page


def test_what_is_slower_comes_first_and_bars_are_as_long_as_their_share(path: Path) -> None:
    timed(path, replace(TIMED, subject=OTHER_CASE), TIMED, ratio_of(1.5), ratio_of(0.9, OTHER_CASE), REFUSED)
    (times,) = times_of(report_of(path))
    assert (times.target, times.device, times.clocks) == ("ggml:Vulkan0 (b7836)", "llvmpipe", "graphs")
    assert (times.against, times.slower) == ("ggml:Vulkan0 (b6673)", 1)
    first, second = times.lines
    assert (first.name, first.slower, second.name, second.slower) == ("acc/one", True, "acc/two", False)
    assert (first.time, first.interval, first.cold) == ("10.0", "9.00–12.0", "30.0")
    assert first.of_copy is not None
    assert (first.of_copy.says, first.of_copy.block.width) == ("50%", WIDE / 2)
    assert first.memory == ("0.00 MB", "0.00 MB")
    assert first.ratio is not None
    assert second.ratio is not None
    assert (first.ratio.says, first.ratio.block.kind) == ("1.50 (1.50–1.50)", "failed")
    assert second.ratio.block.x + second.ratio.block.width / 2 < WIDE / 2 < first.ratio.block.x
    assert times.notes == ("acc/two unsupported: no f16",)


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e300])
def test_a_figure_beyond_all_measure_stays_in_its_bar(value: float, path: Path) -> None:
    timed(path, TIMED, ratio_of(1.0))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE timings SET share_of_copy = ?, ratio = ratio * ?, ratio_low = ratio_low * ?", (value,) * 3)
        db.execute("UPDATE timings SET ratio_high = ratio")
    (line,) = times_of(report_of(path))[0].lines
    for drawn in (line.of_copy, line.ratio):
        assert drawn is not None
        assert 0 <= drawn.block.x <= drawn.block.x + drawn.block.width <= WIDE
        assert len(drawn.says) < 40


def test_plain_tests_have_no_times(path: Path) -> None:
    finished(path, [PASSED])
    assert times_of(report_of(path)) == []
